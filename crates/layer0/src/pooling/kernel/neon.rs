//! The kernel for NEON, which every 64-bit Arm CPU has.

#![allow(unsafe_code)] // Vector loads and stores take pointers.

use std::arch::aarch64::*;

use super::passes::{self, Passes};
use super::{Group, Kernel};
use crate::table::TableDtype;

/// The number of columns of one step: two vectors.
const BLOCK: usize = 8;

pub(super) fn available() -> Vec<Kernel> {
    let passes = Passes { order, ..passes::PORTABLE };
    vec![Kernel { name: "neon", pairs: &[TableDtype::Bf16], add, passes, integers: None }]
}

fn order(sums: &mut [f32]) {
    for block in sums.as_chunks_mut::<BLOCK>().0 {
        // SAFETY: a block is two vectors, each a half of what `vst2q_f32` writes in turns.
        unsafe {
            vst2q_f32(block.as_mut_ptr(), float32x4x2_t(vld1q_f32(block.as_ptr()), vld1q_f32(block.as_ptr().add(4))))
        };
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
