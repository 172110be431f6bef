//! Writes f32 numbers as decimals that parse back to the same f32. This is most of the cost of a JSON response.
//!
//! Numbers are written with eight or nine significant digits instead of the fewest possible. This is several times faster, and no
//! longer on average. Adjacent f32 numbers differ by at least 2^-24 (5.9e-8) of their size. Rounding to nine digits changes a
//! number by at most 5e-9 of its size. Numbers whose first digit is 2 or more are rounded to eight digits, which changes them by
//! at most 2.5e-8 of their size. Both are less than half of the difference to the next f32, so the decimal parses back to the
//! same number.
//!
//! For example, the f32 closest to 0.1 is 0.100000001490116. Its first digit is 1, so it gets nine digits: `|x| * 10^9` rounds to
//! 100000001, which is written `0.100000001`. The f32 closest to 0.3 is 0.300000011920929. Its first digit is 3, so it gets eight
//! digits: `|x| * 10^8` rounds to 30000001, which is written `0.30000001`. The product is computed in f64, whose error is below
//! 1e-15.

mod tables;
#[cfg(target_arch = "x86_64")]
mod x86;

use layer0::OutputDtype;
use tables::{BINADES, FIRST_BINADE, FOUR_DIGITS, SHAPES};

/// Appends the numbers as a JSON array. The numbers must be finite.
pub fn array(out: &mut Vec<u8>, numbers: &[f32]) {
    let begin = out.len();
    after_commas(out, numbers);
    match out.get_mut(begin) {
        Some(comma) => *comma = b'[',
        None => out.push(b'['),
    }
    out.push(b']');
}

/// Appends the numbers of a vector in the type `dtype` as a JSON array. The numbers must be finite.
pub fn vector(out: &mut Vec<u8>, vector: &[f32], dtype: OutputDtype) {
    if dtype == OutputDtype::Float {
        return array(out, vector);
    }
    let mut digits = itoa::Buffer::new();
    out.push(b'[');
    for (place, byte) in dtype.convert(vector).into_iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        let number = if dtype.is_signed_byte() { i16::from(byte.cast_signed()) } else { i16::from(byte) };
        out.extend_from_slice(digits.format(number).as_bytes());
    }
    out.push(b']');
}

fn after_commas(out: &mut Vec<u8>, numbers: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = x86::Avx512::detect() {
        let (blocks, rest) = numbers.as_chunks();
        for block in blocks {
            if !avx512.append(out, block) {
                one_by_one(out, block);
            }
        }
        return one_by_one(out, rest);
    }
    one_by_one(out, numbers);
}

/// The largest number of bytes of one number: 17, or 15 of the shortest digits and their exponent, and the bytes beyond them that
/// `digits` may overwrite.
const ROOM: usize = 24;

/// Like [`after_commas`], without vector registers.
fn one_by_one(out: &mut Vec<u8>, numbers: &[f32]) {
    const BLOCK: usize = 32;
    let mut shortest = zmij::Buffer::new();
    for block in numbers.chunks(BLOCK) {
        let mut text = [0; BLOCK * ROOM];
        let mut written = 0;
        for &x in block {
            let Some(room) = text.get_mut(written..).and_then(<[u8]>::first_chunk_mut) else { break };
            written += digits(x, room).unwrap_or_else(|| {
                let digits = shortest.format_finite(x).as_bytes();
                room.iter_mut().zip(b",".iter().chain(digits)).for_each(|(to, byte)| *to = *byte);
                1 + digits.len()
            });
        }
        out.extend_from_slice(text.get(..written).unwrap_or_default());
    }
}

