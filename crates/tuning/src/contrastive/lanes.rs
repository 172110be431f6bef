//! Loops over columns and logits that the compiler turns into vector instructions of this CPU.
//!
//! Every sum has a fixed number of partial sums, so the results do not depend on the width of the registers.

use pulp::Arch;

/// The number of partial sums of a dot product.
const LANES: usize = 16;

/// Calls `work` compiled for the widest registers of this CPU. The functions of this module are inlined into `work`.
pub fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

/// Adds `weight * row` to `sums`.
#[inline(always)]
pub fn add_scaled(sums: &mut [f32], weight: f32, row: &[f32]) {
    for (sum, x) in sums.iter_mut().zip(row) {
        *sum += weight * x;
    }
}

/// Returns the dot product of two vectors of the same length.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, x), y) in sums.iter_mut().zip(a).zip(b) {
            *sum += x * y;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

/// Returns `e^x` for `x` up to 0, with a relative error below 3e-7. Numbers below -87 give `e^-87`, about 1e-38.
///
/// The method is that of `expf` in the Cephes library (<https://www.netlib.org/cephes/>): `e^x = 2^n e^r` with `|r|` up
/// to `ln(2) / 2`, and a polynomial for `e^r`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// `ln(2)` in two parts. The product of `n` and the first part is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// Adding this number, `1.5 * 2^23`, rounds to an integer, which is then in the lowest bits.
    const ROUNDING: f32 = 12_582_912.0;
    const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
    let x = if x > -87.0 { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDING;
    let n = rounded - ROUNDING;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let mut sum = 0.0;
    for coefficient in POLYNOMIAL {
        sum = sum * r + coefficient;
    }
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (sum * r * r + r + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_as_exact_as_f32_allows() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1000.0;
            let exact = f64::from(x).exp();
            let found = f64::from(vectorized(|| exp(x)));
            assert!((found / exact - 1.0).abs() < 3e-7, "{x}: {found} {exact}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
    }

    #[test]
    fn dot_products_include_the_columns_after_the_last_whole_group() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..37).map(|i| (i % 5) as f32).collect();
        let expected: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
        assert_eq!(vectorized(|| dot(&a, &b)), expected);
        let mut sums = a.clone();
        add_scaled(&mut sums, 2.0, &b);
        assert_eq!((sums[36], sums[4]), (36.0 + 2.0, 4.0 + 8.0));
    }
}
