//! The operations on a finished sum: mostly loops that the compiler vectorizes for each instruction set. All versions give the
//! same bits.

/// The loops, compiled for one instruction set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passes {
    /// Reorders blocks of even columns followed by odd columns to the order of the columns.
    pub order: fn(&mut [f32]),
    pub weigh: fn(&mut [f32], &[f32], f32),
    pub squares: fn(&[f32]) -> f64,
    pub scale: fn(&mut [f32], f32),
    pub products: fn(&[f32], &[f32], &mut [f32]),
    pub similarities: fn(&[i32], &Similarity<'_>, &mut [f32]) -> bool,
}

/// How the products of a row of integers become similarities.
#[derive(Debug, Clone, Copy)]
pub struct Similarity<'a> {
    /// The factors whose product with a row's product is the cosine: that of the row, and that of each other row.
    pub factor: f32,
    pub factors: &'a [f32],
    /// Cosines up to the threshold become 0. Above it, a similarity grows by `slope` times the cosine.
    pub threshold: f32,
    pub slope: f32,
}

pub(super) const PORTABLE: Passes = Passes { order: |_| {}, weigh, squares, scale, products, similarities };

/// Multiplies by the weights and by `share`.
#[inline(always)]
pub(super) fn weigh(sums: &mut [f32], weights: &[f32], share: f32) {
    for (x, weight) in sums.iter_mut().zip(weights) {
        *x *= weight * share;
    }
}

/// Returns the sum of squares. Four squares at a time are added in f32, with an error of at most 1e-7 of the sum, and these sums
/// are added in f64.
#[inline(always)]
pub(super) fn squares(numbers: &[f32]) -> f64 {
    let (blocks, rest) = numbers.as_chunks::<64>();
    let mut total = [0.0f64; 16];
    for block in blocks {
        let mut lanes = [0.0f32; 16];
        for numbers in block.as_chunks::<16>().0 {
            for (lane, x) in lanes.iter_mut().zip(numbers) {
                *lane += x * x;
            }
        }
        for (total, lane) in total.iter_mut().zip(lanes) {
            *total += f64::from(lane);
        }
    }
    total.iter().sum::<f64>() + rest.iter().map(|x| f64::from(x * x)).sum::<f64>()
}

#[inline(always)]
pub(super) fn scale(numbers: &mut [f32], factor: f32) {
    for x in numbers {
        *x *= factor;
    }
}

/// The dot products of `vector` with the rows of `matrix` (`out.len()` rows, each as long as `vector`).
///
/// Four rows are multiplied at a time, so that each number of `vector` is loaded once for four products. Each product is the sum of 16
/// partial sums; the order of the additions does not depend on the instruction set.
#[inline(always)]
pub(super) fn products(vector: &[f32], matrix: &[f32], out: &mut [f32]) {
    let width = vector.len().max(1);
    let mut groups = matrix.chunks_exact(4 * width);
    let mut outs = out.chunks_exact_mut(4);
    for (group, out) in (&mut groups).zip(&mut outs) {
        let (first, second) = group.split_at(2 * width);
        let ((a, b), (c, d)) = (first.split_at(width), second.split_at(width));
        let mut sums = [[0.0f32; 16]; 4];
        let (numbers, rest) = vector.as_chunks::<16>();
        let rows = a.as_chunks().0.iter().zip(b.as_chunks().0).zip(c.as_chunks().0.iter().zip(d.as_chunks().0));
        for (x, ((a, b), (c, d))) in numbers.iter().zip(rows) {
            let [s, t, u, v] = &mut sums;
            add_products(s, x, a);
            add_products(t, x, b);
            add_products(u, x, c);
            add_products(v, x, d);
        }
        for ((out, sums), row) in out.iter_mut().zip(&sums).zip([a, b, c, d]) {
            *out = total(sums) + remainder(rest, row.as_chunks::<16>().1);
        }
    }
    for (out, row) in outs.into_remainder().iter_mut().zip(groups.remainder().chunks(width)) {
        let mut sums = [0.0f32; 16];
        for (x, y) in vector.as_chunks::<16>().0.iter().zip(row.as_chunks::<16>().0) {
            add_products(&mut sums, x, y);
        }
        *out = total(&sums) + remainder(vector.as_chunks::<16>().1, row.as_chunks::<16>().1);
    }
}

/// Writes `slope * max(0, cosine - threshold)` for the products of one row. Returns whether any of the numbers is above 0.
#[inline(always)]
pub(super) fn similarities(products: &[i32], by: &Similarity<'_>, out: &mut [f32]) -> bool {
    let mut sums = [0.0f32; 16];
    let lanes = products.as_chunks::<16>().0.iter().zip(by.factors.as_chunks::<16>().0);
    for (out, (products, factors)) in out.as_chunks_mut::<16>().0.iter_mut().zip(lanes) {
        for ((out, sum), (&product, factor)) in out.iter_mut().zip(&mut sums).zip(products.iter().zip(factors)) {
            *out = by.slope * (product as f32 * by.factor * factor - by.threshold).max(0.0);
            *sum += *out;
        }
    }
    sums.iter().any(|sum| *sum > 0.0)
}

#[inline(always)]
fn add_products(sums: &mut [f32; 16], x: &[f32; 16], y: &[f32; 16]) {
    for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
        *sum += x * y;
    }
}

/// The sum of 16 partial sums, added pairwise.
#[inline(always)]
fn total(sums: &[f32; 16]) -> f32 {
    let mut sums = *sums;
    let mut width = 16;
    while width > 1 {
        width /= 2;
        let (low, high) = sums.split_at_mut(width);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
    }
    let [first, ..] = sums;
    first
}

#[inline(always)]
fn remainder(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}
