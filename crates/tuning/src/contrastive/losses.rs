//! The losses of a step, and their gradients with respect to the vectors of texts.
//!
//! All vectors have length 1, so every logit is at most the scale, and `e^(logit - scale)` cannot overflow. One
//! exponential for each logit therefore serves the softmax over rows as well as the softmax over columns.

use rayon::prelude::*;

use super::lanes::{add_scaled, exp, vectorized};
use super::products::{matrix, multiply};

/// The number of rows of logits that one task processes.
const ROWS_A_TASK: usize = 64;
/// The number of partial sums of a sum.
const LANES: usize = 16;

/// The memory of the losses, which is reused from step to step.
#[derive(Debug, Default)]
pub struct Scratch {
    logits: Vec<f32>,
    wanted: Vec<f32>,
    product: Vec<f32>,
}

/// The pairs of a batch as vectors, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    pub anchors: &'a [f32],
    pub positives: &'a [f32],
    pub dimensions: usize,
    /// `(i, j)` in both orders: anchor `i` and positive `j` are not negatives of each other.
    pub masked: &'a [(u32, u32)],
}

/// The gradients of the vectors of a batch of pairs. The losses add to them.
#[derive(Debug)]
pub struct PairGradients<'a> {
    pub anchors: &'a mut [f32],
    pub positives: &'a mut [f32],
}

