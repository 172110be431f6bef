//! The lexical tail: columns after those of the table, in which texts are similar only if they have tokens in common.
//!
//! Column `j` of the tail of token `t` is
//!
//! ```text
//! weight * |v[t]| * sign(t, j) / sqrt(K)
//! ```
//!
//! where `v[t]` is the token's vector, `K` is the number of columns of the tail, and the signs are random: they follow from a hash of the token's
//! ID ([`super::kernel::sign`]). So the tail of a token has `weight` times the length of its vector. The dot product of the tails of two different tokens is
//! 0 on average, with a standard deviation of `1 / sqrt(K)` times their lengths. Therefore the dot product of the tails of two texts is, up to that
//! noise, the weighted number of tokens that both have. This is a count sketch of the text's tokens (Charikar, Chen and Farach-Colton 2002,
//! <https://doi.org/10.1007/3-540-45465-9_59>) with one sign for each column, as in a random projection.
//!
//! For example, let `K` be 4, `weight` be 0.8, and the text be a single token of length 2 with the signs `+ - - +`. Its tail is
//! `(0.8, -0.8, -0.8, 0.8)`, whose length is 1.6.

use super::counts::WeightedTokens;
use super::kernel::{GROUP, Kernel, sign};
use layer0_tokenizers::yield_point::{Stopped, YieldPoint};

/// The number of groups that are added in f32, as for the rows of a table.
const GROUPS_OF_A_BLOCK: usize = 32;

/// The tail of every token of a table.
#[derive(Debug, Clone)]
pub(super) struct LexicalTail {
    /// The number of columns.
    pub dimensions: usize,
    /// The size of each column of a token's tail, `[rows]`: the token's length times the weight, divided by the root of the number of columns.
    sizes: Vec<f32>,
}

impl LexicalTail {
    /// Creates the tail of tokens whose vectors have the lengths `lengths`, `[rows]`.
    pub fn new(dimensions: usize, weight: f64, lengths: &[f64]) -> Self {
        let factor = weight / (dimensions.max(1) as f64).sqrt();
        // A vector of a length beyond f32 is computed in f64, by `exact_mean`, from the longest tail that f32 holds.
        let size = |length: &f64| (length * factor).min(f64::from(f32::MAX)) as f32;
        Self { dimensions, sizes: lengths.iter().map(size).collect() }
    }

    fn size(&self, id: u32) -> f32 {
        self.sizes.get(id as usize).copied().unwrap_or_default()
    }

    /// Writes the first columns of the weighted mean of the tokens' tails to `out`.
    pub fn mean(
        &self,
        kernel: Kernel,
        tokens: &WeightedTokens<'_>,
        out: &mut [f32],
        at: &dyn YieldPoint,
    ) -> Result<(), Stopped> {
        out.fill(0.0);
        let mut totals: Vec<f64> = Vec::new();
        let mut weights = tokens.weights.chunks(GROUP);
        let count = tokens.ids.len().div_ceil(GROUP);
        for (group, ids) in (1..).zip(tokens.ids.chunks(GROUP)) {
            let mut sizes = [0.0f32; GROUP];
            for (size, &id) in sizes.iter_mut().zip(ids) {
                *size = self.size(id);
            }
            for (size, weight) in sizes.iter_mut().zip(weights.next().unwrap_or_default()) {
                *size *= weight;
            }
            kernel.add_signs(ids, &sizes, out);
            if group % GROUPS_OF_A_BLOCK == 0 && group < count {
                totals.resize(out.len(), 0.0);
                for (total, sum) in totals.iter_mut().zip(&mut *out) {
                    *total += f64::from(std::mem::take(sum));
                }
                at.reached()?;
            }
        }
        if totals.is_empty() {
            kernel.scale(out, 1.0 / tokens.total.max(1.0) as f32);
        }
        for (total, sum) in totals.iter().zip(out) {
            *sum = ((total + f64::from(*sum)) / tokens.total) as f32;
        }
        Ok(())
    }

