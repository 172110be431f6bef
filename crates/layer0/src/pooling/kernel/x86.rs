//! Kernels for AVX-512 and AVX2. The kernel is chosen at run time.

#![allow(unsafe_code)] // Vector loads and stores take pointers.

use std::arch::x86_64::*;

use super::floats::{self, Lanes, PackedVectors};
use super::integers::{self, LANES};
use super::passes::{self, Passes, Similarity};
use super::{GROUP, Group, Kernel, signs};
use crate::table::TableDtype;
use layer0_tokenizers::prefetch::prefetch;

/// Returns the kernels that this CPU can run, fastest first.
pub(super) fn available() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    if is_x86_feature_detected!("avx512f") {
        // Every CPU with AVX-512 has AVX2.
        let integers = super::vnni::available().unwrap_or_else(super::avx2::integers);
        kernels.push(avx512::kernel(integers));
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        kernels.push(avx2::kernel(super::avx2::integers()));
    }
    kernels
}

const PAIRS: &[TableDtype] = &[TableDtype::Bf16, TableDtype::Int4];

/// Defines the module of one instruction set from its vector loads, additions and decoders.
macro_rules! instruction_set {
    (
        $name:ident, $features:literal, $lanes:literal x $vector:ty,
        $zero:ident, $splat:ident, $load:ident, $store:ident, $plus:ident, $fma:ident,
        interleave |$even:ident, $odd:ident| $interleave:expr,
        $($dtype:ident $columns:ident $bits:literal |$at:ident| $decode:expr),+
    ) => {
        mod $name {
            use super::*;

            /// The number of columns of one step: two vectors.
            const BLOCK: usize = 2 * $lanes;

            /// Returns the kernel. Only a CPU with the features may use it.
            pub(super) fn kernel(integers: integers::Multiply) -> Kernel {
                // SAFETY: the caller has found these CPU features.
                let floats = |packed: &PackedVectors, rows: &[f32], products: &mut [f32]| unsafe {
                    float_products(packed, rows, products);
                };
                Kernel { name: stringify!($name), pairs: PAIRS, add, passes: PASSES, integers: Some(integers), floats }
            }

            /// The number of rows that are multiplied at a time. Their sums are half of the vector registers.
            const ROWS: usize = $lanes / 2;
            const VECTORS: usize = LANES / $lanes;

            #[target_feature(enable = $features)]
            fn float_products(packed: &PackedVectors, rows: &[f32], products: &mut [f32]) {
                floats::in_groups::<ROWS>(packed, rows, products, |columns, rows| block_of(columns, rows));
            }

            /// Multiplies [`ROWS`] rows with the packed vectors of one block.
            #[target_feature(enable = $features)]
            fn block_of(columns: &[Lanes], rows: [&[f32]; ROWS]) -> [Lanes; ROWS] {
                let mut sums = [[$zero(); VECTORS]; ROWS];
                let count = rows.iter().map(|row| row.len()).fold(columns.len(), usize::min);
                let (columns, rows) = (columns.as_ptr().cast::<f32>(), rows.map(<[f32]>::as_ptr));
                for column in 0..count {
                    // SAFETY: `count` is at most the number of columns, of which each has `LANES` numbers, and the length of each row.
                    unsafe {
                        for vector in 0..VECTORS {
                            let numbers = $load(columns.add(column * LANES + vector * $lanes));
                            for (sums, row) in sums.iter_mut().zip(rows) {
                                if let Some(sum) = sums.get_mut(vector) {
                                    *sum = $fma($splat(*row.add(column)), numbers, *sum);
                                }
                            }
                        }
                    }
                }
                let mut products = [[0.0; LANES]; ROWS];
                for (products, sums) in products.iter_mut().zip(sums) {
                    for (to, sum) in products.as_chunks_mut::<$lanes>().0.iter_mut().zip(sums) {
                        // SAFETY: `to` has as many numbers as the vector.
                        unsafe { $store(to.as_mut_ptr(), sum) };
                    }
                }
                products
            }

            const PASSES: Passes = {
                #[target_feature(enable = $features)]
                fn order(sums: &mut [f32]) {
                    for block in sums.as_chunks_mut::<BLOCK>().0 {
                        let to = block.as_mut_ptr();
                        // SAFETY: a block is two vectors.
                        unsafe {
                            let ($even, $odd) = ($load(to), $load(to.add($lanes)));
                            let (first, second) = $interleave;
                            $store(to, first);
                            $store(to.add($lanes), second);
                        }
                    }
                }
                #[target_feature(enable = $features)]
                fn weigh(sums: &mut [f32], weights: &[f32], share: f32) {
                    passes::weigh(sums, weights, share);
                }
                #[target_feature(enable = $features)]
                fn squares(numbers: &[f32]) -> f64 {
                    passes::squares(numbers)
                }
                #[target_feature(enable = $features)]
                fn scale(numbers: &mut [f32], factor: f32) {
                    passes::scale(numbers, factor);
                }
                #[target_feature(enable = $features)]
                fn add_signs(ids: &[u32], lengths: &[f32], sums: &mut [f32]) {
                    signs::add_signs(ids, lengths, sums);
                }
                #[target_feature(enable = $features)]
                fn similarities(row: &[f32], by: &Similarity<'_>, out: &mut [f32]) -> bool {
                    passes::similarities(row, by, out)
                }
                #[target_feature(enable = $features)]
                fn add_rows(indices: &[u32], rows: &[Lanes], sums: &mut [Lanes]) {
                    passes::add_rows(indices, rows, sums);
                }
                Passes {
                    // SAFETY: `available` has found these CPU features.
                    order: |sums| unsafe { order(sums) },
                    // SAFETY: as above.
                    weigh: |sums, weights, share| unsafe { weigh(sums, weights, share) },
                    // SAFETY: as above.
                    squares: |numbers| unsafe { squares(numbers) },
                    // SAFETY: as above.
                    scale: |numbers, factor| unsafe { scale(numbers, factor) },
                    // SAFETY: as above.
                    add_signs: |ids, lengths, sums| unsafe { add_signs(ids, lengths, sums) },
                    // SAFETY: as above.
                    similarities: |row, by, out| unsafe { similarities(row, by, out) },
                    // SAFETY: as above.
                    add_rows: |indices, rows, sums| unsafe { add_rows(indices, rows, sums) },
                }
            };

            fn add(dtype: TableDtype, group: &Group<'_>, sums: &mut [f32]) -> usize {
                let blocks = sums.len() / BLOCK;
                match dtype {
                    // SAFETY: `available` has found these CPU features. The rows of a group are as long as `sums`.
                    $(TableDtype::$dtype => unsafe {
                        match group.count {
                            0 => {}
                            1 => $columns::<1>(group, blocks, sums),
                            2 => $columns::<2>(group, blocks, sums),
                            3 => $columns::<3>(group, blocks, sums),
                            4 => $columns::<4>(group, blocks, sums),
                            5 => $columns::<5>(group, blocks, sums),
                            6 => $columns::<6>(group, blocks, sums),
                            7 => $columns::<7>(group, blocks, sums),
                            _ => $columns::<GROUP>(group, blocks, sums),
                        }
                    })+
                }
                blocks * BLOCK
            }

            $(
                /// Adds the first `ROWS` rows, over `blocks` blocks.
                ///
                /// # Safety
                /// The CPU has the features; the first `ROWS` rows of `group` and `sums` are `blocks` blocks long.
                #[target_feature(enable = $features)]
                unsafe fn $columns<const ROWS: usize>(group: &Group<'_>, blocks: usize, sums: &mut [f32]) {
                    let mut scales = [$zero(); ROWS];
                    for (vector, scale) in scales.iter_mut().zip(group.scales) {
                        *vector = $splat(scale);
                    }
                    let sums = sums.as_mut_ptr();
                    for block in 0..blocks {
                        let offset = block * BLOCK * $bits / 8;
                        let (mut low, mut high) = ($zero(), $zero());
                        for (row, scale) in group.rows.iter().zip(scales) {
                            // SAFETY: the block lies within the row.
                            let (a, b) = unsafe {
                                let $at = row.as_ptr().add(offset);
                                $decode
                            };
                            low = $fma(a, scale, low);
                            high = $fma(b, scale, high);
                        }
                        for row in group.ahead {
                            // Two blocks request each cache line: the CPU drops prefetches when many are in flight.
                            prefetch(row, offset);
                            if BLOCK * $bits / 8 >= 64 {
                                prefetch(row, offset + 64);
                            }
                        }
                        // SAFETY: the block lies within the sums.
                        unsafe {
                            let to = sums.add(block * BLOCK);
                            $store(to, $plus($load(to), low));
                            $store(to.add($lanes), $plus($load(to.add($lanes)), high));
                        }
                    }
                }
            )+
        }
    };
}

