//! Computes the metrics from vectors in memory.

use rayon::prelude::*;

/// The metrics of one query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// The nDCG of the first ten documents.
    pub ndcg: f64,
    /// The share of the relevant documents among the first ten.
    pub recall: f64,
}

/// Returns the cosine of the angle between two vectors, or 0 if one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

/// Returns Spearman's rank correlation, or 0 if one side is constant. Equal values share the mean of their ranks.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    pearson(&ranks(a), &ranks(b))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = values.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|a, b| a.1 == b.1) {
        let rank = before as f64 + (equal.len() as f64 - 1.0) / 2.0;
        for &(index, _) in equal {
            if let Some(slot) = ranks.get_mut(index) {
                *slot = rank;
            }
        }
        before += equal.len();
    }
    ranks
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| f(a - mean_a, b - mean_b)).sum::<f64>();
    let spread = (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt();
    if spread > 0.0 { sum(&|a, b| a * b) / spread } else { 0.0 }
}

/// Returns 1 for each vector of `from` whose nearest vector in `to` has the same index, and 0 for each other vector.
/// All vectors must have length 1. Of several vectors that are equally near, the first one counts as the nearest.
pub fn top1(from: &[Vec<f32>], to: &[Vec<f32>]) -> Vec<f64> {
    let hit = |(index, vector): (usize, &Vec<f32>)| {
        let mut best = (f32::NEG_INFINITY, usize::MAX);
        for (candidate, other) in to.iter().enumerate() {
            let cosine = dot(vector, other);
            if cosine > best.0 {
                best = (cosine, candidate);
            }
        }
        f64::from(best.1 == index)
    };
    from.par_iter().enumerate().map(hit).collect()
}

/// Returns nDCG and recall of the `cut` nearest documents with the definitions of trec_eval: linear gains, discounted
/// by `1 / log2(rank + 1)`.
///
/// `relevant` holds the indices of the relevant documents and their gains.
pub fn ranked(query: &[f32], documents: &[Vec<f32>], relevant: &[(usize, f64)], cut: usize) -> Ranked {
    ranked_by(&documents.iter().map(|document| dot(query, document)).collect::<Vec<_>>(), relevant, cut)
}

/// Returns nDCG and recall of the `cut` documents with the highest scores, as [`ranked`] does.
pub fn ranked_by(scores: &[f32], relevant: &[(usize, f64)], cut: usize) -> Ranked {
    let mut found: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let gain = |index: usize| relevant.iter().find(|r| r.0 == index).map_or(0.0, |r| r.1);
    let gains: Vec<f64> = found.iter().take(cut).map(|&(index, _)| gain(index)).collect();
    let mut ideal: Vec<f64> = relevant.iter().map(|r| r.1).collect();
    ideal.sort_by(|a, b| b.total_cmp(a));
    ideal.truncate(cut);
    let hits = gains.iter().filter(|&&gain| gain > 0.0).count() as f64;
    let all = relevant.iter().filter(|r| r.1 > 0.0).count() as f64;
    Ranked { ndcg: share(discounted(&gains), discounted(&ideal)), recall: share(hits, all) }
}

fn discounted(gains: &[f64]) -> f64 {
    gains.iter().zip(2u32..).map(|(gain, rank)| gain / f64::from(rank).log2()).sum()
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Returns the dot product. Eight partial sums allow the compiler to vectorize the loop.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spearman_equals_scipys() {
        // scipy.stats.spearmanr([1, 2, 2, 4, 5], [3, 1, 4, 4, 5]) returns this correlation.
        let rho = spearman(&[1.0, 2.0, 2.0, 4.0, 5.0], &[3.0, 1.0, 4.0, 4.0, 5.0]);
        assert!((rho - 0.763_157_894_736_842).abs() < 1e-12, "{rho}");
        assert!((spearman(&[1.0, 2.0, 9.0], &[-5.0, 0.0, 0.1]) - 1.0).abs() < 1e-12);
        assert!((spearman(&[1.0, 2.0, 9.0], &[3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
        assert_eq!(spearman(&[], &[]), 0.0);
    }

    #[test]
    fn top1_counts_the_nearest() {
        let a = vec![vec![1.0, 0.0], vec![0.0, 1.0], vec![0.6, 0.8]];
        assert_eq!(top1(&a, &a), [1.0; 3]);
        let b = vec![vec![0.0, 1.0], vec![1.0, 0.0], vec![0.6, 0.8]];
        assert_eq!(top1(&a, &b), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn ndcg_equals_trec_evals() {
        let documents: Vec<Vec<f32>> = (0..12).map(|i| vec![1.0 - i as f32 / 20.0]).collect();
        // The documents are found in the order of their indices: a gain of 1 at rank 2, a gain of 2 at rank 4, and a
        // third document that comes after the cut.
        let found = ranked(&[1.0], &documents, &[(1, 1.0), (3, 2.0), (11, 1.0)], 10);
        let dcg = 1.0 / 3f64.log2() + 2.0 / 5f64.log2();
        let ideal = 2.0 + 1.0 / 3f64.log2() + 1.0 / 4f64.log2();
        assert!((found.ndcg - dcg / ideal).abs() < 1e-12);
        assert!((found.recall - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(ranked(&[1.0], &documents, &[], 10), Ranked { ndcg: 0.0, recall: 0.0 });
    }

    #[test]
    fn dot_takes_every_number() {
        let a: Vec<f32> = (0..19).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..19).map(|i| i * i).sum::<i32>() as f32);
        assert!((cosine(&[2.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-9);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
