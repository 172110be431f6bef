//! Rebuilds the tokenizer that a GGUF file's metadata describe, with the `tokenizers` crate.
//!
//! GGUF keeps the tokens, the merges or scores, and two names. The rest of what a tokenizer.json says is part of
//! llama.cpp's code. Therefore only those names are accepted for which the result was compared with the model's own
//! tokenizer.json (`tests/real`), and a tokenizer.json that the user gives (`tokenizer`) always takes precedence.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use super::header::Gguf;
use crate::error::LoadError;
use layer0_tokenizers::reference::HfTokenizer;

/// The limit on the length of a piece in bytes. Every way to cut a piece in two is tried, and no known vocabulary has
/// longer pieces.
const LONGEST_PIECE: usize = 256;

/// The score of every token in files that were converted without SentencePiece's model.
const PLACEHOLDER_SCORE: f32 = -1000.0;

/// LLAMA_TOKEN_TYPE_* of llama.h.
mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const BYTE: i32 = 6;
}

/// How texts are split into words before the merges of a byte-level vocabulary are applied.
struct Split {
    /// The regular expression that splits a text, or `None` for GPT-2's own.
    regex: Option<&'static str>,
    single_digits: bool,
    nfc: bool,
    /// Whether a word that is itself a token becomes that token, whatever the merges say.
    whole_words_first: bool,
    /// Whether BOS is added if the file does not say so.
    add_bos: bool,
}

const GPT2: Split = Split { regex: None, single_digits: false, nfc: false, whole_words_first: false, add_bos: false };

