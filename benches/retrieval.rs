//! Measures the scores of reranking, on one thread: `cargo bench --bench retrieval`.
//!
//! A query of 20 tokens is compared with 100 documents of 200 tokens, over the built-in model. The documents consist of words of its
//! vocabulary in Latin letters, drawn by Zipf's law, so that about as many tokens are distinct as in 100 English paragraphs. Two costs stand beside each score:
//! reading the row of every distinct token once, and tokenizing the documents, which every reranker has to do. The second table has the
//! similarities of the distinct tokens with those of the query by each kernel of this CPU, over the built-in model's rows in each format.
//!
//! benches/quality/transformer.py compares the server with a transformer over the same documents.

// A benchmark reports a failure by a panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use embedding_server::builtin::{BUILTIN, open_checkpoint};
use layer0::checkpoint::Overrides;
use layer0::embedder::{Embedder, Input, PooledTokens, Settings, TokenInput};
use layer0::norm::CollapsedNorm;
use layer0::pooling::{CpuPooling, Pooling, kernel};
use layer0::retrieval::{Method, TokenizedText, scores};
use layer0::table::{EmbeddingTable, TableDtype};
use layer0::yield_point::Undisturbed;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DOCUMENTS: usize = 100;
const TOKENS: usize = 200;
const QUERY_TOKENS: usize = 20;
/// Raises the share of frequent tokens.
const SKEW: f64 = 1.5;
/// The number of rounds. The measurements take turns in each round, so that other load affects all of them.
const ROUNDS: usize = 41;

fn main() {
    let checkpoint = open_checkpoint(Path::new(BUILTIN), &Overrides::default()).unwrap();
    let mut settings = Settings::default();
    settings.token_input = TokenInput::Model;
    let embedder = Embedder::new(checkpoint, settings).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let words = words(&embedder);
    let texts: Vec<String> =
        (0..=DOCUMENTS).map(|i| text(&words, if i == 0 { QUERY_TOKENS } else { TOKENS }, &mut rng)).collect();
    let tokenize = || -> Vec<PooledTokens> {
        texts.iter().enumerate().map(|(i, text)| embedder.tokens(i, &Input::Text(text.clone())).unwrap()).collect()
    };
    let tokens = tokenize();
    let tokenized: Vec<_> = texts.iter().zip(&tokens).map(|(text, tokens)| TokenizedText { text, tokens }).collect();
    let (query, documents) = tokenized.split_first().unwrap();
    let distinct: Vec<u32> =
        documents.iter().flat_map(|d| d.tokens.ids()).copied().collect::<BTreeSet<_>>().into_iter().collect();
    let all: usize = documents.iter().map(|d| d.tokens.len()).sum();

    // The mean of the distinct tokens reads each of their rows once.
    let once = [embedder.tokens(0, &Input::TokenIds(distinct.clone())).unwrap()];
    let mut vector = vec![0.0; embedder.max_dimensions()];
    let mut read = || {
        embedder.pool(&once, vector.len(), &mut vector).unwrap();
        black_box(&vector);
    };
    let mut times: Vec<(&str, Vec<Duration>)> = [("read the rows", Vec::new()), ("tokenize", Vec::new())].into();
    times.extend(Method::ALL.map(|method| (method.name(), Vec::new())));
    for _ in 0..ROUNDS {
        times[0].1.push(time(&mut read));
        times[1].1.push(time(|| drop(black_box(tokenize()))));
        for (method, (_, times)) in Method::ALL.into_iter().zip(&mut times[2..]) {
            times.push(time(|| drop(black_box(scores(&embedder, *query, documents, method, &Undisturbed).unwrap()))));
        }
    }
    println!(
        "a query of {} tokens and {DOCUMENTS} documents of {all} tokens, {} of them distinct; median of {ROUNDS} rounds",
        query.tokens.len(),
        distinct.len()
    );
    let reading = median(&mut times[0].1);
    for (name, times) in &mut times {
        let time = median(times);
        println!(
            "{name:14}{:9.0} us{:7.1} times reading the rows",
            time.as_secs_f64() * 1e6,
            time.as_secs_f64() / reading.as_secs_f64()
        );
    }
    let query: BTreeSet<u32> = query.tokens.ids().iter().copied().collect();
    compare_kernels(&embedder, &query.into_iter().collect::<Vec<_>>(), &distinct, reading);
}

/// The number of tokens that are compared at a time.
const BLOCK: usize = 64;
const DTYPES: [TableDtype; 5] =
    [TableDtype::Int4, TableDtype::Int8, TableDtype::Bf16, TableDtype::F16, TableDtype::F32];

