//! Writes the responses of the POST routes directly as bytes, piece by piece.
//!
//! The shape is `{"object":"list","data":[` ENTRY `,` ENTRY ... `],"model":...,"usage":{...}}`.

use crate::decimal;
use crate::openai::EncodingFormat;
use layer0::OutputDtype;
use layer0::retrieval::sparse::SparseVector;

pub const HEAD: &[u8] = br#"{"object":"list","data":["#;

/// Appends one entry of `data` with an embedding. The numbers of [`EncodingFormat::Bytes`], which has no entries, are written as those of
/// [`EncodingFormat::Float`].
pub fn embedding(out: &mut Vec<u8>, index: usize, vector: &[f32], format: EncodingFormat, dtype: OutputDtype) {
    if index > 0 {
        out.push(b',');
    }
    out.extend_from_slice(br#"{"object":"embedding","index":"#);
    out.extend_from_slice(itoa::Buffer::new().format(index).as_bytes());
    out.extend_from_slice(br#","embedding":"#);
    match format {
        EncodingFormat::Base64 => {
            out.push(b'"');
            base64(out, vector, dtype);
            out.push(b'"');
        }
        EncodingFormat::Float | EncodingFormat::Bytes => decimal::vector(out, vector, dtype),
    }
    out.push(b'}');
}

/// Appends a JSON string.
pub fn string(out: &mut Vec<u8>, text: &str) {
    // A string always serializes, and a Vec accepts every write.
    let _ = serde_json::to_writer(&mut *out, text);
}

/// Appends a comma before every entry but the first.
pub fn comma(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.push(b',');
    }
}

/// Appends one entry of `data` with a row of the matrix of cosine similarities.
pub fn similarity(out: &mut Vec<u8>, index: usize, cosines: &[f32]) {
    if index > 0 {
        out.push(b',');
    }
    out.extend_from_slice(format!(r#"{{"object":"similarity","index":{index},"similarity":"#).as_bytes());
    decimal::array(out, cosines);
    out.push(b'}');
}

/// Appends one entry of `data` with a sparse vector.
pub fn sparse_embedding(out: &mut Vec<u8>, index: usize, vector: &SparseVector) {
    if index > 0 {
        out.push(b',');
    }
    out.extend_from_slice(format!(r#"{{"object":"sparse_embedding","index":{index},"indices":["#).as_bytes());
    let mut number = itoa::Buffer::new();
    for (place, &id) in vector.indices.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        out.extend_from_slice(number.format(id).as_bytes());
    }
    out.extend_from_slice(br#"],"values":"#);
    decimal::array(out, &vector.values);
    out.push(b'}');
}

/// Appends a sparse vector in the form of text-embeddings-inference.
pub fn sparse_entries(out: &mut Vec<u8>, index: usize, vector: &SparseVector) {
    out.extend_from_slice(if index > 0 { b",[" } else { b"[" });
    let mut number = itoa::Buffer::new();
    for (place, (&id, value)) in vector.indices.iter().zip(&vector.values).enumerate() {
        out.extend_from_slice(if place > 0 { br#",{"index":"# } else { br#"{"index":"# });
        out.extend_from_slice(number.format(id).as_bytes());
        out.extend_from_slice(br#","value":"#);
        // The number is written as an array of one, without its brackets.
        let start = out.len();
        decimal::array(out, std::slice::from_ref(value));
        out.remove(start);
        out.pop();
        out.push(b'}');
    }
    out.push(b']');
}

/// Appends the bytes of a vector in base64, without quotation marks.
pub fn base64(out: &mut Vec<u8>, vector: &[f32], dtype: OutputDtype) {
    if cfg!(target_endian = "little") && dtype == OutputDtype::Float {
        base64_simd::STANDARD.encode_append(bytemuck::cast_slice::<f32, u8>(vector), out);
    } else {
        base64_simd::STANDARD.encode_append(dtype.convert(vector), out);
    }
}

/// Appends what follows the entries of `data`.
pub fn tail(out: &mut Vec<u8>, model: &str, tokens: usize) {
    out.extend_from_slice(br#"],"model":"#);
    // A string always serializes, and a Vec accepts every write.
    let _ = serde_json::to_writer(&mut *out, model);
    let mut number = itoa::Buffer::new();
    let tokens = number.format(tokens);
    for part in [r#","usage":{"prompt_tokens":"#, tokens, r#","total_tokens":"#, tokens, "}}"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Returns about how many bytes one embedding takes.
pub fn size_of_embedding(dimensions: usize, format: EncodingFormat, dtype: OutputDtype) -> usize {
    let bytes = dtype.bytes(dimensions);
    64 + match (format, dtype) {
        (EncodingFormat::Base64, _) => bytes / 2 * 3,
        (_, OutputDtype::Float) => dimensions * 14,
        _ => bytes * 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_form_a_response_whose_numbers_parse_back() {
        let vectors = [[1.0f32, -1.0e-9, 0.1], [f32::MIN_POSITIVE, 0.333_333_34, -1.0]];
        for format in [EncodingFormat::Float, EncodingFormat::Base64] {
            let mut out = HEAD.to_vec();
            for (index, vector) in vectors.iter().enumerate() {
                embedding(&mut out, index, vector, format, OutputDtype::Float);
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
                    _ => {
                        let bytes = base64_simd::STANDARD.decode_to_vec(entry["embedding"].as_str().unwrap()).unwrap();
                        bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
                    }
                };
                assert_eq!(numbers, vector);
            }
        }
    }
}