/// The values of `tokenizer.ggml.pre`, with the split in the tokenizer.json of the models after which each value is
/// named.
const SPLITS: &[(&[&str], Split)] = &[
    (&["smollm"], Split { single_digits: true, ..GPT2 }),
    (
        &["qwen2"],
        Split {
            regex: Some(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            nfc: true,
            ..GPT2
        },
    ),
    (
        &["llama-bpe", "llama-v3", "llama3"],
        Split {
            regex: Some(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            whole_words_first: true,
            add_bos: true,
            ..GPT2
        },
    ),
];

/// Builds the tokenizer of a GGUF file.
///
/// # Errors
/// Returns an error if the metadata do not determine the tokenizer. The remedy is the setting `tokenizer`.
pub fn rebuild(file: &Gguf, architecture: &str) -> Result<HfTokenizer, LoadError> {
    let refused = |problem: &str| {
        LoadError::unsupported(file.path(), format!("{problem}, so its tokenizer cannot be rebuilt exactly"))
            .expected("tokenizer.ggml.model \"llama\" (SentencePiece), or \"gpt2\" with pre llama-bpe, qwen2 or smollm")
            .remedy("set tokenizer to the model's tokenizer.json")
    };
    let gemma = architecture.starts_with("gemma");
    let metadata = Metadata::read(file, gemma)?;
    let model = file.text("tokenizer.ggml.model")?.unwrap_or_default();
    let built = match model {
        // The added tokens of Phi 3 strip the spaces to their right, which GGUF does not record.
        "llama" if architecture == "phi3" => return Err(refused("is of the architecture \"phi3\"")),
        "llama" => {
            if file.has("tokenizer.ggml.precompiled_charsmap")
                || file.flag("tokenizer.ggml.remove_extra_whitespaces") == Some(true)
            {
                return Err(refused("has a SentencePiece vocabulary that normalizes texts"));
            }
            sentence_piece(file, &metadata, gemma, order(architecture))
        }
        "gpt2" => {
            let pre = file.text("tokenizer.ggml.pre")?.unwrap_or_default();
            let Some((_, split)) = SPLITS.iter().find(|(names, _)| names.contains(&pre)) else {
                return Err(refused(&format!("has tokenizer.ggml.pre {pre:?}")));
            };
            byte_level(file, &metadata, split)
        }
        other => return Err(refused(&format!("has tokenizer.ggml.model {other:?}"))),
    };
    built.map(HfTokenizer::from).map_err(|e| {
        LoadError::malformed(file.path(), format!("describes no tokenizer that can be built: {e}"))
            .expected("tokenizer.ggml.* as llama.cpp's converter writes them")
            .remedy("set tokenizer to the model's tokenizer.json")
    })
}

type Built = Result<Tokenizer, tokenizers::Error>;

/// The metadata that both kinds of vocabulary have.
struct Metadata<'a> {
    tokens: Vec<Cow<'a, str>>,
    types: Vec<i32>,
    bos: Option<usize>,
    eos: Option<usize>,
    unknown: Option<usize>,
}

impl<'a> Metadata<'a> {
    /// Reads the metadata. If `gemma` is set, the tokens are spelled as in Gemma's tokenizer.json, from which the GGUF
    /// file differs in two ways: tokens of nothing but spaces become tokens of ▁, and the byte token of a tab becomes
    /// the character, so that two tabs can be merged, unless the vocabulary has the character as well.
    fn read(file: &'a Gguf, gemma: bool) -> Result<Self, LoadError> {
        let tokens = file.texts("tokenizer.ggml.tokens")?.filter(|tokens| !tokens.is_empty()).ok_or_else(|| {
            LoadError::missing(file.path(), "has no tokenizer.ggml.tokens")
                .expected("the model's vocabulary")
                .remedy("set tokenizer to the model's tokenizer.json")
        })?;
        let id = |name: &str| {
            let id = file.number(&format!("tokenizer.ggml.{name}_token_id"))?;
            (id >= 0.0 && id < tokens.len() as f64).then_some(id as usize)
        };
        let (bos, eos, unknown) = (id("bos"), id("eos"), id("unknown"));
        let has_tab = tokens.contains(&"\t");
        let spelled = |token: &'a str| match token {
            "<0x09>" if gemma && !has_tab => Cow::Borrowed("\t"),
            _ if gemma && token.bytes().all(|b| b == b' ') => Cow::Owned("▁".repeat(token.len())),
            _ => Cow::Borrowed(token),
        };
        let tokens = tokens.into_iter().map(spelled).collect();
        let mut types = file.integers("tokenizer.ggml.token_type").unwrap_or_default();
        if gemma && let Some(bytes) = types.iter().position(|&kind| kind == token_type::BYTE) {
            // Converters before July 2024 marked the tokens that Gemma's authors defined as normal ones. These tokens
            // come before the byte tokens.
            for kind in types.iter_mut().take(bytes).filter(|kind| **kind == token_type::NORMAL) {
                *kind = token_type::USER_DEFINED;
            }
        }
        Ok(Self { tokens, types, bos, eos, unknown })
    }

    /// Returns the ID of each token. Two tokens with the same text are an error, because they cannot be told apart.
    fn vocabulary(&self) -> Result<Vocab, tokenizers::Error> {
        let mut ids = Vocab::default();
        for (token, id) in self.tokens.iter().zip(0..) {
            if ids.insert(token.to_string(), id).is_some() {
                return Err(format!("the token {token:?} is there twice").into());
            }
        }
        Ok(ids)
    }

    /// Returns the tokens that are matched as a whole before any other processing of a text.
    fn added(&self) -> impl Iterator<Item = AddedToken> {
        self.tokens.iter().zip(&self.types).filter_map(|(token, &kind)| {
            let special = matches!(kind, token_type::CONTROL | token_type::UNKNOWN);
            let added = (special || kind == token_type::USER_DEFINED) && !token.is_empty();
            added.then(|| AddedToken::from(token.as_ref(), special).normalized(false))
        })
    }

    /// Returns the template that puts BOS and EOS around a text, as the file's flags or else the defaults of the
    /// tokenizer's kind say.
    fn template(&self, file: &Gguf, add_bos: bool) -> Result<Option<PostProcessorWrapper>, tokenizers::Error> {
        let flag = |name: &str, default| file.flag(&format!("tokenizer.ggml.add_{name}_token")).unwrap_or(default);
        let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut special = serde_json::Map::new();
        for (name, wanted, id) in [("bos", flag("bos", add_bos), self.bos), ("eos", flag("eos", false), self.eos)] {
            if !wanted {
                continue;
            }
            let (id, token) = id
                .and_then(|id| Some((id, self.tokens.get(id)?)))
                .ok_or_else(|| format!("tokenizer.ggml.add_{name}_token is set, and there is no such token"))?;
            special.insert(token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]}));
            let piece = json!({"SpecialToken": {"id": token, "type_id": 0}});
            if name == "bos" { single.insert(0, piece) } else { single.push(piece) }
        }
        if special.is_empty() {
            return Ok(None);
        }
        let pair: Vec<Value> = single.iter().cloned().chain([json!({"Sequence": {"id": "B", "type_id": 1}})]).collect();
        part(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})).map(Some)
    }
}

