//! The kernel for NEON, which every 64-bit Arm CPU has.

#![allow(unsafe_code)] // Vector loads and stores take pointers.

use std::arch::aarch64::*;

use super::floats::{self, Lanes, PackedVectors};
use super::integers::{LANES, PackedRows, Pass, Products, Unpacked, in_groups, unpack};
use super::passes::{self, Passes};
use super::{Group, Kernel};
use crate::table::TableDtype;

/// The number of columns of one step: two vectors.
const BLOCK: usize = 8;

pub(super) fn available() -> Vec<Kernel> {
    let passes = Passes { order, ..passes::PORTABLE };
    vec![Kernel {
        name: "neon",
        pairs: &[TableDtype::Bf16],
        add,
        passes,
        integers: Some(integer_products),
        floats: float_products,
    }]
}

fn order(sums: &mut [f32]) {
    for block in sums.as_chunks_mut::<BLOCK>().0 {
        // SAFETY: a block is two vectors, each a half of what `vst2q_f32` writes in turns.
        unsafe {
            let halves = float32x4x2_t(vld1q_f32(block.as_ptr()), vld1q_f32(block.as_ptr().add(4)));
            vst2q_f32(block.as_mut_ptr(), halves);
        }
    }
}

/// f16 and integers are left to the portable loop: its conversion is not in stable Rust on Arm.
fn add(dtype: TableDtype, group: &Group<'_>, sums: &mut [f32]) -> usize {
    let blocks = sums.len() / BLOCK;
    // SAFETY: the rows of a group are as long as `sums`.
    unsafe {
        match dtype {
            TableDtype::Bf16 => columns(group, 2, blocks, sums, |at| {
                let pairs = vld1q_u32(at.cast());
                let even = vshlq_n_u32::<16>(pairs);
                let odd = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
                (vreinterpretq_f32_u32(even), vreinterpretq_f32_u32(odd))
            }),
            TableDtype::F32 => {
                columns(group, 4, blocks, sums, |at| (vld1q_f32(at.cast()), vld1q_f32(at.add(16).cast())));
            }
            TableDtype::F16 | TableDtype::Int8 | TableDtype::Int4 => return 0,
        }
    }
    blocks * BLOCK
}

/// # Safety
/// The rows of `group` and `sums` are `blocks` blocks long.
#[inline(always)]
unsafe fn columns(
    group: &Group<'_>,
    size: usize,
    blocks: usize,
    sums: &mut [f32],
    decode: impl Fn(*const u8) -> (float32x4_t, float32x4_t),
) {
    let sums = sums.as_mut_ptr();
    for block in 0..blocks {
        // SAFETY: the block lies within the rows and the sums.
        unsafe {
            let (mut low, mut high) = (vdupq_n_f32(0.0), vdupq_n_f32(0.0));
            for (row, scale) in group.rows() {
                let (a, b) = decode(row.as_ptr().add(block * BLOCK * size));
                low = vfmaq_n_f32(low, a, scale);
                high = vfmaq_n_f32(high, b, scale);
            }
            let to = sums.add(block * BLOCK);
            vst1q_f32(to, vaddq_f32(vld1q_f32(to), low));
            vst1q_f32(to.add(4), vaddq_f32(vld1q_f32(to.add(4)), high));
        }
    }
}

/// The number of vectors that hold a number for each lane.
const VECTORS: usize = LANES / 4;
/// The number of rows of integers that are multiplied at a time. Their sums are half of the vector registers.
const INTEGER_ROWS: usize = 2;
/// The number of rows of floats that are multiplied at a time. Their sums are half of the vector registers.
const FLOAT_ROWS: usize = 4;

fn integer_products(packed: &PackedRows, rows: &[&[u8]], products: &mut [f32], squares: &mut [i32]) {
    let unpack = |row: &[u8], out: &mut [u8]| unpack(packed.dtype(), row, out);
    in_groups::<INTEGER_ROWS>(packed, rows, products, squares, unpack, |pass, unpacked, products| {
        for block in 0..pass.blocks {
            integer_block(pass, block, unpacked, products);
        }
    });
}

