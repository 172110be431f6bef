//! `embed` against what its parts cost alone, in one run: `cargo bench --bench bulk -- CHECKPOINT FILE.jsonl`.
//!
//! The limit is every core tokenizing and pooling the same texts from memory, one by one, with nothing read or written.
//! FILE holds objects with a `text`. Rounds alternate, so that other load on the machine falls on both.

// A benchmark may end by panicking.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use embedding_server::bulk::output::{EmbeddingDtype, Layout, OutputFormat};
use embedding_server::bulk::{self, Options};
use layer0::checkpoint::Checkpoint;
use layer0::embedder::{Embedder, Input, Settings};
use layer0::progress::Silent;
use layer0_records::Source;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<PathBuf> =
        std::env::args_os().skip(1).filter(|argument| argument != "--bench").map(PathBuf::from).collect();
    let [checkpoint, input] = arguments.as_slice() else {
        println!(
            "skipped: give a checkpoint and a JSONL file, as in `cargo bench --bench bulk -- CHECKPOINT FILE.jsonl`"
        );
        return;
    };
    let embedder =
        Embedder::new(Checkpoint::open(checkpoint, &Default::default()).unwrap(), Settings::default()).unwrap();
    let lines = std::fs::read_to_string(input).unwrap();
    let texts: Vec<Input> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().map(str::to_owned).unwrap()
        })
        .map(Input::Text)
        .collect();
    let bytes: usize = texts.iter().map(|text| if let Input::Text(text) = text { text.len() } else { 0 }).sum();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "{} texts, {:.0} MB, {} dimensions, {threads} threads",
        texts.len(),
        bytes as f64 / 1e6,
        embedder.dimensions()
    );

    let dir = tempfile::tempdir().unwrap();
    let formats = [OutputFormat::Npy, OutputFormat::Parquet, OutputFormat::Jsonl];
    let mut rounds = vec![Vec::new(); formats.len() + 1];
    for _ in 0..ROUNDS {
        rounds[0].push(seconds(|| limit(&embedder, &texts, threads)));
        for (format, rounds) in formats.iter().zip(&mut rounds[1..]) {
            rounds.push(seconds(|| embed(&embedder, input, *format, dir.path(), threads)));
        }
    }
    let limits = rounds[0].clone();
    for (name, rounds) in ["limit", "npy", "parquet", "jsonl"].iter().zip(&rounds) {
        let shares = limits.iter().zip(rounds).map(|(limit, round)| limit / round).collect();
        println!(
            "{name:<8} {:>7.1} MB/s {:>5.0} %",
            bytes as f64 / 1e6 / median(rounds.clone()),
            100.0 * median(shares)
        );
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn limit(embedder: &Embedder, texts: &[Input], threads: usize) {
    std::thread::scope(|scope| {
        for share in texts.chunks(texts.len().div_ceil(threads)) {
            scope.spawn(move || {
                let mut vector = vec![0.0; embedder.dimensions()];
                for text in share {
                    let tokens = embedder.tokens(0, text).unwrap();
                    embedder.pool(&[tokens], vector.len(), &mut vector).unwrap();
                    std::hint::black_box(&vector);
                }
            });
        }
    });
}

fn embed(embedder: &Embedder, input: &Path, format: OutputFormat, dir: &Path, threads: usize) {
    let layout = Layout {
        format,
        dtype: EmbeddingDtype::Float32,
        dimensions: embedder.dimensions(),
        column: "embedding".to_owned(),
        sparse: None,
        fingerprint: embedder.fingerprint(),
    };
    let options = Options {
        sources: vec![Source::new(input, None).unwrap()],
        field: "text".to_owned(),
        out: Some(dir.join("out")),
        layout,
        openai_batch: false,
        skip: false,
        max_skipped: Default::default(),
        threads,
        force: true,
    };
    bulk::run(embedder, &options, &Silent).unwrap();
}