/// Builds a SentencePiece BPE tokenizer with the merges that its scores imply.
fn sentence_piece(file: &Gguf, metadata: &Metadata<'_>, gemma: bool, order: Order) -> Built {
    let mut scores = file.floats("tokenizer.ggml.scores").unwrap_or_default();
    if scores.len() != metadata.tokens.len() {
        return Err("tokenizer.ggml.scores are not as many as the tokens".into());
    }
    // `LlamaHfVocab` of the gguf package does not know the scores of pieces and writes this placeholder for each of
    // them.
    let kinds = metadata.types.iter().copied().chain(std::iter::repeat(token_type::NORMAL));
    let mut learned = scores.iter().zip(kinds).filter(|(_, kind)| *kind == token_type::NORMAL).peekable();
    if learned.peek().is_some() && learned.all(|(score, _)| *score == PLACEHOLDER_SCORE) {
        return Err("tokenizer.ggml.scores are placeholders, which do not order the merges".into());
    }
    let vocabulary = metadata.vocabulary()?;
    if gemma {
        // The converter writes -1000 for the tokens that Gemma's authors defined: runs of spaces, tabs and line breaks.
        // In the model their score is 0, the best, so that their merges come before all others.
        if metadata.types.len() != scores.len() {
            return Err("tokenizer.ggml.token_type does not give the type of each token".into());
        }
        for (score, _) in scores.iter_mut().zip(&metadata.types).filter(|(_, kind)| **kind != token_type::NORMAL) {
            *score = 0.0;
        }
    }
    let merges = merges(&vocabulary, &scores, order)?;
    let unknown = metadata.unknown.and_then(|id| metadata.tokens.get(id)).ok_or("there is no unknown token")?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .unk_token(unknown.to_string())
        .fuse_unk(true)
        .byte_fallback(metadata.types.contains(&token_type::BYTE))
        .build()?;
    let prefix = file.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = if prefix {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]})
    } else {
        spaces
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(part::<NormalizerWrapper>(normalizer)?))?;
    tokenizer.with_decoder(Some(part::<DecoderWrapper>(json!({"type": "Sequence", "decoders": decoders}))?));
    tokenizer.with_post_processor(metadata.template(file, true)?);
    // Gemma's tokenizer.json, unlike that of Gemma 2, has no added tokens for runs of tabs: the merges form them.
    let is_merged = |token: &AddedToken| order == Order::ById && token.content.bytes().all(|b| b == b'\t');
    tokenizer.add_tokens(metadata.added().filter(|token| !is_merged(token)))?;
    Ok(tokenizer)
}

/// The order of merges whose tokens have the same score.
///
/// `generate_merges` of transformers has used two orders. The order with which a model's tokenizer.json was made
/// decides how a run of one character is split: 32 spaces become 16 and 16 with [`Order::ById`], and 31 and 1 with
/// [`Order::LongestFirst`]. For tokens that do not overlap themselves both orders give the same result. No text is
/// known for which the merges of Llama 2 or Mistral would differ.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// Merges are ordered by the ID of the merged token, then by the IDs of its two halves (Gemma).
    ById,
    /// Merges with the longest left half come first, then those with the longest right half. transformers has used this
    /// order since 2024 (Gemma 2, Gemma 3).
    LongestFirst,
}

