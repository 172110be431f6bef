//! Writes sixteen numbers at a time with AVX-512 (VBMI2: Ice Lake, Zen 4 and later).
//!
//! Each number gets a slot of 16 bytes, `,-0.0000dddddddd`. The bytes that a number does not need are removed from four slots at
//! once.

// The unsafe operations are loads and stores of vectors. Each one is justified where it is.
#![allow(unsafe_code)]
// Only constants index here, at compile time.
#![allow(clippy::indexing_slicing)]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::tables::{BOUNDS, Binade, Class};

/// The number of numbers in a block.
const BLOCK: usize = 16;
/// The largest number of bytes of a block, and the bytes beyond them that its last store may overwrite.
const ROOM: usize = BLOCK * 16 + 64;

/// Proof that the CPU has the instructions that are used here.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("popcnt");
        has.then_some(Self(()))
    }

    /// Appends `,` and each number of `block`. Appends nothing and returns false if a number is outside of the classes that have
    /// a slot.
    pub fn append(self, out: &mut Vec<u8>, block: &[f32; BLOCK]) -> bool {
        out.reserve(ROOM);
        let Some(room) = out.spare_capacity_mut().first_chunk_mut() else { return false };
        // SAFETY: `detect` found what `write` needs, and there is no other way to `self`.
        let Some(written) = (unsafe { write(block, room) }) else { return false };
        // SAFETY: `write` has initialized that many bytes behind the length, within the capacity.
        unsafe { out.set_len(out.len() + written) };
        true
    }
}

/// The classes that have a slot: all except the smallest, whose nine digits come after four zeros.
const LEAST: usize = 2;

/// Lane 4k + i holds number 4i + k, so that the unpacking below leaves four neighbours in each register.
const TRANSPOSED: [u32; BLOCK] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];

/// By the low four bits of the exponent, which tell the binades from 2^-16 to 1 apart.
const BINADES: ([f32; 16], [u32; 16]) = {
    let mut table = ([0.0; 16], [0; 16]);
    let mut exponent = 111;
    while exponent < 127 {
        let binade = Binade::new(exponent);
        let at = (exponent & 15) as usize;
        table.0[at] = binade.bound;
        table.1[at] = binade.begun as u32;
        exponent += 1;
    }
    table
};

/// By half the class: what brings its numbers to eight or nine digits.
const SCALES: [f64; 8] = {
    let mut scales = [0.0; 8];
    let mut class = LEAST;
    while class <= BOUNDS.len() {
        scales[class / 2] = Class::new(class).scale();
        class += 1;
    }
    scales
};

/// By the class, and 16 more for negative numbers: which bytes of its slot a number has.
const KEPT: [u16; 32] = {
    let mut kept = [0; 32];
    let mut class = LEAST;
    while class <= BOUNDS.len() {
        let of = Class::new(class);
        let zeros = ((1 << of.zeros) - 1) << 4;
        // The ninth digit, the first of all, stands where the fourth zero does.
        let ninth = (of.digits as u16 - 8) << 7;
        kept[class] = 0xff00 | 0b1101 | zeros | ninth;
        kept[class + 16] = kept[class] | 0b0010;
        class += 1;
    }
    kept
};

