//! The final norm, collapsed to a few numbers for each row of the vocabulary.
//!
//! Every supported final norm is a function of the token's row `x` alone, and is linear in `x` except for a few scalars:
//!
//! * RMSNorm (Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>): `x / sqrt(mean(x^2) + eps) * w`
//! * LayerNorm (Ba et al. 2016, <https://arxiv.org/abs/1607.06450>): `(x - mean(x)) / sqrt(var(x) + eps) * w + b`
//!
//! Therefore the mean over a text's tokens is `w * mean(s[t] * E[t]) + sum_k mean(c_k[t]) * v_k + b`. The scalars `s[t]` and
//! `c_k[t]` are computed once, when the table is loaded: see [`CollapsedNorm`]. The table stays as it is stored.
//!
//! For example, let `eps` be 0 and `w` be `(1, 2)`. For the row `E[t] = (3, 4)`, an RMSNorm has `s[t] = 1 / sqrt((9 + 16) / 2) =
//! 0.283`, and the token's vector is `w * s[t] * E[t] = (0.849, 2.263)`. For the row `(1, 3)`, a LayerNorm has the mean 2 and the
//! standard deviation 1, so `s[t] = 1` and `c_0[t] = -2`, with `v_0 = w`. The token's vector is `w * (1, 3) - 2 * (1, 2) = (-1,
//! 2)`.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::table::EmbeddingTable;

/// The kind of norm that follows the embedding, as the source of the model defines it. It cannot be told from the shapes of
/// tensors; it follows from the model type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / rms(x) * w`
    Rms,
    /// `x / rms(x) * (1 + w)`: Gemma 1 to 3 store `w` around zero.
    RmsPlusOne,
    /// `(x - mean) / std * w + b`. `b`, or both `b` and `w`, may be absent from the checkpoint.
    Layer,
    /// `(x - mean) / std * (1 + w) + b`: Nemotron.
    LayerPlusOne,
    /// No norm: the rows are used as they are.
    None,
}

impl NormKind {
    pub const ALL: [Self; 5] = [Self::Rms, Self::RmsPlusOne, Self::Layer, Self::LayerPlusOne, Self::None];

    /// Returns the name in configuration files and in `inspect`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rms => "rms",
            Self::RmsPlusOne => "rms_plus_one",
            Self::Layer => "layer",
            Self::LayerPlusOne => "layer_plus_one",
            Self::None => "none",
        }
    }

    /// Returns the same norm for a weight that is stored as `1 + w`, as in GGUF files.
    #[must_use]
    pub const fn without_plus_one(self) -> Self {
        match self {
            Self::RmsPlusOne => Self::Rms,
            Self::LayerPlusOne => Self::Layer,
            other => other,
        }
    }

    const fn removes_mean(self) -> bool {
        matches!(self, Self::Layer | Self::LayerPlusOne)
    }

    /// Returns whether the weight is stored around zero, as the `w` in `1 + w`.
    pub const fn adds_one(self) -> bool {
        matches!(self, Self::RmsPlusOne | Self::LayerPlusOne)
    }
}

/// A norm with its parameters, as the checkpoint stores them (before `1 + w`).
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    pub kind: NormKind,
    /// The number that is added to the mean square or to the variance.
    pub eps: f64,
    /// The weight, `[dimensions]`. `None` stands for ones.
    pub weight: Option<Vec<f32>>,
    /// The bias, `[dimensions]`. `None` stands for zeros.
    pub bias: Option<Vec<f32>>,
}

/// The operations between a row of the table and the mean.
#[derive(Debug, Clone, PartialEq)]
pub struct FinalNorm {
    /// The factor by which the model multiplies its embeddings before the norm: `sqrt(hidden)` in Gemma, 1 in most models.
    pub embedding_scale: f64,
    /// A norm on the embedding itself: Bloom, ModernBERT.
    pub embedding_norm: Option<Norm>,
    /// The last norm of the model.
    pub norm: Norm,
    /// The weights of a static table's tokens, `[rows]`. The normalized rows are multiplied by them, before the bias of the norm
    /// is added.
    pub row_weights: Option<Vec<f32>>,
}

/// A scalar for each row of the vocabulary, and the direction along which its mean is added.
#[derive(Debug, Clone)]
pub struct Correction {
    /// The scalars, `[rows]`.
    pub per_row: Vec<f32>,
    /// The direction, `[dimensions]`.
    pub direction: Vec<f32>,
}