/// Prints the time of comparing the tokens `ids` with those of the query, for each format of the rows and each kernel.
fn compare_kernels(embedder: &Embedder, query: &[u32], ids: &[u32], reading: Duration) {
    let dimensions = embedder.table_dimensions();
    let all: Vec<u32> = (0..embedder.rows() as u32).collect();
    let mut rows = vec![0.0; all.len() * dimensions];
    embedder.token_vectors(&all, &mut rows, &Undisturbed).unwrap();
    let vector = |id: u32| &rows[id as usize * dimensions..][..dimensions];
    let length = |vector: &[f32]| vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    let units: Vec<f32> =
        query.iter().flat_map(|&id| vector(id).iter().map(move |x| x / length(vector(id)).max(1e-12))).collect();
    let names: String = kernel::available().iter().map(|kernel| format!("{:>26}", kernel.name)).collect();
    println!("\nsimilarities of {} tokens with {}{names}", ids.len(), query.len());
    for dtype in DTYPES {
        let table = stored(&rows, dimensions, dtype);
        let norm = CollapsedNorm {
            scale: vec![1.0; table.rows()],
            weight: vec![1.0; dimensions],
            bias: None,
            corrections: Vec::new(),
        };
        let poolings: Vec<CpuPooling> = kernel::available()
            .into_iter()
            .map(|kernel| CpuPooling::new(table.clone(), norm.clone()).with_kernel(kernel))
            .collect();
        let mut times = vec![Vec::new(); poolings.len()];
        for _ in 0..ROUNDS {
            for (pooling, times) in poolings.iter().zip(&mut times) {
                times.push(time(|| {
                    let mut comparison = pooling.comparison(query, &units).unwrap();
                    let (mut out, mut similar) = (vec![0.0; BLOCK * comparison.width()], [false; BLOCK]);
                    for ids in ids.chunks(BLOCK) {
                        comparison.similarities(0.3, 0.7, ids, &mut out, &mut similar);
                        black_box(&out);
                    }
                }));
            }
        }
        let cell = |times: &mut Vec<Duration>| {
            let time = median(times).as_secs_f64();
            format!("{:>10.0} us{:>7.1} times", time * 1e6, time / reading.as_secs_f64())
        };
        println!("{:36}{}", dtype.name(), times.iter_mut().map(cell).collect::<String>());
    }
}

/// Returns a table with these rows in this format.
fn stored(rows: &[f32], dimensions: usize, dtype: TableDtype) -> EmbeddingTable {
    let floats =
        |bytes: Vec<u8>| EmbeddingTable::new(bytes.into(), dtype, rows.len() / dimensions, dimensions).unwrap();
    let integers = |largest: f32| {
        rows.chunks(dimensions).flat_map(move |row| {
            let scale = row.iter().fold(1e-12f32, |most, x| most.max(x.abs())) / largest;
            row.iter().map(move |x| (x / scale).round() as i8)
        })
    };
    let quantized = |bytes: Vec<u8>| {
        EmbeddingTable::quantized(bytes.into(), dtype, dimensions, vec![1.0; rows.len() / dimensions]).unwrap()
    };
    match dtype {
        TableDtype::Bf16 => floats(rows.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()),
        TableDtype::F16 => floats(rows.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect()),
        TableDtype::F32 => floats(rows.iter().flat_map(|x| x.to_le_bytes()).collect()),
        TableDtype::Int8 => quantized(integers(127.0).map(i8::cast_unsigned).collect()),
        TableDtype::Int4 => {
            let nibbles: Vec<u8> = integers(7.0).map(|x| (x + 8).cast_unsigned()).collect();
            quantized(nibbles.as_chunks::<2>().0.iter().map(|[even, odd]| even | odd << 4).collect())
        }
    }
}

/// The tokens that are words in Latin letters with the space before them, in the order of the vocabulary, frequent ones first.
fn words(embedder: &Embedder) -> Vec<String> {
    let piece = |id| {
        let mut piece = String::new();
        embedder.pieces().write(id, &mut piece);
        piece
    };
    let is_word = |piece: &String| piece.len() > 1 && piece.chars().all(|c| c == ' ' || c.is_ascii_lowercase());
    let starts = |piece: &String| piece.starts_with(' ') && !piece[1..].contains(' ');
    (0..embedder.rows() as u32).map(piece).filter(|piece| is_word(piece) && starts(piece)).collect()
}

/// A text of about `tokens` tokens.
fn text(words: &[String], tokens: usize, rng: &mut fastrand::Rng) -> String {
    let mut text = String::new();
    for _ in 0..tokens {
        // The exponential of a uniform number follows Zipf's law. The power makes rare tokens rarer, as they are in texts of one language:
        // 100 English paragraphs of XQuAD have 19,195 tokens, of which 4,227 are distinct.
        let rank = (words.len() as f64).powf(rng.f64().powf(SKEW)) as usize;
        text.push_str(&words[rank.min(words.len() - 1)]);
    }
    text
}

fn time(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
