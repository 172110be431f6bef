//! The fingerprint of a model: a name for the space that its vectors lie in.
//!
//! Two vectors can be compared if they were made from the same rows by the same arithmetic and from the same tokens. A [`Fingerprint`] is
//! a digest of exactly that:
//!
//! * the table: the type of its numbers, its shape, its rows as they are stored, in the order of the token IDs, and their scales;
//! * the final norm and the norm on the embedding: kind, eps, weight and bias; the scale of the embeddings; and the weights of tokens;
//! * the content of the tokenizer.json, and the prompt that is put before each text;
//! * whether vectors are scaled to length 1, whether special tokens are pooled, the token that is left out, the exponent of token
//!   counts, and the number of columns and the weight of the lexical tail.
//!
//! What only decides how a request is read or refused is not a part of it: the meaning of token IDs in a request, the answer to empty inputs, and the
//! limit on tokens. `dimensions` is not a part of it either, because a shorter vector is the beginning of the longer one, and its
//! length says so. Neither are paths, the device, and the number of threads.
//!
//! The digest is XXH3 with 128 bits. It detects accidents, such as an exchanged file or setting. It is not a signature: somebody who
//! can choose the files of a model can choose its fingerprint.
//!
//! For example, the fields of a table of 2 rows begin with the bytes `5 0 0 0 0 0 0 0 d t y p e 4 0 0 0 0 0 0 0 b f 1 6`: each name and each
//! value is preceded by its length, so that no two lists of fields have the same bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use twox_hash::XxHash3_128;

use crate::checkpoint::Conventions;
use crate::norm::{FinalNorm, Norm, RowsDigest};
use crate::table::EmbeddingTable;

/// The version of the list of fields. A change to the list for models that exist already needs another version.
const VERSION: &str = "layer0 1";

/// The name of a vector space: 128 bits, written as 32 hexadecimal digits. Models with the same fingerprint give the same vectors, up to rounding.
///
/// # Examples
///
/// ```
/// use layer0::Fingerprint;
///
/// let fingerprint: Fingerprint = "00000000000000000000000000c0ffee".parse()?;
/// assert_eq!(fingerprint.to_string(), "00000000000000000000000000c0ffee");
///
/// let error = "c0ffee".parse::<Fingerprint>().unwrap_err();
/// assert_eq!(error.to_string(), "a fingerprint has 32 hexadecimal digits");
/// # Ok::<(), layer0::InvalidFingerprint>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u128);

/// The error for a text that is not a [`Fingerprint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 32 hexadecimal digits")]
pub struct InvalidFingerprint;

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        // The parser of integers also accepts a sign.
        let is_valid = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bits = u128::from_str_radix(text, 16).map_err(|_| InvalidFingerprint)?;
        is_valid.then_some(Self(bits)).ok_or(InvalidFingerprint)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Everything that determines the vectors of a model.
#[derive(Debug)]
pub(crate) struct VectorSpace<'a> {
    pub table: &'a EmbeddingTable,
    pub rows_digest: RowsDigest,
    pub norm: &'a FinalNorm,
    pub tokenizer_digest: u128,
    pub conventions: Conventions,
    pub prompt: Option<&'a str>,
}

