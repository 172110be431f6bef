//! Products of rows of integers by AVX2.
//!
//! `maddubs` multiplies unsigned with signed bytes and adds pairs of products in 16 bits. Two products of int4, of numbers up to 15 and down
//! to -8, are at most 240 in size, so that 128 sums of two fit 16 bits before they are added in 32 bits. The products of int8 are too large
//! for it: the bytes are widened to 16 bits, whose products `madd` adds in 32 bits.

#![allow(unsafe_code)] // Vector loads and stores take pointers.

use std::arch::x86_64::*;

use super::integers::{LANES, Multiply, PackedRows, Pass, Products, Unpacked, in_groups, unpack};
use crate::table::TableDtype;

/// The number of rows that are multiplied at a time, so that each packed number is loaded once for all of them.
const ROWS: usize = 4;
/// The number of vectors that hold a number for each lane.
const VECTORS: usize = LANES / 8;
/// The number of groups of four columns whose products of int4 are added in 16 bits.
const GROUPS_IN_16_BITS: usize = 128;

/// Returns the function. Only a CPU with AVX2 may call it.
pub(super) fn integers() -> Multiply {
    // SAFETY: the caller has found the CPU feature.
    |packed, rows, products, squares| unsafe { multiply(packed, rows, products, squares) }
}

#[target_feature(enable = "avx2")]
fn multiply(packed: &PackedRows, rows: &[&[u8]], products: &mut [f32], squares: &mut [i32]) {
    let unpack = |row: &[u8], out: &mut [u8]| unpack(packed.dtype(), row, out);
    in_groups::<ROWS>(packed, rows, products, squares, unpack, |pass, unpacked, products| {
        for block in 0..pass.blocks {
            block_of(pass, block, unpacked, products);
        }
    });
}

/// Multiplies [`ROWS`] unpacked rows with the packed rows of one block of [`LANES`].
#[target_feature(enable = "avx2")]
fn block_of(pass: &Pass, block: usize, unpacked: Unpacked<'_>, products: &mut Products<'_>) {
    let groups = (unpacked.bytes / 4).min(pass.numbers.len() / (pass.blocks * LANES));
    if unpacked.numbers.len() < ROWS * unpacked.bytes || block >= pass.blocks {
        return;
    }
    let (rows, numbers) = (unpacked.numbers.as_ptr(), pass.numbers.as_ptr());
    let packed = |group: usize, vector: usize| {
        // SAFETY: a group below `groups` has `pass.blocks * LANES` numbers, and `block` is below `pass.blocks`.
        unsafe { _mm256_loadu_si256(numbers.add((group * pass.blocks + block) * LANES + vector * 8).cast()) }
    };
    let four = |group: usize, row: usize| {
        // SAFETY: `unpacked` has `ROWS` rows of `unpacked.bytes` bytes, of which there are four for each group.
        let four = unsafe { rows.add(row * unpacked.bytes + group * 4).cast::<i32>().read_unaligned() };
        _mm256_set1_epi32(four)
    };
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; ROWS];
    if unpacked.dtype == TableDtype::Int4 {
        let ones = _mm256_set1_epi16(1);
        for start in (0..groups).step_by(GROUPS_IN_16_BITS) {
            let mut short = [[_mm256_setzero_si256(); VECTORS]; ROWS];
            for group in start..groups.min(start + GROUPS_IN_16_BITS) {
                let columns = [packed(group, 0), packed(group, 1)];
                for (row, short) in short.iter_mut().enumerate() {
                    let four = four(group, row);
                    for (sum, column) in short.iter_mut().zip(columns) {
                        *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(four, column));
                    }
                }
            }
            for (sum, short) in sums.as_flattened_mut().iter_mut().zip(short.as_flattened()) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*short, ones));
            }
        }
    } else {
        let low_bytes = _mm256_set1_epi16(0xff);
        for group in 0..groups {
            let columns = [packed(group, 0), packed(group, 1)]
                .map(|column| (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(column)), _mm256_srai_epi16::<8>(column)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let four = four(group, row);
                let (even, odd) = (_mm256_and_si256(four, low_bytes), _mm256_srli_epi16::<8>(four));
                for (sum, (even_column, odd_column)) in sums.iter_mut().zip(columns) {
                    let products =
                        _mm256_add_epi32(_mm256_madd_epi16(even, even_column), _mm256_madd_epi16(odd, odd_column));
                    *sum = _mm256_add_epi32(*sum, products);
                }
            }
        }
    }
    let first = products.first + block * LANES;
    let excess = pass.excess.as_chunks::<LANES>().0.get(block).unwrap_or(&[0; LANES]);
    for (sums, out) in sums.iter().zip(products.numbers.chunks_mut(products.width.max(1))) {
        let out = out.get_mut(first..first + LANES).unwrap_or_default();
        for ((sum, excess), out) in sums.iter().zip(excess.as_chunks::<8>().0).zip(out.as_chunks_mut::<8>().0) {
            // SAFETY: `excess` and `out` have 8 numbers, as the vector has.
            unsafe {
                let excess = _mm256_loadu_si256(excess.as_ptr().cast());
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtepi32_ps(_mm256_sub_epi32(*sum, excess)));
            }
        }
    }
}
