//! Decompresses request bodies (`Content-Encoding`, RFC 9110, section 8.4). Compressed transfers (`Transfer-Encoding`),
//! which almost no client sends, are refused.

use std::io::Read;

use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, TRANSFER_ENCODING};
use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};

use crate::config::units::ByteCount;
use crate::server::error::ApiError;
use crate::server::state::admission::RequestWeight;

/// The largest number of codings that one body may have.
const MOST_CODINGS: usize = 4;

/// The largest zstd window, as a power of two: 8 MiB, the most that a content coding may require (RFC 9659).
const ZSTD_WINDOW: u32 = 23;

const PIECE_BYTES: usize = 64 << 10;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    Deflate,
    Zstd,
}

/// Returns the codings of a body in the order in which they were applied; the list is empty for an uncompressed body.
///
/// # Errors
/// If a coding is not supported, or there are too many.
pub fn content_codings(headers: &HeaderMap) -> Result<Vec<Coding>, ApiError> {
    let mut codings = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        let value = String::from_utf8_lossy(value.as_bytes());
        for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name.to_ascii_lowercase().as_str() {
                "identity" => {}
                "gzip" | "x-gzip" => codings.push(Coding::Gzip),
                "deflate" => codings.push(Coding::Deflate),
                "zstd" => codings.push(Coding::Zstd),
                _ => return Err(ApiError::content_coding(name)),
            }
        }
        if codings.len() > MOST_CODINGS {
            return Err(ApiError::content_coding(&value));
        }
    }
    Ok(codings)
}

/// Checks that a body has no transfer coding other than `chunked` (RFC 9112, section 6.1).
///
/// # Errors
/// If there is another transfer coding. Its bytes would be taken for the bytes of the body.
pub fn check_transfer(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(ApiError::transfer_coding()),
    }
}

/// Decompresses `body` to at most `max` bytes. `weight` then counts the result in place of `body`.
///
/// # Errors
/// If the body is not valid, decompresses to more than `max` bytes, or does not fit into the in-flight budget.
pub fn decode(
    body: &[u8],
    codings: &[Coding],
    max: ByteCount,
    weight: Option<&RequestWeight>,
) -> Result<Vec<u8>, ApiError> {
    let mut decoded: Option<Vec<u8>> = None;
    for coding in codings.iter().rev() {
        let encoded = decoded.as_deref().unwrap_or(body);
        let mut output = DecodedBody { bytes: Vec::new(), max, weight };
        match coding {
            Coding::Gzip => output.take(MultiGzDecoder::new(encoded))?,
            Coding::Deflate => inflate(encoded, &mut output)?,
            Coding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(encoded).map_err(ApiError::broken_coding)?;
                decoder.window_log_max(ZSTD_WINDOW).map_err(ApiError::broken_coding)?;
                output.take(decoder)?;
            }
        }
        if let Some(weight) = weight {
            weight.release(encoded.len() as u64);
        }
        decoded = Some(output.bytes);
    }
    Ok(decoded.unwrap_or_default())
}

/// The bytes that have been decompressed so far.
struct DecodedBody<'a> {
    bytes: Vec<u8>,
    max: ByteCount,
    weight: Option<&'a RequestWeight>,
}

impl DecodedBody<'_> {
    fn push(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        if (self.bytes.len() + piece.len()) as u64 > self.max.0 {
            return Err(ApiError::body_too_large(None, self.max));
        }
        if let Some(weight) = self.weight {
            weight.arrived(piece.len() as u64)?;
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn take(&mut self, mut decoder: impl Read) -> Result<(), ApiError> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match decoder.read(&mut piece).map_err(ApiError::broken_coding)? {
                0 => return Ok(()),
                length => self.push(piece.get(..length).unwrap_or_default())?,
            }
        }
    }
}