/// Returns the order in which the tokenizer.json files of this architecture's models list their merges.
fn order(architecture: &str) -> Order {
    if architecture == "gemma" { Order::ById } else { Order::LongestFirst }
}

/// Returns every way to split a piece into two other pieces, the best score first. The algorithm is `generate_merges`
/// of transformers' `convert_slow_tokenizer.py`, which produced the merges in the models' tokenizer.json files.
fn merges(vocabulary: &Vocab, scores: &[f32], order: Order) -> Result<Vec<(String, String)>, tokenizers::Error> {
    struct Merge<'a> {
        score: f32,
        ids: (u32, u32),
        pieces: (&'a str, &'a str),
        merged: u32,
    }
    let mut found = Vec::new();
    for (piece, &merged) in vocabulary {
        if piece.len() > LONGEST_PIECE {
            return Err(format!("the token {merged} is {} bytes long", piece.len()).into());
        }
        let score = scores.get(merged as usize).copied().unwrap_or_default();
        for (cut, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(cut);
            if let (Some(&l), Some(&r)) = (vocabulary.get(left), vocabulary.get(right)) {
                found.push(Merge { score, ids: (l, r), pieces: (left, right), merged });
            }
        }
    }
    // The last two keys reproduce the order in which the original finds the merges, because its sort is stable.
    found.sort_by_cached_key(|merge| {
        let letters = |piece: &str| match order {
            Order::ById => std::cmp::Reverse(0),
            Order::LongestFirst => std::cmp::Reverse(piece.chars().count()),
        };
        (
            std::cmp::Reverse(Ordered(merge.score)),
            letters(merge.pieces.0),
            letters(merge.pieces.1),
            merge.merged,
            merge.ids,
        )
    });
    Ok(found.into_iter().map(|merge| (merge.pieces.0.to_owned(), merge.pieces.1.to_owned())).collect())
}

/// A float that is compared with `total_cmp`.
#[derive(PartialEq)]
struct Ordered(f32);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Builds a byte-level BPE tokenizer with the file's merges.
fn byte_level(file: &Gguf, metadata: &Metadata<'_>, split: &Split) -> Built {
    let merges = file.texts("tokenizer.ggml.merges").map_err(|e| e.to_string())?.unwrap_or_default();
    let merges: Vec<(String, String)> = merges
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
            _ => Err(format!("the merge {merge:?} is not of two tokens")),
        })
        .collect::<Result<_, _>>()?;
    let model = BPE::builder()
        .vocab_and_merges(metadata.vocabulary()?, merges)
        .ignore_merges(split.whole_words_first)
        .build()?;
    let bytes = |use_regex| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let mut steps = Vec::new();
    if split.single_digits {
        steps.push(json!({"type": "Digits", "individual_digits": true}));
    }
    if let Some(regex) = split.regex {
        steps.push(json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}));
    }
    steps.push(bytes(split.regex.is_none()));
    let mut tokenizer = Tokenizer::new(model);
    if split.nfc {
        tokenizer.with_normalizer(Some(part::<NormalizerWrapper>(json!({"type": "NFC"}))?))?;
    }
    let steps = json!({"type": "Sequence", "pretokenizers": steps});
    tokenizer.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(steps)?));
    tokenizer.with_decoder(Some(part::<DecoderWrapper>(bytes(true))?));
    tokenizer.with_post_processor(metadata.template(file, split.add_bos)?);
    tokenizer.add_tokens(metadata.added())?;
    Ok(tokenizer)
}

/// Builds one part of a tokenizer from the JSON that a tokenizer.json would hold.
fn part<T: DeserializeOwned>(json: Value) -> Result<T, tokenizers::Error> {
    serde_json::from_value(json).map_err(Into::into)
}