impl VectorSpace<'_> {
    pub fn fingerprint(&self) -> Fingerprint {
        let Self { table, rows_digest, norm, tokenizer_digest, conventions, prompt } = self;
        let Conventions {
            special_tokens,
            normalize,
            left_out,
            token_count_exponent,
            lexical_dimensions,
            lexical_weight,
        } = conventions;
        let FinalNorm { embedding_scale, embedding_norm, norm: last, row_weights } = norm;
        let mut fields = Fields::default();
        fields.add("version", VERSION.as_bytes());
        fields.add("dtype", table.dtype().name().as_bytes());
        fields.add("rows", &(table.rows() as u64).to_le_bytes());
        fields.add("dimensions", &(table.dimensions() as u64).to_le_bytes());
        fields.add("table", &rows_digest.0.to_le_bytes());
        if table.dtype().is_integer() {
            let ids = 0..u32::try_from(table.rows()).unwrap_or(u32::MAX);
            fields.add_numbers("row_scales", ids.map(|id| table.row_scale(id)));
        }
        fields.add("embedding_scale", &embedding_scale.to_le_bytes());
        if let Some(inner) = embedding_norm {
            fields.add_norm("embedding_norm", inner);
        }
        fields.add_norm("norm", last);
        if let Some(weights) = row_weights {
            fields.add_numbers("row_weights", weights.iter().copied());
        }
        fields.add("tokenizer", &tokenizer_digest.to_le_bytes());
        fields.add("special_tokens", &[u8::from(*special_tokens)]);
        fields.add("normalize", &[u8::from(*normalize)]);
        if let Some(id) = left_out {
            fields.add("left_out", &id.to_le_bytes());
        }
        if let Some(prompt) = prompt {
            fields.add("prompt", prompt.as_bytes());
        }
        // The plain mean, which most models have, adds nothing to the list.
        if *token_count_exponent != 1.0 {
            fields.add("token_count_exponent", &token_count_exponent.to_le_bytes());
        }
        // The same holds for a model without a lexical tail. The length of the tail determines the size of its numbers.
        if *lexical_dimensions > 0 {
            fields.add("lexical_dimensions", &(*lexical_dimensions as u64).to_le_bytes());
            fields.add("lexical_weight", &lexical_weight.to_le_bytes());
        }
        Fingerprint(XxHash3_128::oneshot(&fields.0))
    }
}

