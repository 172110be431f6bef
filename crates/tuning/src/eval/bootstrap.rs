//! Computes bootstrap intervals of metrics, and of the differences between models that were measured on the same data.
//!
//! Items of a data set (pairs of sentences, sentences, or queries) are drawn with replacement, as many as the data set
//! has. The measure of such a resample is one estimate, and the interval reaches from the 2.5th to the 97.5th
//! percentile of all estimates (the percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
//! chapter 13). The interval shows how much the result depends on the items that the data set happens to contain.
//! Resample number `r` draws the same items for every model. The differences of two models' estimates are therefore
//! paired: a resample of difficult items is difficult for both.
//!
//! Example: of four queries, all but the second are answered correctly. The values `[1, 0, 1, 1]` have the mean .75. A
//! resample that draws the second query twice, and the first and the last query once, holds `[1, 0, 0, 1]`, and its
//! estimate is .5.

use rayon::prelude::*;
use serde::ser::{Serialize, SerializeTuple, Serializer};

/// The settings of the resampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// The number of resamples. With 0, there are no intervals.
    pub resamples: usize,
    /// The seed of the random numbers.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 1000, seed: 0 }
    }
}

/// The bounds between which 95 % of all estimates lie. In JSON, the interval is `[low, high]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// The share of the estimates that lie within the interval.
    pub const LEVEL: f64 = 0.95;

    /// Returns the interval of `estimates`, or `None` if there are none. A percentile between two estimates is
    /// interpolated linearly, as in `numpy.percentile`.
    pub fn of(estimates: &[f64]) -> Option<Self> {
        let mut sorted = estimates.to_vec();
        sorted.sort_by(f64::total_cmp);
        let percentile = |share: f64| {
            let place = share * sorted.len().saturating_sub(1) as f64;
            let (low, high) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
            Some(low + (high - low) * place.fract())
        };
        let tail = (1.0 - Self::LEVEL) / 2.0;
        Some(Self { low: percentile(tail)?, high: percentile(1.0 - tail)? })
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut pair = serializer.serialize_tuple(2)?;
        pair.serialize_element(&self.low)?;
        pair.serialize_element(&self.high)?;
        pair.end()
    }
}

impl Bootstrap {
    /// Returns one estimate for each resample of `items` items. `measure` receives the number of times that each item
    /// was drawn.
    pub fn estimates(&self, items: usize, measure: impl Fn(&[u32]) -> f64 + Sync) -> Vec<f64> {
        let mut seeds = fastrand::Rng::with_seed(self.seed);
        let seeds: Vec<u64> = (0..self.resamples).map(|_| seeds.u64(..)).collect();
        seeds
            .into_par_iter()
            .map(|seed| {
                let mut random = fastrand::Rng::with_seed(seed);
                let mut drawn = vec![0; items];
                for _ in 0..items {
                    if let Some(count) = drawn.get_mut(random.usize(..items)) {
                        *count += 1;
                    }
                }
                measure(&drawn)
            })
            .collect()
    }
}

/// Returns the mean of `values`, each counted as often as it was drawn.
pub fn mean(values: &[f64], drawn: &[u32]) -> f64 {
    let sum: f64 = values.iter().zip(drawn).map(|(value, &count)| value * f64::from(count)).sum();
    sum / values.len().max(1) as f64
}

/// Pairs of numbers whose rank correlation is computed for many resamples. The numbers are sorted only once.
#[derive(Debug)]
pub struct RankedPairs {
    left: Vec<Vec<usize>>,
    right: Vec<Vec<usize>>,
    count: usize,
}

impl RankedPairs {
    /// Sorts the pairs `(left[i], right[i])`.
    pub fn new(left: &[f64], right: &[f64]) -> Self {
        Self { left: groups(left), right: groups(right), count: left.len().min(right.len()) }
    }