/// A [`FinalNorm`] over one table: the vector of token `t` is
/// `weight * scale[t] * E[t] + sum_k corrections[k].per_row[t] * corrections[k].direction + bias`.
#[derive(Debug, Clone)]
pub struct CollapsedNorm {
    /// The factor of each row, `[rows]`.
    pub scale: Vec<f32>,
    /// The weight, `[dimensions]`. It includes the 1 of `1 + w`.
    pub weight: Vec<f32>,
    /// The bias, `[dimensions]`, if there is one.
    pub bias: Option<Vec<f32>>,
    /// The corrections: none for an RMSNorm, one for a LayerNorm, three for two LayerNorms in a row.
    pub corrections: Vec<Correction>,
}

/// A digest of all rows of a table as they are stored, in the order of the token IDs. It does not depend on the number of threads that
/// computed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsDigest(pub u128);

impl RowsDigest {
    fn new(rows: &[u128]) -> Self {
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
        Self(XxHash3_128::oneshot(&bytes))
    }
}

/// A row for which the norm gives no finite vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFiniteRow {
    pub row: usize,
}

impl FinalNorm {
    /// Computes the scalars. Reads the whole table once, on `threads` threads.
    ///
    /// # Errors
    /// When a row contains NaN or an infinity, or when a row and `eps` are both zero, so that the row has no norm.
    pub fn collapse(&self, table: &EmbeddingTable, threads: usize) -> Result<CollapsedNorm, NonFiniteRow> {
        Ok(self.collapse_and_digest(table, threads)?.0)
    }