/// Multiplies [`INTEGER_ROWS`] unpacked rows with the packed rows of one block of [`LANES`].
///
/// NEON multiplies signed bytes. The unsigned bytes of int4 are below 16, so they are signed as well, and the excess is subtracted at the
/// end. An int8 is turned back into the signed number, whose products have no excess.
fn integer_block(pass: &Pass, block: usize, unpacked: Unpacked<'_>, products: &mut Products<'_>) {
    let groups = (unpacked.bytes / 4).min(pass.numbers.len() / (pass.blocks * LANES));
    if unpacked.numbers.len() < INTEGER_ROWS * unpacked.bytes || block >= pass.blocks {
        return;
    }
    let is_int4 = unpacked.dtype == TableDtype::Int4;
    let signs = if is_int4 { 0 } else { 0x8080_8080 };
    let (rows, numbers) = (unpacked.numbers.as_ptr(), pass.numbers.as_ptr());
    // SAFETY: a group below `groups` has `pass.blocks * LANES` packed numbers, and four bytes of each of the rows. Every 64-bit Arm CPU has
    // NEON.
    let sums = unsafe {
        // Two sums for each lane: that of the first two of four columns, and that of the other two.
        let mut sums = [[[vdupq_n_s32(0); 2]; VECTORS]; INTEGER_ROWS];
        for group in 0..groups {
            for vector in 0..VECTORS {
                let packed = numbers.add((group * pass.blocks + block) * LANES + vector * 4);
                let packed = vld1q_s8(packed.cast());
                for (row, sums) in sums.iter_mut().enumerate() {
                    let four = rows.add(row * unpacked.bytes + group * 4).cast::<u32>().read_unaligned() ^ signs;
                    let four = vreinterpretq_s8_u32(vdupq_n_u32(four));
                    if let Some([low, high]) = sums.get_mut(vector) {
                        *low = vpadalq_s16(*low, vmull_s8(vget_low_s8(four), vget_low_s8(packed)));
                        *high = vpadalq_s16(*high, vmull_high_s8(four, packed));
                    }
                }
            }
        }
        sums.map(|sums| sums.map(|[low, high]| vpaddq_s32(low, high)))
    };
    let first = products.first + block * LANES;
    let excess = pass.excess.as_chunks::<LANES>().0.get(block).filter(|_| is_int4).unwrap_or(&[0; LANES]);
    for (sums, out) in sums.iter().zip(products.numbers.chunks_mut(products.width.max(1))) {
        let out = out.get_mut(first..first + LANES).unwrap_or_default();
        for ((sum, excess), out) in sums.iter().zip(excess.as_chunks::<4>().0).zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: `excess` and `out` have 4 numbers, as the vector has.
            unsafe { vst1q_f32(out.as_mut_ptr(), vcvtq_f32_s32(vsubq_s32(*sum, vld1q_s32(excess.as_ptr())))) };
        }
    }
}

fn float_products(packed: &PackedVectors, rows: &[f32], products: &mut [f32]) {
    floats::in_groups::<FLOAT_ROWS>(packed, rows, products, float_block);
}

/// Multiplies [`FLOAT_ROWS`] rows with the packed vectors of one block.
fn float_block(columns: &[Lanes], rows: [&[f32]; FLOAT_ROWS]) -> [Lanes; FLOAT_ROWS] {
    let mut products = [[0.0; LANES]; FLOAT_ROWS];
    let count = rows.iter().map(|row| row.len()).fold(columns.len(), usize::min);
    let (columns, rows) = (columns.as_ptr().cast::<f32>(), rows.map(<[f32]>::as_ptr));
    // SAFETY: `count` is at most the number of columns, of which each has `LANES` numbers, and the length of each row. `products` has
    // `LANES` numbers for each row. Every 64-bit Arm CPU has NEON.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); VECTORS]; FLOAT_ROWS];
        for column in 0..count {
            for vector in 0..VECTORS {
                let numbers = vld1q_f32(columns.add(column * LANES + vector * 4));
                for (sums, row) in sums.iter_mut().zip(rows) {
                    if let Some(sum) = sums.get_mut(vector) {
                        *sum = vfmaq_n_f32(*sum, numbers, *row.add(column));
                    }
                }
            }
        }
        for (products, sums) in products.iter_mut().zip(sums) {
            for (to, sum) in products.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
                vst1q_f32(to.as_mut_ptr(), sum);
            }
        }
    }
    products
}