    /// Returns the first `dimensions` columns of the weighted mean of the tokens' tails, computed in f64.
    pub fn exact_mean(
        &self,
        tokens: &WeightedTokens<'_>,
        dimensions: usize,
        at: &dyn YieldPoint,
    ) -> Result<Vec<f64>, Stopped> {
        let mut sums = vec![0.0; dimensions.min(self.dimensions)];
        for (index, (id, weight)) in (1..).zip(tokens.iter()) {
            let size = f64::from(self.size(id)) * f64::from(weight) / tokens.total.max(1.0);
            for (column, sum) in sums.iter_mut().enumerate() {
                *sum += size * f64::from(sign(id, column));
            }
            if index % GROUP == 0 {
                at.reached()?;
            }
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use layer0_tokenizers::yield_point::Undisturbed;
    use proptest::prelude::*;

    use super::*;
    use crate::pooling::kernel;

    fn mean(tail: &LexicalTail, tokens: &WeightedTokens<'_>, columns: usize) -> Vec<f32> {
        let mut out = vec![9.0; columns];
        tail.mean(kernel::best(), tokens, &mut out, &Undisturbed).unwrap();
        out
    }

    #[test]
    fn a_token_has_its_signs_at_its_length_times_the_weight() {
        let tail = LexicalTail::new(100, 0.8, &[2.0, 0.0, 3.0]);
        let found = mean(&tail, &WeightedTokens::equal(&[2]), 100);
        let expected: Vec<f32> = (0..100).map(|column| (3.0 * 0.8 / 10.0) * sign(2, column)).collect();
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(mean(&tail, &WeightedTokens::equal(&[1]), 100), [0.0; 100], "a row of zeros has no tail");
        assert_eq!(mean(&tail, &WeightedTokens::equal(&[7]), 100), [0.0; 100], "an ID past the table adds nothing");
        assert_eq!(mean(&tail, &WeightedTokens::equal(&[]), 100), [0.0; 100]);
        let both = mean(&tail, &WeightedTokens::equal(&[2, 1]), 100);
        assert!(both.iter().zip(&expected).all(|(a, b)| (a - b / 2.0).abs() < 1e-6), "the mean of two tokens");
    }

    proptest! {
        /// The sum by its definition, in f64, for weighted tokens, texts of many blocks, and prefixes of the tail.
        #[test]
        fn the_mean_of_tails_equals_its_definition_on_every_kernel(
            seed in any::<u64>(), length in prop_oneof![1usize..40, 500usize..600], columns in 1usize..200, less in 0usize..64,
            is_weighted in any::<bool>(),
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let lengths: Vec<f64> = (0..50).map(|_| 3.0 * rng.f64()).collect();
            let tail = LexicalTail::new(columns, 0.8, &lengths);
            let ids: Vec<u32> = (0..length).map(|_| rng.u32(..50)).collect();
            let weights: Vec<f32> = if is_weighted { ids.iter().map(|_| 1.0 + rng.f32()).collect() } else { Vec::new() };
            let mut tokens = WeightedTokens::equal(&ids);
            if is_weighted {
                tokens = WeightedTokens::new(&ids, &weights);
            }
            let asked = columns - less % columns;
            let mut expected = vec![0.0f64; asked];
            for (id, weight) in tokens.iter() {
                let size = lengths[id as usize] * 0.8 / (columns as f64).sqrt() * f64::from(weight) / tokens.total;
                expected.iter_mut().enumerate().for_each(|(j, sum)| *sum += size * f64::from(sign(id, j)));
            }
            let first = mean(&tail, &tokens, asked);
            for (found, expected) in first.iter().zip(&expected) {
                prop_assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
            }
            for kernel in kernel::available() {
                let mut out = vec![9.0; asked];
                tail.mean(kernel, &tokens, &mut out, &Undisturbed).unwrap();
                prop_assert_eq!(&out, &first, "{}", kernel.name);
            }
            let exact = tail.exact_mean(&tokens, asked, &Undisturbed).unwrap();
            prop_assert!(exact.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));
        }

        /// The tails of two texts have the dot product of their weighted token counts, up to the noise of random signs.
        #[test]
        fn a_dot_product_of_tails_is_the_overlap_of_the_texts(seed in any::<u64>(), columns in 256usize..1200) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let lengths: Vec<f64> = (0..200).map(|_| 0.5 + rng.f64()).collect();
            let tail = LexicalTail::new(columns, 1.0, &lengths);
            let mut counts = [[0.0f64; 200]; 2];
            let mut texts = [Vec::new(), Vec::new()];
            for (text, counts) in texts.iter_mut().zip(&mut counts) {
                for _ in 0..40 {
                    let id = rng.u32(..200);
                    text.push(id);
                    counts[id as usize] += lengths[id as usize] / 40.0;
                }
            }
            let [a, b] = texts.map(|ids| mean(&tail, &WeightedTokens::equal(&ids), columns));
            let found: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let [x, y] = counts;
            let sum = |of: &dyn Fn(f64, f64) -> f64| x.iter().zip(&y).map(|(&x, &y)| of(x, y)).sum::<f64>();
            let overlap = sum(&|x, y| x * y);
            // The variance of the products of all pairs of different tokens: the sum of (x[s] y[t] + x[t] y[s])^2 / K over s < t.
            let of_equal_tokens = 2.0 * sum(&|x, y| x * x * y * y);
            let variance =
                (sum(&|x, _| x * x) * sum(&|_, y| y * y) + overlap * overlap - of_equal_tokens) / columns as f64;
            prop_assert!((found - overlap).abs() < 6.0 * variance.sqrt(), "{found} {overlap} {variance}");
        }
    }

    #[test]
    fn a_long_text_can_be_stopped() {
        struct Stop;
        impl YieldPoint for Stop {
            fn reached(&self) -> Result<(), Stopped> {
                Err(Stopped)
            }
        }
        let tail = LexicalTail::new(8, 1.0, &[1.0]);
        let stopped = |length: usize| {
            let ids = vec![0; length];
            tail.mean(kernel::best(), &WeightedTokens::equal(&ids), &mut [0.0; 8], &Stop)
        };
        assert_eq!((stopped(256), stopped(257)), (Ok(()), Err(Stopped)));
    }

    #[test]
    fn lengths_beyond_f32_stay_finite() {
        let tail = LexicalTail::new(1, 1.0, &[1e300, f64::INFINITY]);
        assert!(mean(&tail, &WeightedTokens::equal(&[0]), 1)[0].is_finite());
        assert!(mean(&tail, &WeightedTokens::equal(&[1]), 1)[0].is_finite());
    }
}
