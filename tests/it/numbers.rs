//! Tests numbers at the limits of f32: a vector that f32 cannot represent is reported as an error, and never
//! replaced by another vector.

use std::path::Path;

use embedding_server::config::ModelConfig;
use layer0::norm::NormKind;
use safetensors::SafeTensors;
use serde_json::json;
use tempfile::TempDir;

use crate::common::{TestApp, copy_of, length, test_device};

/// Returns a copy of the tiny Llama in f32 in which every row consists of `number` with alternating signs.
fn constant(number: f32) -> TempDir {
    let dir = copy_of("llama-f32");
    fill(&dir.path().join("model.safetensors"), number);
    dir
}

fn fill(path: &Path, number: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let tensor =
        SafeTensors::deserialize(&bytes).unwrap().tensor("model.embed_tokens.weight").unwrap().data().as_ptr_range();
    let start = tensor.start as usize - bytes.as_ptr() as usize;
    let end = tensor.end as usize - bytes.as_ptr() as usize;
    for (column, place) in bytes[start..end].chunks_mut(4).enumerate() {
        let sign = if column % 2 == 0 { 1.0 } else { -1.0 };
        place.copy_from_slice(&(sign * number).to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn large_rows_keep_their_direction_and_their_mean() {
    if test_device().is_some() {
        return;
    }
    let dir = constant(5e37);
    let app = TestApp::start(|c| {
        let model = |id: &str, normalize, embedding_scale| ModelConfig {
            norm: Some(NormKind::None),
            normalize: Some(normalize),
            embedding_scale,
            special_tokens: Some(false),
            ..ModelConfig::new(id, dir.path())
        };
        c.models = vec![model("unit", true, None), model("mean", false, None), model("huge", false, Some(1e3))];
        c.models.push(model("huge-unit", true, Some(1e3)));
    });
    let text = "hello world ".repeat(200);
    for (model, text) in [("unit", "hello world, it is large"), ("unit", &text), ("huge-unit", &text)] {
        let vector = &app.vectors(&json!({"input": text, "model": model}))[0];
        assert!((length(vector) - 1.0).abs() < 1e-6);
        let each = 1.0 / (vector.len() as f32).sqrt();
        assert!(vector.chunks(2).all(|pair| (pair[0] - each).abs() < 1e-6 && pair[1] == -pair[0]), "{vector:?}");
    }
    for text in ["hello world, it is large", &text] {
        for format in ["float", "base64"] {
            let vector = &app.vectors(&json!({"input": text, "model": "mean", "encoding_format": format}))[0];
            assert!(vector.iter().all(|x| (x.abs() / 5e37 - 1.0).abs() < 1e-6), "{vector:?}");
        }
        let answer = app.embed(&json!({"input": ["", text], "model": "huge"}));
        let (status, kind, code, _, message) = answer.error();
        assert_eq!((status, kind, code), (500, "server_error", None));
        assert_eq!(message, "the vector of input 1 holds a number that is too large for a 32-bit float.");
    }
}
