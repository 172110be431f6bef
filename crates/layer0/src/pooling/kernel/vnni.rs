//! Products of rows of integers by AVX-512 VNNI, for CPUs that have it.

#![allow(unsafe_code)] // Vector loads and stores take pointers.

use std::arch::x86_64::*;

use super::integers::{CHUNK, LANES, Multiply, PackedRows, Pass, Products, Unpacked, in_groups, offset};
use crate::table::TableDtype;

/// The number of rows that are multiplied at a time, so that each packed number is loaded once for all of them.
const ROWS: usize = 8;

/// Returns the function if this CPU can run it.
pub(super) fn available() -> Option<Multiply> {
    let found = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni");
    // SAFETY: the CPU has the features.
    found.then_some(|packed, rows, products, squares| unsafe { multiply(packed, rows, products, squares) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply(packed: &PackedRows, rows: &[&[u8]], products: &mut [f32], squares: &mut [i32]) {
    let (dtype, dimensions) = (packed.dtype(), packed.dimensions());
    let unpack = |row: &[u8], out: &mut [u8]| unpack(dtype, dimensions, row, out);
    in_groups::<ROWS>(packed, rows, products, squares, unpack, |pass, unpacked, products| match pass.blocks {
        1 => pass_of::<1>(pass, unpacked, products),
        _ => pass_of::<2>(pass, unpacked, products),
    });
}

/// Writes the numbers of a row as unsigned bytes, in the order of [`super::integers::unpack`]. Returns the sum of their squares.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn unpack(dtype: TableDtype, dimensions: usize, row: &[u8], out: &mut [u8]) -> i32 {
    let (mut squares, mut sums) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    let ones = _mm512_set1_epi8(1);
    let mut to = out.chunks_exact_mut(CHUNK);
    for chunk in row.chunks(CHUNK) {
        let mask = u64::MAX >> (CHUNK - chunk.len());
        // SAFETY: the mask has one bit for each byte of the chunk, and other bytes are not read.
        let stored = unsafe { _mm512_maskz_loadu_epi8(mask, chunk.as_ptr().cast()) };
        match dtype {
            TableDtype::Int4 => {
                let low_bits = _mm512_set1_epi8(0xf);
                let even = _mm512_and_si512(stored, low_bits);
                let odd = _mm512_and_si512(_mm512_srli_epi16::<4>(stored), low_bits);
                for numbers in [even, odd] {
                    squares = _mm512_dpbusd_epi32(squares, numbers, numbers);
                    sums = _mm512_dpbusd_epi32(sums, numbers, ones);
                    if let Some(to) = to.next() {
                        // SAFETY: `to` has as many bytes as the vector.
                        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), numbers) };
                    }
                }
            }
            _ => {
                let numbers = _mm512_xor_si512(stored, _mm512_set1_epi8(i8::MIN));
                squares = _mm512_dpbusd_epi32(squares, numbers, stored);
                sums = _mm512_dpbusd_epi32(sums, ones, stored);
                if let Some(to) = to.next() {
                    // SAFETY: `to` has as many bytes as the vector.
                    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), numbers) };
                }
            }
        }
    }
    let (squares, sums) = (_mm512_reduce_add_epi32(squares), _mm512_reduce_add_epi32(sums));
    let offset = offset(dtype);
    match dtype {
        // The sum of (n - 8)^2 over the stored numbers n.
        TableDtype::Int4 => squares - 2 * offset * sums + offset * offset * dimensions as i32,
        // The sum of (x + 128) x, without 128 x.
        _ => squares - offset * sums,
    }
}

/// Multiplies [`ROWS`] unpacked rows with the packed rows of one pass.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn pass_of<const BLOCKS: usize>(pass: &Pass, unpacked: Unpacked<'_>, products: &mut Products<'_>) {
    let mut sums = [[_mm512_setzero_si512(); BLOCKS]; ROWS];
    let groups = (unpacked.bytes / 4).min(pass.numbers.len() / (BLOCKS * LANES));
    if unpacked.numbers.len() < ROWS * unpacked.bytes {
        return;
    }
    let (rows, numbers) = (unpacked.numbers.as_ptr(), pass.numbers.as_ptr());
    for group in 0..groups {
        let mut columns = [_mm512_setzero_si512(); BLOCKS];
        for (block, column) in columns.iter_mut().enumerate() {
            // SAFETY: `groups` is at most the number of groups in `numbers`, each of which has `BLOCKS * LANES` numbers.
            *column = unsafe { _mm512_loadu_si512(numbers.add((group * BLOCKS + block) * LANES).cast()) };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `unpacked` has `ROWS` rows of `unpacked.bytes` bytes, of which there are four for each group.
            let four = unsafe { rows.add(row * unpacked.bytes + group * 4).cast::<i32>().read_unaligned() };
            let four = _mm512_set1_epi32(four);
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = _mm512_dpbusd_epi32(*sum, four, column);
            }
        }
    }
    for (sums, out) in sums.iter().zip(products.numbers.chunks_mut(products.width.max(1))) {
        let out = out.get_mut(products.first..products.first + BLOCKS * LANES).unwrap_or_default();
        for ((sum, excess), out) in
            sums.iter().zip(pass.excess.as_chunks::<LANES>().0).zip(out.as_chunks_mut::<LANES>().0)
        {
            // SAFETY: `excess` and `out` have `LANES` numbers, as the vector has.
            unsafe {
                let excess = _mm512_loadu_si512(excess.as_ptr().cast());
                _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtepi32_ps(_mm512_sub_epi32(*sum, excess)));
            }
        }
    }
}