    /// Computes the scalars like [`FinalNorm::collapse`], and a digest of the rows in the same pass over the table.
    ///
    /// # Errors
    /// As for [`FinalNorm::collapse`].
    pub fn collapse_and_digest(
        &self,
        table: &EmbeddingTable,
        threads: usize,
    ) -> Result<(CollapsedNorm, RowsDigest), NonFiniteRow> {
        let directions = self.directions(table.dimensions());
        let mut scalars = vec![RowScalars::default(); table.rows()];
        let mut digests = vec![0; table.rows()];
        let share = table.rows().div_ceil(threads.max(1));
        let bad = std::thread::scope(|scope| {
            let parts: Vec<_> = scalars
                .chunks_mut(share)
                .zip(digests.chunks_mut(share))
                .enumerate()
                .map(|(part, (scalars, digests))| scope.spawn(move || self.scan(table, part * share, scalars, digests)))
                .collect();
            // All threads are joined before their results are read, so that the lowest row is reported whichever thread ends
            // first.
            let ends: Vec<_> = parts.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            ends.into_iter().find_map(|end| match end {
                Ok(bad) => bad,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        });
        if let Some(row) = bad {
            return Err(NonFiniteRow { row });
        }
        let weights =
            self.embedding_norm.iter().chain([&self.norm]).map(|norm| norm.effective_weight(table.dimensions()));
        let collapsed = CollapsedNorm {
            // The pooling kernel reads integers, so the scale of an integer row is multiplied into the row's factor here.
            scale: (0..).zip(&scalars).map(|(id, row)| row.scale * table.row_scale(id)).collect(),
            weight: weights.reduce(|a, b| product(&a, &b)).unwrap_or_default(),
            bias: self.norm.bias.clone(),
            corrections: directions
                .into_iter()
                .enumerate()
                .map(|(k, direction)| Correction {
                    per_row: scalars.iter().map(|row| row.corrections.get(k).copied().unwrap_or(0.0)).collect(),
                    direction,
                })
                .collect(),
        };
        Ok((collapsed, RowsDigest::new(&digests)))
    }

    /// Returns the number of scalars for each row, in addition to its factor.
    pub fn scalars_per_row(&self) -> usize {
        self.directions(0).len()
    }

    /// Returns the directions of [`RowScalars::corrections`], in the same order.
    fn directions(&self, dimensions: usize) -> Vec<Vec<f32>> {
        let outer = self.norm.effective_weight(dimensions);
        match &self.embedding_norm {
            None if self.norm.kind.removes_mean() => vec![outer],
            None => Vec::new(),
            Some(inner) if inner.is_proportional() && !self.norm.kind.removes_mean() => Vec::new(),
            Some(inner) => {
                let bias = inner.bias.clone().unwrap_or_else(|| vec![0.0; dimensions]);
                vec![product(&inner.effective_weight(dimensions), &outer), product(&bias, &outer), outer]
            }
        }
    }

    /// Computes the scalars and the digests of the rows from `first` on. Returns the first row that is not finite, if there is one.
    fn scan(
        &self,
        table: &EmbeddingTable,
        first: usize,
        scalars: &mut [RowScalars],
        digests: &mut [u128],
    ) -> Option<usize> {
        let mut row = vec![0.0f32; table.dimensions()];
        for (i, (slot, digest)) in scalars.iter_mut().zip(digests).enumerate() {
            let id = u32::try_from(first + i).ok().filter(|&id| table.read_row(id, &mut row));
            *slot = self.row_scalars(&row).times(self.row_weight(first + i));
            *digest = id.and_then(|id| table.row(id)).map_or(0, XxHash3_128::oneshot);
            if id.is_none() || !slot.is_finite() {
                return Some(first + i);
            }
        }
        None
    }

    fn row_weight(&self, row: usize) -> f32 {
        self.row_weights.as_ref().map_or(1.0, |weights| weights.get(row).copied().unwrap_or(f32::NAN))
    }

    fn row_scalars(&self, row: &[f32]) -> RowScalars {
        let Some(inner) = &self.embedding_norm else {
            let (mean, inverse) = self.norm.statistics(row, self.embedding_scale);
            return RowScalars {
                scale: (self.embedding_scale * inverse) as f32,
                corrections: [(-mean * inverse) as f32, 0.0, 0.0],
            };
        };
        let (mean, inverse) = inner.statistics(row, self.embedding_scale);
        let weight = inner.effective_weight(row.len());
        let bias = inner.bias.as_deref().unwrap_or(&[]);
        let normed: Vec<f32> = row
            .iter()
            .zip(&weight)
            .zip(bias.iter().copied().chain(std::iter::repeat(0.0)))
            .map(|((x, w), b)| ((f64::from(*x) * self.embedding_scale - mean) * inverse) as f32 * w + b)
            .collect();
        let (outer_mean, outer_inverse) = self.norm.statistics(&normed, 1.0);
        RowScalars {
            scale: (self.embedding_scale * inverse * outer_inverse) as f32,
            corrections: [
                (-mean * inverse * outer_inverse) as f32,
                outer_inverse as f32,
                (-outer_mean * outer_inverse) as f32,
            ],
        }
    }
}

impl Norm {
    /// Returns the mean that the norm subtracts (0 for an RMSNorm), and the factor that it multiplies by, for `row` times
    /// `scale`.
    fn statistics(&self, row: &[f32], scale: f64) -> (f64, f64) {
        if self.kind == NormKind::None {
            // The row is summed although there is no norm, so that a row that is not finite is found.
            return (0.0, if mean_of(row, |x| x * 0.0) == 0.0 { 1.0 } else { f64::NAN });
        }
        let mean = if self.kind.removes_mean() { mean_of(row, |x| x) } else { 0.0 };
        let offset = mean as f32;
        let spread = match mean_of(row, |x| (x - offset) * (x - offset)) {
            spread if spread.is_finite() => spread,
            // The squares of finite numbers can exceed the range of f32. A number that is not finite must not give a norm of 0.
            _ if row.iter().all(|x| x.is_finite()) => {
                row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / row.len() as f64
            }
            _ => f64::NAN,
        };
        (mean * scale, 1.0 / (spread * scale * scale + self.eps).sqrt())
    }

    /// Whether the norm only multiplies, each column with its weight and the whole row with a number.
    const fn is_proportional(&self) -> bool {
        !self.kind.removes_mean() && self.bias.is_none()
    }

    fn effective_weight(&self, dimensions: usize) -> Vec<f32> {
        let one = if self.kind.adds_one() { 1.0 } else { 0.0 };
        self.weight.as_ref().map_or_else(|| vec![1.0; dimensions], |w| w.iter().map(|w| one + w).collect())
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct RowScalars {
    scale: f32,
    corrections: [f32; 3],
}

impl RowScalars {
    fn times(self, weight: f32) -> Self {
        Self { scale: self.scale * weight, corrections: self.corrections.map(|c| c * weight) }
    }

    fn is_finite(&self) -> bool {
        self.scale.is_finite() && self.corrections.iter().all(|c| c.is_finite())
    }
}

fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// Returns the mean of `f(x)`. It is computed in sixteen f32 sums, which can be vectorized and are added in f64.
fn mean_of(row: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let (chunks, rest) = row.as_chunks::<16>();
    let mut lanes = [0.0f32; 16];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    let sum: f64 = lanes.iter().copied().chain(rest.iter().map(|&x| f(x))).map(f64::from).sum();
    sum / row.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::TableDtype;

    fn table(rows: &[[f32; 4]]) -> EmbeddingTable {
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        EmbeddingTable::new(bytes.into(), TableDtype::F32, rows.len(), 4).unwrap()
    }

    fn norm(kind: NormKind, weight: Option<[f32; 4]>, bias: Option<[f32; 4]>) -> Norm {
        Norm { kind, eps: 0.5, weight: weight.map(Into::into), bias: bias.map(Into::into) }
    }

    fn only(norm: Norm) -> FinalNorm {
        FinalNorm { embedding_scale: 2.0, embedding_norm: None, norm, row_weights: None }
    }

    /// Returns the vector of one token from the collapsed numbers.
    fn vector(collapsed: &CollapsedNorm, row: &[f32; 4], t: usize) -> Vec<f32> {
        (0..4)
            .map(|d| {
                let corrections: f32 = collapsed.corrections.iter().map(|c| c.per_row[t] * c.direction[d]).sum();
                let bias = collapsed.bias.as_ref().map_or(0.0, |b| b[d]);
                collapsed.weight[d] * collapsed.scale[t] * row[d] + corrections + bias
            })
            .collect()
    }

    /// Computes a norm by its definition, in f64.
    fn by_definition(norm: &Norm, x: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = if norm.kind.removes_mean() { x.iter().sum::<f64>() / n } else { 0.0 };
        let spread = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let one = if norm.kind.adds_one() { 1.0 } else { 0.0 };
        (0..x.len())
            .map(|d| {
                let w = norm.weight.as_ref().map_or(1.0, |w| one + f64::from(w[d]));
                let b = norm.bias.as_ref().map_or(0.0, |b| f64::from(b[d]));
                let inverse = if norm.kind == NormKind::None { 1.0 } else { 1.0 / (spread + norm.eps).sqrt() };
                (x[d] - mean) * inverse * w + b
            })
            .collect()
    }

    const ROWS: [[f32; 4]; 3] = [[1.0, -2.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.0], [-1.0, 4.0, 2.0, 2.5]];
    const W: [f32; 4] = [0.5, -1.0, 2.0, 1.5];
    const B: [f32; 4] = [0.1, 0.2, -0.3, 0.4];

    fn check(norm: &FinalNorm) {
        let collapsed = norm.collapse(&table(&ROWS), 2).unwrap();
        for (t, row) in ROWS.iter().enumerate() {
            let mut expected: Vec<f64> = row.iter().map(|&x| f64::from(x) * norm.embedding_scale).collect();
            for step in norm.embedding_norm.iter().chain([&norm.norm]) {
                expected = by_definition(step, &expected);
            }
            for (got, expected) in vector(&collapsed, row, t).iter().zip(expected) {
                assert!((f64::from(*got) - expected).abs() < 1e-6, "{norm:?} row {t}: {got} != {expected}");
            }
        }
    }

    #[test]
    fn every_kind_equals_its_definition() {
        for kind in NormKind::ALL {
            check(&only(norm(kind, Some(W), None)));
            check(&only(norm(kind, None, None)));
        }
        check(&only(norm(NormKind::Layer, Some(W), Some(B))));
        check(&only(norm(NormKind::LayerPlusOne, Some(W), Some(B))));
    }

    #[test]
    fn two_layer_norms_in_a_row_equal_their_definition() {
        for bias in [None, Some([0.3, -0.1, 0.2, 0.7])] {
            let inner = norm(NormKind::Layer, Some([1.5, 0.5, -0.5, 2.0]), bias);
            let outer = norm(NormKind::Layer, Some(W), Some(B));
            check(&FinalNorm { embedding_scale: 1.0, embedding_norm: Some(inner), norm: outer, row_weights: None });
        }
    }

    #[test]
    fn row_weights_multiply_the_normed_row() {
        for kind in [NormKind::None, NormKind::Rms, NormKind::Layer] {
            let plain = only(norm(kind, Some(W), None));
            let weighted = FinalNorm { row_weights: Some(vec![2.0, 0.5, -1.0]), ..plain.clone() };
            let (a, b) = (plain.collapse(&table(&ROWS), 1).unwrap(), weighted.collapse(&table(&ROWS), 2).unwrap());
            for (t, weight) in [2.0, 0.5, -1.0].into_iter().enumerate() {
                for (a, b) in vector(&a, &ROWS[t], t).iter().zip(vector(&b, &ROWS[t], t)) {
                    assert!((a * weight - b).abs() < 1e-6, "{kind:?}: {a} * {weight} != {b}");
                }
            }
        }
        let short = FinalNorm { row_weights: Some(vec![1.0]), ..only(norm(NormKind::None, None, None)) };
        assert_eq!(short.collapse(&table(&ROWS), 1).unwrap_err().row, 1);
    }

    #[test]
    fn squares_past_the_range_of_f32_are_no_infinity() {
        let collapsed =
            only(norm(NormKind::Rms, None, None)).collapse(&table(&[[1e30, 1e30, -1e30, 1e30]]), 1).unwrap();
        assert!((collapsed.scale[0] * 1e30 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_row_that_is_not_finite_is_named_for_every_kind() {
        for kind in NormKind::ALL {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut rows = ROWS;
                rows[1][3] = bad;
                let found = only(norm(kind, Some(W), None)).collapse(&table(&rows), 2).unwrap_err();
                assert_eq!(found.row, 1, "{kind:?} {bad}");
            }
        }
    }
}