instruction_set! {
    avx512, "avx512f", 16 x __m512,
    _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps,
    interleave |even, odd| {
        // 16 and more are numbers of `odd`.
        let first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        (_mm512_permutex2var_ps(even, first, odd), _mm512_permutex2var_ps(even, second, odd))
    },
    Bf16 bf16 16 |at| {
        let pairs = _mm512_loadu_si512(at.cast());
        let even = _mm512_slli_epi32::<16>(pairs);
        let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
        (_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd))
    },
    F16 f16 16 |at| (
        _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
        _mm512_cvtph_ps(_mm256_loadu_si256(at.add(32).cast()))
    ),
    F32 f32 32 |at| (_mm512_loadu_ps(at.cast()), _mm512_loadu_ps(at.add(64).cast())),
    Int8 int8 8 |at| (
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))),
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.add(16).cast())))
    ),
    Int4 int4 4 |at| {
        // Each lane's low four bits choose its number.
        let numbers = _mm512_set_ps(7., 6., 5., 4., 3., 2., 1., 0., -1., -2., -3., -4., -5., -6., -7., -8.);
        let pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
        (_mm512_permutexvar_ps(pairs, numbers), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(pairs), numbers))
    }
}

instruction_set! {
    avx2, "avx2,fma,f16c", 8 x __m256,
    _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_fmadd_ps,
    interleave |even, odd| {
        let (low, high) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
        (_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
    },
    Bf16 bf16 16 |at| {
        let pairs = _mm256_loadu_si256(at.cast());
        let even = _mm256_slli_epi32::<16>(pairs);
        let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
        (_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd))
    },
    F16 f16 16 |at| (
        _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
        _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast()))
    ),
    F32 f32 32 |at| (_mm256_loadu_ps(at.cast()), _mm256_loadu_ps(at.add(32).cast())),
    Int8 int8 8 |at| (
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(8).cast())))
    ),
    Int4 int4 4 |at| {
        let pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
        let even = _mm256_and_si256(pairs, _mm256_set1_epi32(0xf));
        let (odd, offset) = (_mm256_srli_epi32::<4>(pairs), _mm256_set1_epi32(8));
        (_mm256_cvtepi32_ps(_mm256_sub_epi32(even, offset)), _mm256_cvtepi32_ps(_mm256_sub_epi32(odd, offset)))
    }
}
