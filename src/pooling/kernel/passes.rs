//! What is done to a finished sum, number by number: mostly loops that the compiler turns into vectors, for each instruction
//! set once. All ways give the same bits.

/// The loops, compiled for one instruction set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passes {
    /// From blocks of even columns, then as many odd ones, to the order of the columns.
    pub order: fn(&mut [f32]),
    pub weigh: fn(&mut [f32], &[f32], f32),
    pub squares: fn(&[f32]) -> f64,
    pub scale: fn(&mut [f32], f32),
}

pub(super) const PORTABLE: Passes = Passes { order: |_| {}, weigh, squares, scale };

/// Times the weights, and times `share`.
#[inline(always)]
pub(super) fn weigh(sums: &mut [f32], weights: &[f32], share: f32) {
    for (x, weight) in sums.iter_mut().zip(weights) {
        *x *= weight * share;
    }
}

/// The sum of squares: four at a time in f32, which costs 1e-7 of it at most, and their sums in f64.
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
