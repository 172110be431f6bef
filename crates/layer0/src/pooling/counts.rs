//! Turns the token IDs of a text into distinct tokens with weights: a token that occurs `n` times weighs `n^p`.
//!
//! With the exponent `p = 1`, which is the default, a text's vector is the mean of its tokens, and nothing has to be counted. With a smaller
//! exponent, a token that a text repeats counts for less than its occurrences, as the frequencies of terms do in retrieval. For example, let
//! `p` be 0.7 and the IDs `5 9 5 5`. Token 5 weighs `3^0.7 = 2.16` and token 9 weighs 1, and the vector is `(2.16 T[5] + T[9]) / 3.16`.
//!
//! The distinct tokens keep the order of their first occurrence, whatever counts them, so that equal texts have equal vectors.

use crate::places::Places;
use layer0_tokenizers::yield_point::{Stopped, YieldPoint};

/// The largest number of tokens that are counted in arrays on the stack. A hash of the ID finds the place of a token. IDs that were chosen so
/// that they have the same hash take up to half the square of this number of steps, which is no more than the addition of their rows.
const SHORT: usize = 128;
/// The number of places for [`SHORT`] tokens, at most half of which are in use.
const SLOTS: usize = 2 * SHORT;
/// The number of tokens of a longer text that are counted between two yield points, in less than a millisecond.
const COUNTED_AT_A_TIME: usize = 8192;
/// The number of counts whose weights are computed once.
const POWERS: usize = 64;

/// The weights of tokens by the number of their occurrences.
#[derive(Debug, Clone)]
pub struct CountWeights {
    exponent: f64,
    /// The weights of 0 to [`POWERS`] - 1 occurrences.
    powers: [f32; POWERS],
}

/// The tokens of a text with their weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightedTokens<'a> {
    pub ids: &'a [u32],
    /// The weight of each ID. Empty if every ID weighs 1.
    pub weights: &'a [f32],
    /// The sum of the weights.
    pub total: f64,
}

impl<'a> WeightedTokens<'a> {
    /// Returns the tokens, each of which weighs 1.
    pub fn equal(ids: &'a [u32]) -> Self {
        Self { ids, weights: &[], total: ids.len() as f64 }
    }

    pub fn new(ids: &'a [u32], weights: &'a [f32]) -> Self {
        Self { ids, weights, total: weights.iter().map(|&weight| f64::from(weight)).sum() }
    }

    /// Returns the tokens with their weights.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> {
        self.ids.iter().copied().zip(self.weights.iter().copied().chain(std::iter::repeat(1.0)))
    }
}

impl Default for CountWeights {
    fn default() -> Self {
        Self::new(1.0)
    }
}

impl CountWeights {
    /// Returns the weights `n^exponent`.
    pub fn new(exponent: f64) -> Self {
        let mut powers = [0.0; POWERS];
        for (count, power) in (0..).zip(&mut powers) {
            *power = f64::powf(count.into(), exponent) as f32;
        }
        Self { exponent, powers }
    }

    /// Returns the exponent.
    pub fn exponent(&self) -> f64 {
        self.exponent
    }

    /// Returns whether every occurrence of a token counts in full, so that nothing has to be counted.
    pub fn is_linear(&self) -> bool {
        self.exponent == 1.0
    }

    /// Returns the weight of a token that occurs `count` times.
    pub fn weight(&self, count: u32) -> f32 {
        self.powers.get(count as usize).copied().unwrap_or_else(|| f64::powf(count.into(), self.exponent) as f32)
    }

