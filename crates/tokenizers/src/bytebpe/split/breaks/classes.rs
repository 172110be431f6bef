//! Classifies the bytes of a text 64 at a time.

// The only unsafe operation is a call of vector instructions that every x86-64 processor has.
#![allow(unsafe_code)]

/// The classes of 64 bytes, with a bit for each byte. Every byte is in one class of [`Classes::letters`], [`Classes::digits`],
/// [`Classes::spaces`], [`Classes::white`], [`Classes::controls`], [`Classes::beyond`] and [`Classes::others`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Classes {
    /// The letters of ASCII.
    pub letters: u64,
    /// The upper-case letters of ASCII, if they were asked for.
    pub upper: u64,
    /// The digits of ASCII.
    pub digits: u64,
    /// The space U+0020.
    pub spaces: u64,
    /// The other white space of ASCII: U+0009 to U+000D.
    pub white: u64,
    /// The other control characters of ASCII.
    pub controls: u64,
    /// The bytes that are not ASCII.
    pub beyond: u64,
    /// The apostrophe, which is also one of `others`.
    pub apostrophes: u64,
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

    /// Returns the visible characters of ASCII that are neither letters nor digits.
    #[inline]
    pub fn others(&self) -> u64 {
        !(self.letters | self.digits | self.spaces | self.white | self.controls | self.beyond)
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn sse2(block: &[u8; 64], by_case: bool) -> Classes {
    use std::arch::x86_64::{
        _mm_add_epi8, _mm_cmpeq_epi8, _mm_cmpgt_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x, _mm_set1_epi8,
    };
    let mut classes = Classes::default();
    for (at, part) in block.as_chunks::<16>().0.iter().enumerate() {
        let [low, high] = *part.as_chunks().0 else { continue };
        let bytes = _mm_set_epi64x(i64::from_le_bytes(high), i64::from_le_bytes(low));
        let mask = |bytes| u64::from(_mm_movemask_epi8(bytes) as u32) << (16 * at);
        // The sum is the least signed byte for `first`, and `count - 1` more for the last byte of the range.
        let in_range = |bytes, first: u8, count: i8| {
            let from_first = _mm_add_epi8(bytes, _mm_set1_epi8(0x80_u8.wrapping_sub(first) as i8));
            _mm_cmpgt_epi8(_mm_set1_epi8(i8::MIN + count), from_first)
        };
        let is = |byte: u8| _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8));
        classes.letters |= mask(in_range(_mm_or_si128(bytes, _mm_set1_epi8(0x20)), b'a', 26));
        if by_case {
            classes.upper |= mask(in_range(bytes, b'A', 26));
        }
        classes.digits |= mask(in_range(bytes, b'0', 10));
        classes.spaces |= mask(is(b' '));
        classes.white |= mask(in_range(bytes, b'\t', 5));
        classes.controls |= mask(_mm_or_si128(in_range(bytes, 0, 0x20), is(0x7f)));
        classes.beyond |= mask(bytes);
        classes.apostrophes |= mask(is(b'\''));
    }
    classes.controls &= !classes.white;
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
    let is_white = |byte: u8| (b'\t'..=b'\r').contains(&byte);
    Classes {
        letters: mask(|byte| byte.is_ascii_alphabetic()),
        upper: if by_case { mask(|byte| byte.is_ascii_uppercase()) } else { 0 },
        digits: mask(|byte| byte.is_ascii_digit()),
        spaces: mask(|byte| byte == b' '),
        white: mask(is_white),
        controls: mask(|byte| byte.is_ascii_control()) & !mask(is_white),
        beyond: if block.is_ascii() { 0 } else { mask(|byte| byte >= 0x80) },
        apostrophes: mask(|byte| byte == b'\''),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_its_classes_at_every_place() {
        let mut rng = fastrand::Rng::with_seed(5);
        for round in 0..2_000 {
            let highest = if round % 2 == 0 { u8::MAX } else { 0x7f };
            let block: [u8; 64] = std::array::from_fn(|_| rng.u8(..=highest));
            for by_case in [false, true] {
                let bits = |is: fn(&u8) -> bool| (0..64).fold(0, |bits, at| bits | u64::from(is(&block[at])) << at);
                let expected = Classes {
                    letters: bits(u8::is_ascii_alphabetic),
                    upper: if by_case { bits(u8::is_ascii_uppercase) } else { 0 },
                    digits: bits(u8::is_ascii_digit),
                    spaces: bits(|byte| *byte == b' '),
                    white: bits(|byte| (9..14).contains(byte)),
                    controls: bits(|byte| byte.is_ascii_control() && !(9..14).contains(byte)),
                    beyond: bits(|byte| *byte >= 0x80),
                    apostrophes: bits(|byte| *byte == b'\''),
                };
                assert_eq!(Classes::of(&block, by_case), expected, "{block:?}");
                assert_eq!(portable(&block, by_case), expected, "{block:?}");
                assert_eq!(expected.others(), bits(u8::is_ascii_punctuation));
            }
        }
    }
}
