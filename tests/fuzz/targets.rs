//! The code that reads bytes from outside. Each target reads them in the way of the server.

use std::path::Path;
use std::sync::OnceLock;

use embedding_server::config::layers::{Flags, effective};
use embedding_server::openai::{
    CreateEmbeddingRequest, CreateRerankRequest, CreateSimilarityRequest, CreateTokensRequest, parse,
};
use layer0::checkpoint::weights::Weights;
use layer0::checkpoint::{Checkpoint, Overrides, gguf, tokenizer_json};
use layer0::embedder::{Embedder, Input, Settings, TokenInput};
use tempfile::TempDir;

use super::Target;

pub const ALL: [Target; 8] = [
    ("request", request),
    ("token_ids", token_ids),
    ("safetensors", safetensors),
    ("safetensors_index", safetensors_index),
    ("gguf", gguf),
    ("model_config", model_config),
    ("tokenizer", tokenizer),
    ("config", config),
];

fn llama() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints/llama")
}

/// Returns the same model twice, once for each kind of token IDs.
fn embedders() -> &'static [Embedder; 2] {
    static EMBEDDERS: OnceLock<[Embedder; 2]> = OnceLock::new();
    EMBEDDERS.get_or_init(|| {
        [TokenInput::Cl100k, TokenInput::Model].map(|token_input| {
            let checkpoint = Checkpoint::open(&llama(), &Overrides::default()).unwrap();
            let mut settings = Settings::default();
            settings.token_input = token_input;
            Embedder::new(checkpoint, settings).unwrap()
        })
    })
}

fn embed(inputs: &[Input]) {
    for embedder in embedders() {
        for input in inputs.iter().take(20) {
            let Ok(tokens) = embedder.tokens(0, input) else { continue };
            let mut vector = vec![0.0; embedder.dimensions()];
            embedder.pool(&[tokens], embedder.dimensions(), &mut vector).unwrap();
            assert!(vector.iter().all(|x| x.is_finite()), "{input:?} has no finite vector");
        }
    }
}

fn request(bytes: &[u8]) {
    if let Ok(request) = parse::<CreateEmbeddingRequest>(bytes, 100) {
        embed(&request.input.list);
    }
    let _ = parse::<CreateTokensRequest>(bytes, 100);
    let _ = parse::<CreateSimilarityRequest>(bytes, 100);
    let _ = parse::<CreateRerankRequest>(bytes, 100);
}

fn token_ids(bytes: &[u8]) {
    let ids: Vec<u32> = bytes.chunks(4).map(|b| b.iter().fold(0, |id, byte| id << 8 | u32::from(*byte))).collect();
    embed(&[Input::TokenIds(ids.clone()), Input::TokenIds(ids.iter().map(|id| id % 100_256).collect())]);
}

/// Opens the Llama of the fixtures with one file replaced.
fn with(file: &str, bytes: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        if name != file {
            std::os::unix::fs::symlink(llama().join(name), dir.path().join(name)).unwrap();
        }
    }
    std::fs::write(dir.path().join(file), bytes).unwrap();
    dir
}

fn open(dir: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(dir, &Overrides::default()) {
        let _ = checkpoint.collapsed_norm(1);
    }
}

fn safetensors(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let Ok(weights) = Weights::open(dir.path()) else { return };
    for name in weights.names().unwrap_or_default() {
        let Ok(Some(tensor)) = weights.find(&[name]) else { continue };
        let _ = tensor.vector(16);
        let Ok(table) = tensor.table() else { continue };
        let mut row = vec![0.0; table.dimensions().min(1 << 20)];
        if row.len() == table.dimensions() {
            table.read_row(u32::try_from(table.rows() - 1).unwrap_or(0), &mut row);
        }
    }
}

fn safetensors_index(bytes: &[u8]) {
    let dir = with("model.safetensors.index.json", bytes);
    let Ok(weights) = Weights::open(dir.path()) else { return };
    for name in weights.names().unwrap_or_default() {
        let _ = weights.find(&[name]);
    }
}

fn gguf(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    if gguf::is_gguf(file.path())
        && let Ok(checkpoint) = gguf::open(file.path(), &Overrides::default())
    {
        let _ = checkpoint.collapsed_norm(1);
    }
}

fn model_config(bytes: &[u8]) {
    open(with("config.json", bytes).path());
}

fn tokenizer(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let Ok(tokenizer) = tokenizer_json::open(file.path()) else { return };
    let mut ids = Vec::new();
    for text in ["", "hello wörld  안녕\n🦀", "<s>a</s>\u{0}"] {
        let _ = tokenizer.choice.implementation.encode(text, true, &mut ids);
    }
}

fn config(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
    if let Ok(effective) = effective(&flags, std::iter::empty::<(String, String)>()) {
        let _ = effective.to_string();
    }
}