/// Writes `,` and each number of the block to `out`, and returns how many bytes that is.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,popcnt")]
fn write(numbers: &[f32; BLOCK], out: &mut [MaybeUninit<u8>; ROOM]) -> Option<usize> {
    // SAFETY: 64 bytes are read of arrays of 64 bytes.
    let (x, transposed, bounds, begun, scales, kept) = unsafe {
        (
            _mm512_loadu_ps(numbers.as_ptr()),
            _mm512_loadu_epi32(TRANSPOSED.as_ptr().cast()),
            _mm512_loadu_ps(BINADES.0.as_ptr()),
            _mm512_loadu_epi32(BINADES.1.as_ptr().cast()),
            _mm512_loadu_pd(SCALES.as_ptr()),
            _mm512_loadu_epi16(KEPT.as_ptr().cast()),
        )
    };
    let x = _mm512_permutexvar_ps(transposed, x);
    let size = _mm512_abs_ps(x);
    let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(size, _mm512_set1_ps(BOUNDS[LEAST - 1]));
    let usual = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(size, _mm512_set1_ps(1.0));
    if usual & !small != u16::MAX {
        return None;
    }

    let bits = _mm512_castps_si512(size);
    let binade = _mm512_srli_epi32::<23>(bits);
    let bound = _mm512_permutexvar_ps(binade, bounds);
    let begun = _mm512_permutexvar_epi32(binade, begun);
    let over = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size, bound);
    let class = _mm512_mask_add_epi32(begun, over, begun, _mm512_set1_epi32(1));
    let negative = _mm512_srli_epi32::<31>(_mm512_castps_si512(x));

    let half = _mm512_srli_epi32::<1>(class);
    let integers = |size: __m256, half: __m256i| {
        let scale = _mm512_permutexvar_pd(_mm512_cvtepu32_epi64(half), scales);
        _mm512_cvtpd_epu32(_mm512_mul_pd(_mm512_cvtps_pd(size), scale))
    };
    let low = integers(_mm512_castps512_ps256(size), _mm512_castsi512_si256(half));
    let high = integers(_mm512_extractf32x8_ps::<1>(size), _mm512_extracti32x8_epi32::<1>(half));
    let n = _mm512_inserti32x8::<1>(_mm512_castsi256_si512(low), high);

    // Numbers of nine digits begin with 1, or, on the bound, round to eight digits after a 0.
    let hundred_million = _mm512_set1_epi32(100_000_000);
    let ones = _mm512_cmpge_epu32_mask(n, hundred_million);
    let n = _mm512_mask_sub_epi32(n, ones, n, hundred_million);

    // Into fours, twos, ones. n / 10^4 is n * ceil(2^45 / 10^4) >> 45 for every u32 (Granlund and Montgomery 1994).
    let reciprocal = _mm512_set1_epi64(3_518_437_209);
    let even = _mm512_srli_epi64::<45>(_mm512_mul_epu32(n, reciprocal));
    let odd = _mm512_srli_epi64::<45>(_mm512_mul_epu32(_mm512_srli_epi64::<32>(n), reciprocal));
    let first = _mm512_or_si512(even, _mm512_slli_epi64::<32>(odd));
    let last = _mm512_sub_epi32(n, _mm512_madd_epi16(first, _mm512_set1_epi32(10_000)));
    let fours = _mm512_or_si512(first, _mm512_slli_epi32::<16>(last));
    // x / 100 for x < 10^4, and x / 10 for x < 100.
    let hundreds = _mm512_srli_epi16::<3>(_mm512_mulhi_epu16(fours, _mm512_set1_epi16(5243)));
    let rest = _mm512_sub_epi16(fours, _mm512_mullo_epi16(hundreds, _mm512_set1_epi16(100)));
    let digits = |two: __m512i| {
        let tens = _mm512_srli_epi16::<10>(_mm512_mullo_epi16(two, _mm512_set1_epi16(103)));
        // tens + 256 * (two - 10 * tens): the first digit in the first byte.
        _mm512_sub_epi16(_mm512_slli_epi16::<8>(two), _mm512_mullo_epi16(tens, _mm512_set1_epi16(2559)))
    };
    let (a, b) = (digits(hundreds), digits(rest));
    let zeros = _mm512_set1_epi8(b'0' as i8);
    let first_two = _mm512_add_epi8(_mm512_unpacklo_epi16(a, b), zeros);
    let last_two = _mm512_add_epi8(_mm512_unpackhi_epi16(a, b), zeros);

    let prefix = _mm512_set1_epi64(i64::from_le_bytes(*b",-0.0000"));
    let slots = [
        _mm512_unpacklo_epi64(prefix, first_two),
        _mm512_unpackhi_epi64(prefix, first_two),
        _mm512_unpacklo_epi64(prefix, last_two),
        _mm512_unpackhi_epi64(prefix, last_two),
    ];
    let shape = _mm512_or_si512(class, _mm512_slli_epi32::<4>(negative));
    let kept = _mm512_cvtepi32_epi16(_mm512_permutexvar_epi16(shape, kept));
    let kept = _mm256_permutexvar_epi16(_mm512_cvtepi32_epi16(transposed), kept);
    let mut masks = [0u64; 4];
    // SAFETY: 32 bytes are written to an array of 32 bytes.
    unsafe { _mm256_storeu_si256(masks.as_mut_ptr().cast(), kept) };

    let mut written = 0;
    for (i, (slots, mask)) in slots.into_iter().zip(masks).enumerate() {
        let ninth = (ones >> i & 0x1111) << 1;
        let slots = _mm512_mask_add_epi32(slots, ninth, slots, _mm512_set1_epi32(1 << 24));
        let text = _mm512_maskz_compress_epi8(mask, slots);
        // SAFETY: at most 64 bytes were written before for each of at most three groups, and ROOM has 64 for each of four
        // and 64 more.
        unsafe { _mm512_storeu_epi8(out.as_mut_ptr().add(written).cast(), text) };
        written += mask.count_ones() as usize;
    }
    Some(written)
}