/// Decompresses `deflate`: the zlib format, or the raw format that some clients send under this name.
fn inflate(encoded: &[u8], output: &mut DecodedBody<'_>) -> Result<(), ApiError> {
    // In a zlib header the method is 8 (deflate), and the two bytes are a multiple of 31 (RFC 1950, section 2.2).
    let is_zlib =
        matches!(*encoded, [method, flags, ..] if method & 15 == 8 && u16::from_be_bytes([method, flags]) % 31 == 0);
    let mut decoder = Decompress::new(is_zlib);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let (taken, made) = (decoder.total_in(), decoder.total_out());
        let rest = usize::try_from(taken).ok().and_then(|taken| encoded.get(taken..)).unwrap_or_default();
        let status = decoder.decompress(rest, &mut piece, FlushDecompress::None).map_err(ApiError::broken_coding)?;
        let length = usize::try_from(decoder.total_out() - made).unwrap_or(usize::MAX);
        output.push(piece.get(..length).unwrap_or_default())?;
        match status {
            Status::StreamEnd if decoder.total_in() == encoded.len() as u64 => return Ok(()),
            Status::StreamEnd => return Err(ApiError::broken_coding("there are bytes after its end")),
            _ if length == 0 && decoder.total_in() == taken => {
                return Err(ApiError::broken_coding("it ends too early"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::Duration;

    use axum::http::HeaderValue;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;
    use crate::server::error::ACCEPTED_ENCODINGS;
    use crate::server::state::admission::Admission;

    const MAX: ByteCount = ByteCount(1 << 20);

    fn codings(values: &[&'static str]) -> Result<Vec<Coding>, ApiError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        content_codings(&headers)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Returns `bytes` in each of the supported codings.
    fn encoded(bytes: &[u8]) -> Vec<(Coding, Vec<u8>)> {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(bytes).unwrap();
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::fast());
        bare.write_all(bytes).unwrap();
        vec![
            (Coding::Gzip, gzip(bytes)),
            (Coding::Deflate, zlib.finish().unwrap()),
            (Coding::Deflate, bare.finish().unwrap()),
            (Coding::Zstd, zstd::encode_all(bytes, 3).unwrap()),
        ]
    }

    #[test]
    fn codings_are_case_insensitive_and_may_be_combined() {
        use Coding::{Deflate, Gzip, Zstd};
        assert_eq!(codings(&[]), Ok(vec![]));
        assert_eq!(codings(&["", "identity", " Identity , identity"]), Ok(vec![]));
        assert_eq!(codings(&["GZip"]), Ok(vec![Gzip]));
        assert_eq!(codings(&["x-gzip,identity", "Deflate, ZSTD"]), Ok(vec![Gzip, Deflate, Zstd]));
        let accepted: Vec<&str> = ACCEPTED_ENCODINGS.split(", ").collect();
        assert_eq!(codings(&accepted), Ok(vec![Gzip, Deflate, Zstd]));
        for wrong in [&["br"][..], &["gzip, br"], &["gzip;q=1"], &["*"], &["gzip, gzip, gzip, gzip, gzip"]] {
            assert_eq!(codings(wrong).unwrap_err().into_status(), 415, "{wrong:?}");
        }
    }

    #[test]
    fn a_body_is_decoded_and_its_weight_is_the_decoded_size() {
        let text: Vec<u8> = (0..300_000_u32).map(|i| (i % 7 * i % 251) as u8).collect();
        for (coding, body) in encoded(&text) {
            let all = Arc::new(Admission::default());
            let weight = all.enter(1 << 30, Duration::MAX);
            weight.arrived(body.len() as u64).unwrap();
            assert!(decode(&body, &[coding], MAX, Some(&weight)).unwrap() == text, "{coding:?}");
            assert_eq!(all.in_flight(), 300_000, "{coding:?}");
        }
        let twice = zstd::encode_all(&gzip(&text)[..], 3).unwrap();
        assert!(decode(&twice, &[Coding::Gzip, Coding::Zstd], MAX, None).unwrap() == text);
        let in_two_members = [gzip(b"a"), gzip(b"b")].concat();
        assert_eq!(decode(&in_two_members, &[Coding::Gzip], MAX, None).unwrap(), b"ab");
    }

    #[test]
    fn a_decompression_bomb_is_refused_at_the_limit() {
        for (coding, body) in encoded(&vec![b' '; (1 << 20) + 1]) {
            assert_eq!(decode(&body, &[coding], MAX, None).unwrap_err().into_status(), 413, "{coding:?}");
            let all = Arc::new(Admission::default());
            let (_other, weight) = (all.enter(200_000, Duration::MAX), all.enter(200_000, Duration::MAX));
            _other.arrived(1).unwrap();
            assert_eq!(decode(&body, &[coding], MAX, Some(&weight)).unwrap_err().into_status(), 429, "{coding:?}");
            assert!(all.in_flight() <= 200_000);
        }
    }

    #[test]
    fn invalid_compressed_bodies_are_refused() {
        for (coding, body) in encoded(b"a text that is long enough to be cut, a text that is long enough to be cut") {
            for length in 1..body.len() {
                let cut = decode(&body[..length], &[coding], MAX, None);
                assert_eq!(cut.unwrap_err().into_status(), 400, "{coding:?} {length}");
            }
            let more = [&body[..], b"xyz"].concat();
            assert_eq!(decode(&more, &[coding], MAX, None).unwrap_err().into_status(), 400, "{coding:?}");
            assert_eq!(decode(b"{\"input\":\"a\"}", &[coding], MAX, None).unwrap_err().into_status(), 400);
        }
    }
}