/// Computes the symmetric InfoNCE loss (van den Oord et al. 2018, <https://arxiv.org/abs/1807.03748>) of a batch of
/// `B` pairs, with logits `s_ij = scale * a_i . p_j`:
///
/// ```text
/// L = 1/(2B) sum_i ( log sum_j e^s_ij - s_ii ) + 1/(2B) sum_j ( log sum_i e^s_ij - s_jj )
/// ```
///
/// Masked pairs are left out of the sums. Adds the gradients to `gradients`, and returns the loss.
pub fn contrast(pairs: Pairs<'_>, scale: f32, gradients: &mut PairGradients<'_>, scratch: &mut Scratch) -> f64 {
    let dimensions = pairs.dimensions;
    let count = pairs.anchors.len() / dimensions.max(1);
    let (anchors, positives) = (matrix(pairs.anchors, dimensions), matrix(pairs.positives, dimensions));
    resize(&mut scratch.logits, count * count);
    multiply(&mut scratch.logits, anchors, positives.transpose(), scale);
    let matched: Vec<f32> = scratch.logits.iter().step_by(count + 1).copied().collect();
    for &(i, j) in pairs.masked {
        if let Some(logit) = scratch.logits.get_mut(i as usize * count + j as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let sums: Vec<(Vec<f32>, Vec<f32>)> = scratch
        .logits
        .par_chunks_mut(ROWS_A_TASK * count)
        .map(|rows| {
            let mut columns = vec![0.0f32; count];
            let sums = vectorized(|| {
                rows.chunks_mut(count)
                    .map(|row| {
                        for (x, column) in row.iter_mut().zip(&mut columns) {
                            // exp(-infinity) is small, but a masked logit has no share at all.
                            let share = exp(*x - scale);
                            *x = if *x == f32::NEG_INFINITY { 0.0 } else { share };
                            *column += *x;
                        }
                        sum(row)
                    })
                    .collect()
            });
            (sums, columns)
        })
        .collect();
    let mut column_sums = vec![0.0f32; count];
    let mut row_sums = Vec::with_capacity(count);
    for (rows, columns) in sums {
        add_scaled(&mut column_sums, 1.0, &columns);
        row_sums.extend(rows);
    }
    let logs = row_sums.iter().zip(&column_sums).zip(&matched);
    let loss: f64 = logs
        .map(|((row, column), matched)| {
            0.5 * (f64::from(*row).ln() + f64::from(*column).ln()) + f64::from(scale) - f64::from(*matched)
        })
        .sum();
    // The gradient of the logits: (softmax over the row + softmax over the column - 2 [i = j]) / 2B.
    let share = 0.5 / count as f32;
    let column_inverses: Vec<f32> = column_sums.iter().map(|sum| share / sum).collect();
    scratch.logits.par_chunks_mut(ROWS_A_TASK * count).enumerate().for_each(|(task, rows)| {
        vectorized(|| {
            for (index, row) in (task * ROWS_A_TASK..).zip(rows.chunks_mut(count)) {
                let inverse = share / row_sums.get(index).copied().unwrap_or(1.0);
                for (x, column) in row.iter_mut().zip(&column_inverses) {
                    *x *= inverse + column;
                }
                if let Some(x) = row.get_mut(index) {
                    *x -= 2.0 * share;
                }
            }
        });
    });
    let logits = matrix(&scratch.logits, count);
    resize(&mut scratch.product, count * dimensions);
    multiply(&mut scratch.product, logits, positives, scale);
    add(gradients.anchors, 1.0, &scratch.product);
    multiply(&mut scratch.product, logits.transpose(), anchors, scale);
    add(gradients.positives, 1.0, &scratch.product);
    loss / count as f64
}

/// Computes how far the similarities of texts are from wanted ones: the mean over the texts `i` of the Kullback-Leibler
/// divergence of `softmax_j(scale * u_i . u_j)` from `softmax_j(scale * z_i . z_j)`, with `j` other than `i`. `vectors`
/// and `wanted` have one row for each text, of the dimensions given with them.
///
/// Adds `weight` times the gradient to `gradients`, and returns the divergence without the weight.
pub fn similarities(
    (vectors, dimensions): (&[f32], usize),
    (wanted, wanted_dimensions): (&[f32], usize),
    scale: f32,
    weight: f32,
    gradients: &mut [f32],
    scratch: &mut Scratch,
) -> f64 {
    let count = vectors.len() / dimensions.max(1);
    if count < 2 {
        return 0.0;
    }
    let (own, theirs) = (matrix(vectors, dimensions), matrix(wanted, wanted_dimensions));
    resize(&mut scratch.logits, count * count);
    resize(&mut scratch.wanted, count * count);
    multiply(&mut scratch.logits, own, own.transpose(), scale);
    multiply(&mut scratch.wanted, theirs, theirs.transpose(), scale);
    let losses: Vec<f64> = scratch
        .logits
        .par_chunks_mut(ROWS_A_TASK * count)
        .zip(scratch.wanted.par_chunks_mut(ROWS_A_TASK * count))
        .enumerate()
        .map(|(task, (rows, wanted))| {
            vectorized(|| {
                let mut total = 0.0f64;
                let rows = rows.chunks_mut(count).zip(wanted.chunks_mut(count));
                for (index, (row, wanted)) in (task * ROWS_A_TASK..).zip(rows) {
                    total += divergence(index, row, wanted, scale, count);
                }
                total
            })
        })
        .collect();
    // The product of a matrix D of logit gradients is (D + D^T) U.
    resize(&mut scratch.product, count * dimensions);
    let logits = matrix(&scratch.logits, count);
    multiply(&mut scratch.product, logits, own, scale);
    add(gradients, weight, &scratch.product);
    multiply(&mut scratch.product, logits.transpose(), own, scale);
    add(gradients, weight, &scratch.product);
    losses.iter().sum::<f64>() / count as f64
}

/// Returns the divergence of one row of logits, and replaces the logits by the gradient of the mean divergence.
///
/// With `q ~ e^c` and `p ~ e^s`, the divergence is `sum q (c - s) - ln(sum e^c) + ln(sum e^s)`.
#[inline(always)]
fn divergence(index: usize, row: &mut [f32], wanted: &mut [f32], scale: f32, count: usize) -> f64 {
    let clear = |row: &mut [f32], wanted: &mut [f32]| {
        for row in [row, wanted] {
            if let Some(own) = row.get_mut(index) {
                *own = 0.0;
            }
        }
    };
    clear(row, wanted);
    let mut gaps = [0.0f32; LANES];
    let mut exponentials = |row: &mut [f32], wanted: &mut [f32]| {
        for ((gap, s), c) in gaps.iter_mut().zip(row).zip(wanted) {
            let difference = *c - *s;
            *s = exp(*s - scale);
            *c = exp(*c - scale);
            *gap += *c * difference;
        }
    };
    let (rows, row_rest) = row.as_chunks_mut::<LANES>();
    let (wanteds, wanted_rest) = wanted.as_chunks_mut::<LANES>();
    for (row, wanted) in rows.iter_mut().zip(wanteds) {
        exponentials(row, wanted);
    }
    exponentials(row_rest, wanted_rest);
    clear(row, wanted);
    let (mine, theirs) = (sum(row), sum(wanted));
    let (p, q) = (1.0 / (mine * count as f32), 1.0 / (theirs * count as f32));
    for (x, wanted) in row.iter_mut().zip(wanted) {
        *x = *x * p - *wanted * q;
    }
    f64::from(sum(&gaps) / theirs) - f64::from(theirs).ln() + f64::from(mine).ln()
}

#[inline(always)]
fn sum(numbers: &[f32]) -> f32 {
    let (groups, rest) = numbers.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for group in groups {
        for (sum, x) in sums.iter_mut().zip(group) {
            *sum += x;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

fn add(sums: &mut [f32], weight: f32, numbers: &[f32]) {
    sums.par_chunks_mut(1 << 14)
        .zip(numbers.par_chunks(1 << 14))
        .for_each(|(sums, numbers)| vectorized(|| add_scaled(sums, weight, numbers)));
}

fn resize(numbers: &mut Vec<f32>, length: usize) {
    // The old numbers are overwritten, so only new ones need a value.
    numbers.resize(length, 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMENSIONS: usize = 5;

    /// Returns `count` vectors of length 1.
    fn vectors(count: usize, seed: u64) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut vectors: Vec<f32> = (0..count * DIMENSIONS).map(|_| random.f32() - 0.5).collect();
        for vector in vectors.chunks_mut(DIMENSIONS) {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            vector.iter_mut().for_each(|x| *x /= length);
        }
        vectors
    }

    /// Compares `gradient` with the differences of `loss` around `at`.
    fn check(at: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
        let largest = gradient.iter().fold(0.0f32, |max, x| x.abs().max(max));
        assert!(largest > 1e-3);
        for index in 0..at.len() {
            let moved = |by: f32| {
                let mut at = at.to_vec();
                at[index] += by;
                loss(&at)
            };
            let difference = (moved(5e-3) - moved(-5e-3)) / 1e-2;
            let off = (difference as f32 - gradient[index]).abs() / largest;
            assert!(off < 5e-3, "{index}: {difference} {}", gradient[index]);
        }
    }

    #[test]
    fn gradients_of_contrast_are_those_of_differences() {
        let (anchors, positives) = (vectors(7, 1), vectors(7, 2));
        for masked in [&[][..], &[(0, 1), (1, 0), (2, 5), (5, 2), (2, 6), (6, 2)]] {
            let run = |anchors: &[f32], positives: &[f32]| {
                let pairs = Pairs { anchors, positives, dimensions: DIMENSIONS, masked };
                let (mut a, mut p) = (vec![0.5; anchors.len()], vec![0.5; positives.len()]);
                let mut gradients = PairGradients { anchors: &mut a, positives: &mut p };
                let loss = contrast(pairs, 6.0, &mut gradients, &mut Scratch::default());
                // The function adds to the gradients.
                (loss, a.iter().map(|x| x - 0.5).collect::<Vec<_>>(), p.iter().map(|x| x - 0.5).collect::<Vec<_>>())
            };
            let (_, a, p) = run(&anchors, &positives);
            check(&anchors, &a, |anchors| run(anchors, &positives).0);
            check(&positives, &p, |positives| run(&anchors, positives).0);
        }
    }

    #[test]
    fn masked_pairs_have_no_share_in_the_loss() {
        let (anchors, mut positives) = (vectors(2, 1), vectors(2, 2));
        let losses = |masked: &[(u32, u32)]| {
            let pairs = Pairs { anchors: &anchors, positives: &positives, dimensions: DIMENSIONS, masked };
            let (mut a, mut p) = ([0.0; 2 * DIMENSIONS], [0.0; 2 * DIMENSIONS]);
            let mut gradients = PairGradients { anchors: &mut a, positives: &mut p };
            (contrast(pairs, 20.0, &mut gradients, &mut Scratch::default()), a)
        };
        let (loss, gradients) = losses(&[(0, 1), (1, 0)]);
        assert!(loss.abs() < 1e-6 && gradients.iter().all(|g| g.abs() < 1e-6), "{loss} {gradients:?}");
        assert!(losses(&[(0, 1)]).0 > 1e-3 || losses(&[(1, 0)]).0 > 1e-3);
        // Every cosine is 1, so each of the two texts of a batch has half of the softmax.
        positives.copy_from_slice(&anchors);
        let same = anchors[..DIMENSIONS].repeat(2);
        let pairs = Pairs { anchors: &same, positives: &same, dimensions: DIMENSIONS, masked: &[] };
        let (mut a, mut p) = ([0.0; 2 * DIMENSIONS], [0.0; 2 * DIMENSIONS]);
        let mut gradients = PairGradients { anchors: &mut a, positives: &mut p };
        let loss = contrast(pairs, 20.0, &mut gradients, &mut Scratch::default());
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn gradients_of_similarities_are_those_of_differences() {
        // 37 texts fill two groups of lanes and a rest.
        let (own, theirs) = (vectors(37, 3), vectors(37, 4));
        let run = |vectors: &[f32], weight: f32| {
            let mut gradients = vec![0.5; vectors.len()];
            let scratch = &mut Scratch::default();
            let loss = similarities((vectors, DIMENSIONS), (&theirs, DIMENSIONS), 4.0, weight, &mut gradients, scratch);
            (loss, gradients.iter().map(|x| x - 0.5).collect::<Vec<_>>())
        };
        let (loss, gradients) = run(&own, 3.0);
        assert!(loss > 0.1);
        check(&own, &gradients, |vectors| 3.0 * run(vectors, 3.0).0);
        let (loss, gradients) = run(&theirs, 1.0);
        assert!(loss.abs() < 1e-6 && gradients.iter().all(|g| g.abs() < 1e-6), "{loss}");
        assert_eq!(
            similarities((&own[..5], 5), (&theirs[..5], 5), 4.0, 1.0, &mut [0.0; 5], &mut Scratch::default()),
            0.0
        );
    }
}
