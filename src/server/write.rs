//! Writes the answer to POST /v1/embeddings, piece by piece, straight into bytes.
//!
//! `{"object":"list","data":[` EMBEDDING `,` EMBEDDING ... `],"model":...,"usage":{...}}`

use crate::openai::EncodingFormat;

pub const HEAD: &[u8] = br#"{"object":"list","data":["#;

/// Appends one entry of `data`.
pub fn embedding(out: &mut Vec<u8>, index: usize, vector: &[f32], format: EncodingFormat) {
    if index > 0 {
        out.push(b',');
    }
    out.extend_from_slice(br#"{"object":"embedding","index":"#);
    out.extend_from_slice(index.to_string().as_bytes());
    out.extend_from_slice(br#","embedding":"#);
    match format {
        EncodingFormat::Float => floats(out, vector),
        EncodingFormat::Base64 => {
            out.push(b'"');
            base64(out, vector);
            out.push(b'"');
        }
    }
    out.push(b'}');
}

/// Appends one row of a matrix of cosines, an entry of `data`.
pub fn similarity(out: &mut Vec<u8>, index: usize, cosines: &[f32]) {
    if index > 0 {
        out.push(b',');
    }
    out.extend_from_slice(format!(r#"{{"object":"similarity","index":{index},"similarity":"#).as_bytes());
    floats(out, cosines);
    out.push(b'}');
}

fn base64(out: &mut Vec<u8>, vector: &[f32]) {
    if cfg!(target_endian = "little") {
        base64_simd::STANDARD.encode_append(bytemuck::cast_slice::<f32, u8>(vector), out);
    } else {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        base64_simd::STANDARD.encode_append(&bytes, out);
    }
}

/// Decimals that parse back to the same f32. The vectors are finite: see `pooling::normalize`.
pub fn floats(out: &mut Vec<u8>, vector: &[f32]) {
    let mut shortest = zmij::Buffer::new();
    let mut separator = b'[';
    for &x in vector {
        out.push(separator);
        separator = b',';
        match nine_digits(x) {
            Some((text, length)) => out.extend_from_slice(text.get(..length).unwrap_or_default()),
            None => out.extend_from_slice(shortest.format_finite(x).as_bytes()),
        }
    }
    if separator == b'[' {
        out.push(separator);
    }
    out.push(b']');
}

/// `x` with nine significant digits, which always tell an f32 from its neighbours, and how many bytes that is; for
/// `1e-5 <= |x| < 1`, where nearly all numbers of a unit vector lie. Several times faster than the shortest digits, for a
/// tenth more bytes.
///
/// The digits are `|x| * 10^k` in f64, off by less than 1e-15 of it, and half a unit of the ninth digit is at most 5e-9,
/// where neighbours lie 6e-8 apart.
fn nine_digits(x: f32) -> Option<([u8; 17], usize)> {
    let size = f64::from(x.abs());
    if !(1e-5..1.0).contains(&size) {
        return None;
    }
    // Counted without branches: which it is changes from number to number.
    let zeros =
        usize::from(size < 1e-1) + usize::from(size < 1e-2) + usize::from(size < 1e-3) + usize::from(size < 1e-4);
    let digits = (size * POWERS.get(zeros)? + 0.5) as u32;
    let (first, rest) = (digits / 100_000_000, digits % 100_000_000);
    let start = usize::from(x < 0.0);
    let mut text = *b"0.000000000000000";
    if start == 1 {
        text = *b"-0.00000000000000";
    }
    let at = start + 2 + zeros;
    *text.get_mut(at)? += first as u8;
    text.get_mut(at + 1..at + 9)?.copy_from_slice(&eight_digits(rest));
    Some((text, at + 9))
}

/// What brings a number with so many zeros after the point to nine digits before it.
const POWERS: [f64; 5] = [1e9, 1e10, 1e11, 1e12, 1e13];

/// The decimal digits of `n < 10^8`: split into halves within one register, down to single digits.
fn eight_digits(n: u32) -> [u8; 8] {
    let fours = u64::from(n / 10_000) | u64::from(n % 10_000) << 32;
    let hundreds = ((fours * 10_486) >> 20) & 0x7f_0000_007f;
    let twos = hundreds | (fours - hundreds * 100) << 16;
    let tens = ((twos * 103) >> 10) & 0xf_000f_000f_000f;
    let ones = tens | (twos - tens * 10) << 8;
    (ones | 0x3030_3030_3030_3030).to_le_bytes()
}

/// Appends what follows `data`.
pub fn tail(out: &mut Vec<u8>, model: &str, tokens: usize) {
    out.extend_from_slice(br#"],"model":"#);
    // A string always serializes, and a Vec takes every write.
    let _ = serde_json::to_writer(&mut *out, model);
    out.extend_from_slice(format!(r#","usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#).as_bytes());
}

/// About how many bytes one embedding takes.
pub fn size_of_embedding(dimensions: usize, format: EncodingFormat) -> usize {
    let number = match format {
        EncodingFormat::Float => 14,
        EncodingFormat::Base64 => 6,
    };
    64 + dimensions * number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(x: f32) -> String {
        let mut out = Vec::new();
        floats(&mut out, &[x]);
        String::from_utf8(out).unwrap().trim_matches(['[', ']']).to_owned()
    }

    #[test]
    fn numbers_print_as_json_and_parse_back() {
        for (x, text) in [
            (0.5, "0.500000000"),
            (-0.1, "-0.100000001"),
            (0.99999994, "0.999999940"),
            (-0.000_012_345_679, "-0.0000123456794"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
        ] {
            assert_eq!(printed(x), text);
        }
        let mut empty = Vec::new();
        floats(&mut empty, &[]);
        assert_eq!(empty, b"[]");
    }

    /// Both ends of every power of ten and of two, and numbers all over.
    #[test]
    fn every_number_parses_back_to_its_own_bits() {
        let mut rng = fastrand::Rng::with_seed(3);
        let check = |x: f32| {
            let text = printed(x);
            assert_eq!(text.parse::<f32>().unwrap().to_bits(), x.to_bits(), "{text}");
            let json: f32 = serde_json::from_str(&text).unwrap();
            assert_eq!(json.to_bits(), x.to_bits(), "{text}");
        };
        for edge in (-45..39).map(|e| 10f32.powi(e)).chain((-149..128).map(|e| 2f32.powi(e))) {
            for bits in edge.to_bits().saturating_sub(50)..=edge.to_bits() + 50 {
                let x = f32::from_bits(bits);
                if x.is_finite() {
                    check(x);
                    check(-x);
                }
            }
        }
        for _ in 0..200_000 {
            check(rng.f32() * 2.0 - 1.0);
            check(f32::from_bits(rng.u32(0x3727_c5ac..0x3f80_0000)));
            let any = f32::from_bits(rng.u32(..));
            if any.is_finite() {
                check(any);
            }
        }
    }

    #[test]
    fn the_pieces_make_one_answer_whose_numbers_parse_back() {
        let vectors = [[1.0f32, -1.0e-9, 0.1], [f32::MIN_POSITIVE, 0.333_333_34, -1.0]];
        for format in [EncodingFormat::Float, EncodingFormat::Base64] {
            let mut out = HEAD.to_vec();
            for (index, vector) in vectors.iter().enumerate() {
                embedding(&mut out, index, vector, format);
            }
            tail(&mut out, "a \"quoted\" name", 7);
            let answer: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(answer["model"], "a \"quoted\" name");
            assert_eq!(answer["usage"]["total_tokens"], 7);
            for (index, vector) in vectors.iter().enumerate() {
                let entry = &answer["data"][index];
                assert_eq!(entry["index"], index);
                let numbers: Vec<f32> = match format {
                    EncodingFormat::Float => serde_json::from_value(entry["embedding"].clone()).unwrap(),
                    EncodingFormat::Base64 => {
                        let bytes = base64_simd::STANDARD.decode_to_vec(entry["embedding"].as_str().unwrap()).unwrap();
                        bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
                    }
                };
                assert_eq!(numbers, vector);
            }
        }
    }
}