/// Writes `,` and `x`, and returns the number of bytes. Returns `None` if `x` is outside of the classes.
#[inline]
fn digits(x: f32, text: &mut [u8; ROOM]) -> Option<usize> {
    let size = x.abs();
    let binade = BINADES.get((size.to_bits() >> 23).checked_sub(FIRST_BINADE)? as usize)?;
    let class = usize::from(binade.begun) + usize::from(size >= binade.bound);
    if class == 0 {
        return None;
    }
    let shape = SHAPES.get(class | (x.to_bits() >> 31 << 4) as usize)?;
    let n = (f64::from(size) * shape.scale + 0.5) as u32;
    let tens = n / 10;
    let eight = if shape.nine { tens } else { n };
    let (prefix, _) = text.split_first_chunk_mut()?;
    *prefix = shape.prefix;
    let length = usize::from(shape.length);
    let rest: &mut [u8; 9] = text.get_mut(length..)?.first_chunk_mut()?;
    let [a, b, c, d] = *FOUR_DIGITS.get((eight / 10_000) as usize)?;
    let [e, f, g, h] = *FOUR_DIGITS.get((eight % 10_000) as usize)?;
    // For eight digits, the last one is not counted below.
    *rest = [a, b, c, d, e, f, g, h, b'0' + (n - tens * 10) as u8];
    Some(length + 8 + usize::from(shape.nine))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Way = fn(&mut Vec<u8>, &[f32]);
    const WAYS: [Way; 2] = [after_commas, one_by_one];

    fn printed(way: Way, x: f32) -> String {
        // A whole block, so that the vector registers are used, with other numbers around it.
        let mut block = [0.25; 16];
        block[5] = x;
        let mut out = Vec::new();
        way(&mut out, &block);
        String::from_utf8(out).unwrap().split(',').nth(6).unwrap().to_owned()
    }

    #[test]
    fn numbers_print_as_json() {
        for (x, text) in [
            (0.5, "0.50000000"),
            (-0.1, "-0.100000001"),
            (0.19999999, "0.199999988"),
            (0.2, "0.20000000"),
            (0.3, "0.30000001"),
            (0.99999994, "0.99999994"),
            (0.01, "0.0099999998"),
            (-0.000_12, "-0.000119999997"),
            (-0.000_012_345_679, "-0.0000123456794"),
            (-0.000_023_456_789, "-0.000023456789"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-f32::MIN_POSITIVE, "-1.1754944e-38"),
            (f32::MAX, "3.4028235e+38"),
        ] {
            for way in WAYS {
                assert_eq!(printed(way, x), text);
            }
        }
        for (numbers, text) in [(&[][..], "[]"), (&[1.0][..], "[1.0]"), (&[0.0, 0.5][..], "[0.0,0.50000000]")] {
            let mut out = b"x".to_vec();
            array(&mut out, numbers);
            assert_eq!(out, format!("x{text}").into_bytes());
        }
    }

    fn check(numbers: &[f32]) {
        for way in WAYS {
            let mut out = Vec::new();
            way(&mut out, numbers);
            let text = String::from_utf8(out).unwrap();
            let mut parsed = text.split(',').skip(1);
            for x in numbers {
                let text = parsed.next().unwrap();
                assert_eq!(text.parse::<f32>().unwrap().to_bits(), x.to_bits(), "{text}");
            }
            assert_eq!(parsed.next(), None);
        }
    }

    /// Both ends of every power of ten and of two and its double, and numbers all over.
    #[test]
    fn every_number_parses_back_to_its_own_bits() {
        let tens = (-45..39).map(|e| 10f32.powi(e)).flat_map(|x| [x, 2.0 * x]);
        for edge in tens.chain((-149..128).map(|e| 2f32.powi(e))) {
            let near = edge.to_bits().saturating_sub(50)..=edge.to_bits() + 50;
            let near = near.map(f32::from_bits).filter(|x| x.is_finite());
            check(&near.flat_map(|x| [x, -x]).collect::<Vec<_>>());
        }
        let mut rng = fastrand::Rng::with_seed(3);
        for length in 0..40 {
            check(&(0..length).map(|_| rng.f32() - 0.5).collect::<Vec<_>>());
        }
        let any: Vec<f32> = (0..100_000).map(|_| f32::from_bits(rng.u32(..))).filter(|x| x.is_finite()).collect();
        check(&any);
        let usual: Vec<f32> = (0..400_000).map(|_| f32::from_bits(rng.u32(0x3727_c5ac..0x3f80_0000))).collect();
        check(&usual);
    }

    /// Every number that has a class: 140 million, a minute with optimization.
    #[test]
    #[ignore = "slow: cargo test --release --lib decimal -- --ignored"]
    fn every_single_number_parses_back() {
        let all: Vec<u32> = (1e-5f32.to_bits()..1f32.to_bits()).collect();
        for bits in all.chunks(1 << 16) {
            check(&bits.iter().map(|&bits| f32::from_bits(bits)).collect::<Vec<_>>());
        }
    }
}