    /// Counts the tokens of one text and calls `f` with the distinct tokens and their weights. IDs from `rows` on have no row and are left
    /// out, unless the exponent is 1: `f` then gets all IDs as they are. The memory is bounded by the length of the text and by `rows`.
    ///
    /// # Errors
    /// When `at`, which is called every few thousand tokens, stops the work, and the errors of `f`.
    pub(super) fn weigh<R>(
        &self,
        ids: &[u32],
        rows: usize,
        at: &dyn YieldPoint,
        f: impl FnOnce(&WeightedTokens<'_>) -> Result<R, Stopped>,
    ) -> Result<R, Stopped> {
        if self.is_linear() {
            return f(&WeightedTokens::equal(ids));
        }
        if ids.len() <= SHORT {
            let (mut distinct, mut weights) = ([0; SHORT], [0.0; SHORT]);
            let count = self.weigh_short(ids, rows, &mut distinct, &mut weights);
            let ids = distinct.get(..count).unwrap_or_default();
            return f(&WeightedTokens::new(ids, weights.get(..count).unwrap_or_default()));
        }
        let (mut places, mut counts) = (Places::new(ids.len(), rows), Vec::new());
        for ids in ids.chunks(COUNTED_AT_A_TIME) {
            for &id in ids.iter().filter(|id| (**id as usize) < rows) {
                let place = places.number(id) as usize;
                match counts.get_mut(place) {
                    Some(count) => *count += 1,
                    None => counts.push(1u32),
                }
            }
            at.reached()?;
        }
        let weights: Vec<f32> = counts.into_iter().map(|count| self.weight(count)).collect();
        f(&WeightedTokens::new(places.ids(), &weights))
    }

    /// Writes the distinct tokens of up to [`SHORT`] IDs and their weights. Returns the number of distinct tokens.
    fn weigh_short(&self, ids: &[u32], rows: usize, distinct: &mut [u32; SHORT], weights: &mut [f32; SHORT]) -> usize {
        // The number of each token plus 1, at the place of its hash or after it. 0 stands for a free place.
        let mut slots = [0u8; SLOTS];
        let mut counts = [0u32; SHORT];
        let mut found = 0;
        for &id in ids.iter().filter(|id| (**id as usize) < rows) {
            // The upper bits of a product with the golden ratio are the hash (Knuth, The Art of Computer Programming 3, section 6.4).
            let mut place = (id.wrapping_mul(0x9e37_79b1) >> (u32::BITS - SLOTS.trailing_zeros())) as usize;
            // At most half of the places are in use, so that the loop reaches a free one.
            let number = loop {
                match slots.get_mut(place) {
                    Some(slot) if *slot == 0 => {
                        found += 1;
                        *slot = found as u8;
                        if let Some(to) = distinct.get_mut(found - 1) {
                            *to = id;
                        }
                        break found - 1;
                    }
                    Some(&mut slot) if distinct.get(usize::from(slot) - 1) == Some(&id) => break usize::from(slot) - 1,
                    _ => place = (place + 1) % SLOTS,
                }
            };
            if let Some(count) = counts.get_mut(number) {
                *count += 1;
            }
        }
        for (weight, &count) in weights.iter_mut().zip(&counts).take(found) {
            *weight = self.weight(count);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use layer0_tokenizers::yield_point::Undisturbed;
    use proptest::prelude::*;

    use super::*;

    fn weighed(exponent: f64, ids: &[u32], rows: usize) -> Vec<(u32, f32)> {
        let take = |tokens: &WeightedTokens<'_>| {
            let sum: f64 = tokens.iter().map(|(_, weight)| f64::from(weight)).sum();
            assert!((sum - tokens.total).abs() < 1e-9 * sum.max(1.0));
            Ok(tokens.iter().collect())
        };
        CountWeights::new(exponent).weigh(ids, rows, &Undisturbed, take).unwrap()
    }

    #[test]
    fn the_example_of_the_module() {
        let expected = [(5, 3f64.powf(0.7) as f32), (9, 1.0)];
        assert_eq!(weighed(0.7, &[5, 9, 5, 5], 10), expected);
        assert_eq!(weighed(0.0, &[5, 9, 5, 5], 10), [(5, 1.0), (9, 1.0)]);
        assert_eq!(weighed(1.0, &[5, 9, 5, 5], 10), [(5, 1.0), (9, 1.0), (5, 1.0), (5, 1.0)]);
        assert_eq!(weighed(0.7, &[9, 12, 9], 10).len(), 1, "an ID past the table is left out");
        assert_eq!(weighed(0.7, &[], 10), []);
    }

    proptest! {
        /// Texts of all lengths, in tables for which each way of counting is chosen, with IDs whose hashes collide.
        #[test]
        fn tokens_weigh_their_counts_in_the_order_of_their_first_occurrence(
            seed in any::<u64>(), length in 0usize..400, distinct in 1u32..300, step in prop_oneof![Just(1u32), Just(1 << 12)],
            large in any::<bool>(), exponent in 0.0f64..0.999,
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let rows = if large { 1 << 24 } else { (distinct * step) as usize };
            let ids: Vec<u32> = (0..length).map(|_| rng.u32(..distinct) * step).collect();
            let mut counts = BTreeMap::new();
            let mut order = Vec::new();
            for &id in &ids {
                let count = counts.entry(id).or_insert(0u32);
                if *count == 0 {
                    order.push(id);
                }
                *count += 1;
            }
            let expected: Vec<(u32, f32)> =
                order.iter().map(|id| (*id, f64::from(counts[id]).powf(exponent) as f32)).collect();
            prop_assert_eq!(weighed(exponent, &ids, rows), expected);
        }
    }

    #[test]
    fn every_hash_may_collide() {
        // The inverse of the multiplier maps consecutive products to IDs that all have the first place.
        let inverse = (0..5).fold(1u32, |x, _| x.wrapping_mul(2u32.wrapping_sub(0x9e37_79b1u32.wrapping_mul(x))));
        assert_eq!(inverse.wrapping_mul(0x9e37_79b1), 1);
        let ids: Vec<u32> = (0..SHORT as u32).map(|product| inverse.wrapping_mul(product)).collect();
        let found = weighed(0.5, &ids, usize::MAX);
        assert_eq!(found, ids.iter().map(|&id| (id, 1.0)).collect::<Vec<_>>());
    }

    #[test]
    fn many_occurrences_weigh_by_the_same_formula() {
        let weights = CountWeights::new(0.7);
        for count in [0u32, 1, 2, 63, 64, 65, 1_000_000] {
            assert_eq!(weights.weight(count), f64::from(count).powf(0.7) as f32);
        }
    }

    #[test]
    fn counting_can_be_stopped() {
        struct Stop;
        impl YieldPoint for Stop {
            fn reached(&self) -> Result<(), Stopped> {
                Err(Stopped)
            }
        }
        let weights = CountWeights::new(0.5);
        assert_eq!(weights.weigh(&[0; SHORT + 1], 1, &Stop, |_| Ok(())), Err(Stopped));
        assert_eq!(weights.weigh(&[0; SHORT], 1, &Stop, |_| Ok(())), Ok(()));
    }
}
