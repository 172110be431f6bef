//! Adds vectors of signs to sums. The signs of a token follow from a hash of its ID, so they take no memory.
//!
//! **The signs never change**, because vectors that were computed by different versions are compared with each other. Column `j` of token `t`
//! is negative if bit `j % 64` of `word(t, j / 64)` is set, where bit 0 is the lowest:
//!
//! ```text
//! word(t, b):  z = t * 2^32 + b + 0x9e3779b97f4a7c15                    modulo 2^64
//!              z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
//!              z = (z ^ (z >> 27)) * 0x94d049bb133111eb
//!              z ^ (z >> 31)
//! ```
//!
//! This is the output function of SplitMix64 (Steele, Lea and Flood 2014, <https://doi.org/10.1145/2660193.2660195>). For example,
//! `word(0, 0)` is `0xe220a8397b1dcdaf`. Its lowest byte is `0b10101111`, so the signs of the first eight columns of token 0 are
//! `- - - - + - + -`.
//!
//! Every kernel adds the same numbers in the same order, so all give the same bits.

use super::GROUP;

/// The number of columns whose signs one word holds.
const COLUMNS: usize = 64;
/// The number of columns that are one array, so that the compiler keeps it in one vector register or in two.
const LANES: usize = COLUMNS / 4;
/// The bit of an f32 that holds its sign.
const SIGN: u32 = 1 << 31;

/// Returns the signs of the columns `64 * block` to `64 * block + 63` of a token. A bit that is set stands for a negative sign.
#[inline(always)]
pub(super) const fn word(id: u32, block: u32) -> u64 {
    let z = ((id as u64) << 32 | block as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Adds `lengths[i]` times the signs of `ids[i]` to `sums`, for up to [`GROUP`] tokens. `sums` may have any number of columns.
#[inline(always)]
pub(super) fn add_signs(ids: &[u32], lengths: &[f32], sums: &mut [f32]) {
    let tokens = || ids.iter().copied().zip(lengths.iter().copied()).take(GROUP);
    for (sums, block) in sums.chunks_mut(COLUMNS).zip(0..) {
        // The lanes of the quarters of a word, two for each half.
        let mut totals = [[[0.0f32; LANES]; 2]; 2];
        for (id, length) in tokens() {
            let word = word(id, block);
            for (half, totals) in [word as u32, (word >> 32) as u32].into_iter().zip(&mut totals) {
                for (bits, total) in [half, half >> LANES].into_iter().zip(totals) {
                    for (lane, sum) in (0..).zip(total) {
                        let sign = bits << (31 - lane) & SIGN;
                        *sum += f32::from_bits(length.to_bits() ^ sign);
                    }
                }
            }
        }
        for (sum, total) in sums.iter_mut().zip(totals.as_flattened().as_flattened()) {
            *sum += total;
        }
    }
}

/// Returns the sign of a column, as 1 or -1.
pub fn sign(id: u32, column: usize) -> f32 {
    let block = (column / COLUMNS) as u32;
    if word(id, block) >> (column % COLUMNS) & 1 == 0 { 1.0 } else { -1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors in databases depend on these numbers.
    #[test]
    fn the_signs_are_those_of_the_documentation() {
        assert_eq!(word(0, 0), 0xe220_a839_7b1d_cdaf);
        let signs: Vec<f32> = (0..8).map(|column| sign(0, column)).collect();
        assert_eq!(signs, [-1.0, -1.0, -1.0, -1.0, 1.0, -1.0, 1.0, -1.0]);
        assert_ne!(word(1, 0), word(0, 1));
    }

    #[test]
    fn every_kernel_adds_the_signs_in_the_same_bits() {
        let mut rng = fastrand::Rng::with_seed(3);
        for columns in [1, 15, 16, 63, 64, 65, 130, 640, 1152] {
            for tokens in 0..=GROUP {
                let ids: Vec<u32> = (0..tokens).map(|_| rng.u32(..)).collect();
                let lengths: Vec<f32> = (0..tokens).map(|_| rng.f32() - 0.5).collect();
                let before: Vec<f32> = (0..columns).map(|_| rng.f32()).collect();
                let expected: Vec<f32> = before
                    .iter()
                    .enumerate()
                    .map(|(column, sum)| {
                        let signed = ids.iter().zip(&lengths).map(|(&id, length)| length * sign(id, column));
                        sum + signed.fold(0.0, |sum, x| sum + x)
                    })
                    .collect();
                for kernel in crate::pooling::kernel::available() {
                    let mut sums = before.clone();
                    kernel.add_signs(&ids, &lengths, &mut sums);
                    assert_eq!(sums, expected, "{} {columns} {tokens}", kernel.name);
                }
            }
        }
    }

    #[test]
    fn the_signs_of_two_tokens_agree_in_half_of_the_columns() {
        for (a, b) in [(0u32, 1u32), (1, 2), (5, 1 << 20), (262_143, 262_142)] {
            let agreeing: u32 = (0..1024).map(|block| (word(a, block) ^ word(b, block)).count_zeros()).sum();
            // The standard deviation of 65,536 fair coins is 128.
            assert!(agreeing.abs_diff(32_768) < 6 * 128, "{a} {b}: {agreeing}");
        }
        let negative: u32 = (0..1024).map(|id| word(id, 0).count_ones()).sum();
        assert!(negative.abs_diff(32_768) < 6 * 128, "{negative}");
    }
}
