//! Products of rows of integers by AVX-512 VNNI, for CPUs that have it.

#![allow(unsafe_code)] // Vector loads and stores take pointers.

use std::arch::x86_64::*;

use super::integers::{CHUNK, LANES, Multiply, PackedRows, Pass, offset};
use crate::table::TableDtype;
use layer0_tokenizers::prefetch::prefetch;

/// The number of rows that are multiplied at a time, so that each packed number is loaded once for all of them.
const ROWS: usize = 4;

/// Returns the function if this CPU can run it.
pub(super) fn available() -> Option<Multiply> {
    let found = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni");
    // SAFETY: the CPU has the features.
    found.then_some(|packed, rows, products, squares| unsafe { multiply(packed, rows, products, squares) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply(packed: &PackedRows, rows: &[&[u8]], products: &mut [i32], squares: &mut [i32]) {
    let width = packed.width();
    let stored = packed.dtype.row_bytes(packed.dimensions).unwrap_or_default();
    let chunks = stored.div_ceil(CHUNK);
    let unpacked_bytes = if packed.dtype == TableDtype::Int4 { 2 * CHUNK * chunks } else { CHUNK * chunks };
    let mut unpacked = vec![0u8; ROWS * unpacked_bytes];
    let mut groups = rows.chunks(ROWS);
    let mut next = groups.next();
    let outputs = products.chunks_mut(ROWS * width.max(1)).zip(squares.chunks_mut(ROWS));
    for (products, squares) in outputs {
        let Some(group) = next else { return };
        next = groups.next();
        for row in next.unwrap_or_default() {
            for line in (0..row.len()).step_by(64) {
                prefetch(row, line);
            }
        }
        for ((row, unpacked), square) in group.iter().zip(unpacked.chunks_mut(unpacked_bytes.max(1))).zip(squares) {
            *square = unpack(packed.dtype, packed.dimensions, row.get(..stored).unwrap_or_default(), unpacked);
        }
        let mut first = 0;
        for pass in &packed.passes {
            match pass.blocks {
                1 => pass_of::<1>(pass, &unpacked, unpacked_bytes, products, width, first),
                _ => pass_of::<2>(pass, &unpacked, unpacked_bytes, products, width, first),
            }
            first += pass.blocks * LANES;
        }
    }
}

/// Writes the numbers of a row as unsigned bytes, in the order of [`super::integers`]. Returns the sum of their squares.
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

/// Multiplies [`ROWS`] unpacked rows with the packed rows of one pass. Writes the products of as many rows as `products` has, from the lane
/// `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn pass_of<const BLOCKS: usize>(
    pass: &Pass,
    unpacked: &[u8],
    unpacked_bytes: usize,
    products: &mut [i32],
    width: usize,
    first: usize,
) {
    let mut sums = [[_mm512_setzero_si512(); BLOCKS]; ROWS];
    let groups = (unpacked_bytes / 4).min(pass.numbers.len() / (BLOCKS * LANES));
    if unpacked.len() < ROWS * unpacked_bytes {
        return;
    }
    let (rows, numbers) = (unpacked.as_ptr(), pass.numbers.as_ptr());
    for group in 0..groups {
        let mut columns = [_mm512_setzero_si512(); BLOCKS];
        for (block, column) in columns.iter_mut().enumerate() {
            // SAFETY: `groups` is at most the number of groups in `numbers`, each of which has `BLOCKS * LANES` numbers.
            *column = unsafe { _mm512_loadu_si512(numbers.add((group * BLOCKS + block) * LANES).cast()) };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `unpacked` has `ROWS` rows of `unpacked_bytes` bytes, of which there are four for each group.
            let four = unsafe { rows.add(row * unpacked_bytes + group * 4).cast::<i32>().read_unaligned() };
            let four = _mm512_set1_epi32(four);
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = _mm512_dpbusd_epi32(*sum, four, column);
            }
        }
    }
    for (sums, products) in sums.iter().zip(products.chunks_mut(width.max(1))) {
        let products = products.get_mut(first..first + BLOCKS * LANES).unwrap_or_default();
        for ((sum, excess), products) in
            sums.iter().zip(pass.excess.as_chunks::<LANES>().0).zip(products.as_chunks_mut::<LANES>().0)
        {
            // SAFETY: `excess` and `products` have `LANES` numbers, as the vector has.
            unsafe {
                let excess = _mm512_loadu_si512(excess.as_ptr().cast());
                _mm512_storeu_si512(products.as_mut_ptr().cast(), _mm512_sub_epi32(*sum, excess));
            }
        }
    }
}
