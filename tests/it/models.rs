//! Checkpoints that are too large to commit. The tests that need them create them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::checkpoint;

pub const ROWS: usize = 4096;
pub const HIDDEN: usize = 256;

/// Returns bf16 numbers of either sign with magnitudes from 2^-7 to 2; each `seed` gives others.
fn numbers(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let bits = (state >> 48) as u16;
        (0x3c00 | (bits & 0x83ff)).to_le_bytes()
    };
    (0..count).flat_map(next).collect()
}

fn write(path: &Path, tensors: &[(&str, Vec<usize>, Vec<u8>)]) {
    let views =
        tensors.iter().map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(format), path).unwrap();
}

/// Returns a Llama checkpoint of two layers in three shards, 6 MB in total, with the table in the second shard and the
/// norm in the third. It is created once.
pub fn sharded() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        dir
    })
    .path()
}

/// Returns a layer-0 checkpoint of 2 MB with the same table and norm, which the test may change.
pub fn layer0() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    describe(dir.path());
    let tensors = [
        ("model.embed_tokens.weight", vec![ROWS, HIDDEN], numbers(ROWS * HIDDEN, 1)),
        ("model.norm.weight", vec![HIDDEN], numbers(HIDDEN, 6)),
    ];
    write(&dir.path().join("model.safetensors"), &tensors);
    dir
}

fn describe(dir: &Path) {
    let small = |name: &str| std::fs::read(checkpoint("llama").join(name)).unwrap();
    let mut config: Value = serde_json::from_slice(&small("config.json")).unwrap();
    config["hidden_size"] = json!(HIDDEN);
    config["vocab_size"] = json!(ROWS);
    config["num_hidden_layers"] = json!(2);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::write(dir.join(name), small(name)).unwrap();
    }
}

fn make(dir: &Path) {
    describe(dir);
    std::fs::write(dir.join("README.md"), "---\nlicense: mit\n---\nx\n".repeat(1000)).unwrap();
    let wide = |seed| (vec![4 * HIDDEN, HIDDEN], numbers(4 * HIDDEN * HIDDEN, seed));
    let (table, head) = (numbers(ROWS * HIDDEN, 1), numbers(ROWS * HIDDEN, 2));
    let shards = [
        vec![("model.layers.0.mlp.up_proj.weight", wide(3)), ("model.layers.0.mlp.gate_proj.weight", wide(4))],
        vec![
            ("model.embed_tokens.weight", (vec![ROWS, HIDDEN], table)),
            ("model.layers.1.mlp.up_proj.weight", wide(5)),
        ],
        vec![
            ("lm_head.weight", (vec![ROWS, HIDDEN], head)),
            ("model.norm.weight", (vec![HIDDEN], numbers(HIDDEN, 6))),
            ("model.layers.1.mlp.gate_proj.weight", wide(7)),
        ],
    ];
    let mut weight_map = serde_json::Map::new();
    for (i, tensors) in shards.into_iter().enumerate() {
        let file = format!("model-0000{}-of-00003.safetensors", i + 1);
        weight_map.extend(tensors.iter().map(|(name, _)| ((*name).to_owned(), json!(file))));
        let tensors: Vec<_> = tensors.into_iter().map(|(name, (shape, bytes))| (name, shape, bytes)).collect();
        write(&dir.join(file), &tensors);
    }
    std::fs::write(dir.join("model.safetensors.index.json"), json!({"weight_map": weight_map}).to_string()).unwrap();
}