/// Named values as bytes.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn add(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.0.extend_from_slice(&(part.len() as u64).to_le_bytes());
            self.0.extend_from_slice(part);
        }
    }

    fn add_numbers(&mut self, name: &str, numbers: impl Iterator<Item = f32>) {
        let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        self.add(name, &bytes);
    }

    fn add_norm(&mut self, name: &str, norm: &Norm) {
        let Norm { kind, eps, weight, bias } = norm;
        self.add(name, kind.name().as_bytes());
        self.add("eps", &eps.to_le_bytes());
        for (name, numbers) in [("weight", weight), ("bias", bias)] {
            if let Some(numbers) = numbers {
                self.add_numbers(name, numbers.iter().copied());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::norm::NormKind;
    use crate::table::TableDtype;

    fn table(bytes: &'static [u8], dtype: TableDtype, rows: usize, dimensions: usize) -> EmbeddingTable {
        EmbeddingTable::new(Bytes::from_static(bytes), dtype, rows, dimensions).unwrap()
    }

    fn integers(scales: [f32; 2]) -> EmbeddingTable {
        EmbeddingTable::quantized(Bytes::from_static(&[1, 2, 3, 4]), TableDtype::Int8, 2, scales.to_vec()).unwrap()
    }

    fn norm(kind: NormKind) -> Norm {
        Norm { kind, eps: 1e-6, weight: Some(vec![1.0, 2.0]), bias: None }
    }

    fn final_norm(norm: Norm) -> FinalNorm {
        FinalNorm { embedding_scale: 1.0, embedding_norm: None, norm, row_weights: None }
    }

    struct Parts {
        table: EmbeddingTable,
        norm: FinalNorm,
        tokenizer_digest: u128,
        conventions: Conventions,
        prompt: Option<&'static str>,
        threads: usize,
    }

    fn fingerprint(change: impl FnOnce(&mut Parts)) -> Fingerprint {
        let mut parts = Parts {
            table: table(&[0, 1, 2, 3, 4, 5, 6, 7], TableDtype::Bf16, 2, 2),
            norm: final_norm(norm(NormKind::Rms)),
            tokenizer_digest: 1,
            conventions: Conventions::TRANSFORMERS,
            prompt: None,
            threads: 1,
        };
        change(&mut parts);
        let (_, rows_digest) = parts.norm.collapse_and_digest(&parts.table, parts.threads).unwrap();
        let Parts { table, norm, tokenizer_digest, conventions, prompt, .. } = parts;
        VectorSpace { table: &table, rows_digest, norm: &norm, tokenizer_digest, conventions, prompt }.fingerprint()
    }

    #[test]
    fn everything_that_changes_vectors_changes_the_fingerprint() {
        let rms = || norm(NormKind::Rms);
        let mut all = vec![
            fingerprint(|_| {}),
            fingerprint(|p| p.table = table(&[0, 1, 2, 3, 4, 5, 6, 8], TableDtype::Bf16, 2, 2)),
            fingerprint(|p| p.table = table(&[4, 5, 6, 7, 0, 1, 2, 3], TableDtype::Bf16, 2, 2)),
            fingerprint(|p| p.table = table(&[0, 1, 2, 3, 4, 5, 6, 7], TableDtype::F16, 2, 2)),
            fingerprint(|p| p.table = table(&[0, 1, 2, 3, 4, 5, 6, 7], TableDtype::Bf16, 4, 1)),
            fingerprint(|p| p.table = p.table.clone().with_mapping(Arc::new([0, 1, 1])).unwrap()),
            fingerprint(|p| p.table = integers([1.0, 1.0])),
            fingerprint(|p| p.table = integers([1.0, 2.0])),
            fingerprint(|p| p.norm.embedding_scale = 2.0),
            fingerprint(|p| p.norm.embedding_norm = Some(rms())),
            fingerprint(|p| p.norm.norm = norm(NormKind::RmsPlusOne)),
            fingerprint(|p| p.norm.norm = Norm { eps: 1e-5, ..rms() }),
            fingerprint(|p| p.norm.norm = Norm { weight: None, ..rms() }),
            fingerprint(|p| p.norm.norm = Norm { weight: Some(vec![1.0, 3.0]), ..rms() }),
            fingerprint(|p| p.norm.norm = Norm { bias: Some(vec![1.0, 2.0]), ..rms() }),
            fingerprint(|p| p.norm.norm = Norm { weight: None, bias: Some(vec![1.0, 2.0]), ..rms() }),
            fingerprint(|p| p.norm.row_weights = Some(vec![1.0, 0.5])),
            fingerprint(|p| p.tokenizer_digest = 2),
            fingerprint(|p| p.conventions.normalize = false),
            fingerprint(|p| p.conventions.special_tokens = false),
            fingerprint(|p| p.conventions.left_out = Some(0)),
            fingerprint(|p| p.conventions.left_out = Some(1)),
            fingerprint(|p| p.prompt = Some("query: ")),
            fingerprint(|p| p.prompt = Some("passage: ")),
            fingerprint(|p| p.conventions.token_count_exponent = 0.5),
            fingerprint(|p| p.conventions.token_count_exponent = 0.0),
            fingerprint(|p| p.conventions.lexical_dimensions = 8),
            fingerprint(|p| p.conventions.lexical_dimensions = 16),
            fingerprint(|p| (p.conventions.lexical_dimensions, p.conventions.lexical_weight) = (8, 0.25)),
        ];
        let count = all.len();
        all.sort_by_key(|fingerprint| fingerprint.0);
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_fingerprint_does_not_depend_on_how_the_table_is_read_or_shared() {
        assert_eq!(fingerprint(|_| {}), fingerprint(|p| p.threads = 2));
        // The rows of the tokens are the same, although the second table stores them in another order.
        let swapped = table(&[4, 5, 6, 7, 0, 1, 2, 3], TableDtype::Bf16, 2, 2).with_mapping(Arc::new([1, 0])).unwrap();
        assert_eq!(fingerprint(|_| {}), fingerprint(|p| p.table = swapped));
    }

    #[test]
    fn a_fingerprint_does_not_change_between_versions() {
        assert_eq!(fingerprint(|_| {}).to_string(), "8d75ebe911236b591d59c7e8a3c9730f");
    }

    #[test]
    fn only_32_hexadecimal_digits_are_a_fingerprint() {
        let text = "0123456789abcdef0123456789ABCDEF";
        assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), text.to_lowercase());
        let json = serde_json::to_string(&text.parse::<Fingerprint>().unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap().to_string(), text.to_lowercase());
        for wrong in ["", "0", "+123456789abcdef0123456789abcdef", &format!("{text}0"), &text.replace('0', "g")] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }
}
