//! Classifies the bytes of a text 64 at a time.

// The only unsafe operation is a call of vector instructions that every x86-64 processor has.
#![allow(unsafe_code)]

/// The classes of 64 bytes, with a bit for each byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Classes {
    /// The letters of ASCII.
    pub letters: u64,
    /// The upper-case letters of ASCII, if they were asked for.
    pub upper: u64,
    /// The bytes that are not ASCII.
    pub others: u64,
}

impl Classes {
    /// Classifies a block. `upper` is only set with `by_case`.
    #[inline]
    pub fn of(block: &[u8; 64], by_case: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the function needs SSE2, which is a part of x86-64.
        return unsafe { sse2(block, by_case) };
        #[cfg(not(target_arch = "x86_64"))]
        portable(block, by_case)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
fn sse2(block: &[u8; 64], by_case: bool) -> Classes {
    use std::arch::x86_64::{
        _mm_add_epi8, _mm_cmpgt_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x, _mm_set1_epi8,
    };
    let mut classes = Classes::default();
    for (at, part) in block.as_chunks::<16>().0.iter().enumerate() {
        let [low, high] = *part.as_chunks().0 else { continue };
        let bytes = _mm_set_epi64x(i64::from_le_bytes(high), i64::from_le_bytes(low));
        let mask = |bytes| u64::from(_mm_movemask_epi8(bytes) as u32) << (16 * at);
        // The sum is the least signed byte for the letter A, and 25 more for Z.
        let is_letter = |bytes, a: u8| {
            let from_a = _mm_add_epi8(bytes, _mm_set1_epi8(0x80_u8.wrapping_sub(a) as i8));
            mask(_mm_cmpgt_epi8(_mm_set1_epi8(i8::MIN + 26), from_a))
        };
        classes.letters |= is_letter(_mm_or_si128(bytes, _mm_set1_epi8(0x20)), b'a');
        if by_case {
            classes.upper |= is_letter(bytes, b'A');
        }
        classes.others |= mask(bytes);
    }
    classes
}

#[cfg(any(test, not(target_arch = "x86_64")))]
#[inline]
fn portable(block: &[u8; 64], by_case: bool) -> Classes {
    let mask = |is: fn(u8) -> bool| {
        let mut mask = 0;
        for (at, eight) in block.map(|byte| u8::from(is(byte))).as_chunks::<8>().0.iter().enumerate() {
            // The product moves the lowest bit of each byte to the highest byte.
            mask |= (u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * at);
        }
        mask
    };
    Classes {
        letters: mask(|byte| byte.is_ascii_alphabetic()),
        upper: if by_case { mask(|byte| byte.is_ascii_uppercase()) } else { 0 },
        others: if block.is_ascii() { 0 } else { mask(|byte| byte >= 0x80) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_its_classes_at_every_place() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..2_000 {
            let block: [u8; 64] = std::array::from_fn(|_| rng.u8(..));
            for by_case in [false, true] {
                let bits = |is: fn(&u8) -> bool| (0..64).fold(0, |bits, at| bits | u64::from(is(&block[at])) << at);
                let expected = Classes {
                    letters: bits(u8::is_ascii_alphabetic),
                    upper: if by_case { bits(u8::is_ascii_uppercase) } else { 0 },
                    others: bits(|byte| *byte >= 0x80),
                };
                assert_eq!(Classes::of(&block, by_case), expected, "{block:?}");
                assert_eq!(portable(&block, by_case), expected, "{block:?}");
            }
        }
    }
}