    /// Returns Spearman's rank correlation of the pairs, each counted as often as it was drawn. Returns 0 if one side
    /// is constant.
    pub fn spearman(&self, drawn: &[u32]) -> f64 {
        let (left, right) = (ranks(&self.left, drawn, self.count), ranks(&self.right, drawn, self.count));
        let total: f64 = drawn.iter().map(|&count| f64::from(count)).sum();
        // Ranks that begin at 0, with the mean rank for ties, have this mean regardless of the ties.
        let mean = (total - 1.0) / 2.0;
        let (mut product, mut left_squares, mut right_squares) = (0.0, 0.0, 0.0);
        for ((left, right), &count) in left.iter().zip(&right).zip(drawn) {
            let (left, right, count) = (left - mean, right - mean, f64::from(count));
            product += count * left * right;
            left_squares += count * left * left;
            right_squares += count * right * right;
        }
        let spread = (left_squares * right_squares).sqrt();
        if spread > 0.0 { product / spread } else { 0.0 }
    }
}

/// Returns the indices of `values` in ascending order of the values. Equal values share a group.
fn groups(values: &[f64]) -> Vec<Vec<usize>> {
    let mut order: Vec<(usize, f64)> = values.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    order.chunk_by(|a, b| a.1 == b.1).map(|equal| equal.iter().map(|(index, _)| *index).collect()).collect()
}

/// Returns the rank of each value among the drawn values, starting at 0. Equal values share the mean of their ranks.
fn ranks(groups: &[Vec<usize>], drawn: &[u32], count: usize) -> Vec<f64> {
    let mut ranks = vec![0.0; count];
    let mut before = 0.0;
    for group in groups {
        let size: f64 = group.iter().filter_map(|&index| drawn.get(index)).map(|&count| f64::from(count)).sum();
        for &index in group {
            if let Some(rank) = ranks.get_mut(index) {
                *rank = before + (size - 1.0) / 2.0;
            }
        }
        before += size;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::metrics::spearman;

    #[test]
    fn the_correlation_of_a_resample_is_that_of_its_pairs_written_out() {
        let left = [0.1, 0.5, 0.5, -0.3, 0.9, 0.2, 0.7];
        let right = [1.0, 3.0, 2.0, 2.0, 5.0, 0.0, 2.0];
        let pairs = RankedPairs::new(&left, &right);
        let bootstrap = Bootstrap { resamples: 50, seed: 3 };
        bootstrap.estimates(left.len(), |drawn| {
            let again = |values: &[f64]| -> Vec<f64> {
                values.iter().zip(drawn).flat_map(|(&value, &count)| vec![value; count as usize]).collect()
            };
            assert!((pairs.spearman(drawn) - spearman(&again(&left), &again(&right))).abs() < 1e-12, "{drawn:?}");
            0.0
        });
        assert!((pairs.spearman(&[1; 7]) - spearman(&left, &right)).abs() < 1e-12);
        assert_eq!(pairs.spearman(&[7, 0, 0, 0, 0, 0, 0]), 0.0);
    }

    #[test]
    fn an_interval_is_as_wide_as_the_normal_distribution_says() {
        let hits: Vec<f64> = (0..400).map(|n| f64::from(n % 4 != 0)).collect();
        let of = |seed| {
            let bootstrap = Bootstrap { resamples: 2000, seed };
            Interval::of(&bootstrap.estimates(hits.len(), |drawn| mean(&hits, drawn))).unwrap()
        };
        let expected = 1.96 * (0.75f64 * 0.25 / 400.0).sqrt();
        let found = of(0);
        assert!(
            (found.low - (0.75 - expected)).abs() < 0.006 && (found.high - (0.75 + expected)).abs() < 0.006,
            "{found:?}"
        );
        assert_eq!(of(0), found);
        assert_ne!(of(1), found);
    }

    #[test]
    fn percentiles_equal_numpys() {
        // numpy.percentile([0, 1, 2, 3], [2.5, 97.5]) returns these bounds.
        let found = Interval::of(&[3.0, 0.0, 2.0, 1.0]).unwrap();
        assert!((found.low - 0.075).abs() < 1e-12 && (found.high - 2.925).abs() < 1e-12, "{found:?}");
        assert_eq!(Interval::of(&[0.5]), Some(Interval { low: 0.5, high: 0.5 }));
        assert_eq!(Interval::of(&[]), None);
        assert_eq!(serde_json::to_string(&found).unwrap(), format!("[{},{}]", found.low, found.high));
    }
}
