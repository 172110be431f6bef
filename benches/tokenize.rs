//! Measures tokenization of unseen text in bytes per second: the chosen implementation and the reference.
//!
//!     REAL_DIR=target/real cargo bench --bench tokenize
//!
//! Each sample uses texts that this process has not tokenized before. They are lines of the file that `BENCH_TEXTS` names, or words of the
//! vocabulary, drawn by Zipf's law. Without REAL_DIR the benchmark measures the tiny tokenizers of the fixtures, which says little.

// A benchmark may panic if it cannot read a file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use layer0::checkpoint::tokenizer_json;
use layer0_tokenizers::Tokenize;
use layer0_tokenizers::reference::HfTokenizer;

const NAMES: [&str; 7] = ["llama2", "mistral", "gemma", "gemma3", "llama3", "qwen3", BUILTIN];
/// The built-in model, a Unigram model.
const BUILTIN: &str = "builtin";
const SENTENCE: usize = 58;
const DOCUMENT: usize = 2048;
const HOSTILE: [&str; 6] = ["a", " ", "=", "人人生而自由", "xqzvjk", "\u{1f600}"];

fn main() {
    divan::main();
}

fn path(name: &str) -> PathBuf {
    if name == BUILTIN {
        return Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default/tokenizer.json");
    }
    let fixture = if matches!(name, "llama3" | "qwen3") { "qwen3" } else { "llama" };
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(fixture);
    let real = std::env::var("REAL_DIR").map(|dir| Path::new(&dir).join("tokenizers").join(name));
    real.ok().filter(|real| real.exists()).unwrap_or(fixture).join("tokenizer.json")
}

struct Loaded {
    name: String,
    chosen: Arc<dyn Tokenize>,
    reference: Arc<dyn Tokenize>,
    words: Arc<Vec<String>>,
}

thread_local! {
    static LOADED: RefCell<Option<Loaded>> = const { RefCell::new(None) };
    static DRAWN: RefCell<fastrand::Rng> = const { RefCell::new(fastrand::Rng::with_seed(1)) };
}

fn with<T>(name: &str, work: impl FnOnce(&Loaded) -> T) -> T {
    LOADED.with_borrow_mut(|loaded| {
        if loaded.as_ref().is_none_or(|loaded| loaded.name != name) {
            let path = path(name);
            let json = std::fs::read(&path).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
            // In the order of their IDs, the most common words come first.
            let mut words: Vec<(u64, &str)> = match &value["model"]["vocab"] {
                serde_json::Value::Array(pieces) => (0..).zip(pieces.iter().map(|p| p[0].as_str().unwrap())).collect(),
                pieces => {
                    pieces.as_object().unwrap().iter().map(|(w, id)| (id.as_u64().unwrap(), w.as_str())).collect()
                }
            };
            words.sort_unstable();
            let is_word = |word: &str| word.chars().all(char::is_alphabetic) && !word.is_empty();
            let words = words
                .into_iter()
                .filter_map(|(_, word)| word.strip_prefix(['▁', 'Ġ']).filter(|word| is_word(word)).map(str::to_owned));
            let opened = tokenizer_json::open(&path).unwrap();
            *loaded = Some(Loaded {
                name: name.to_owned(),
                chosen: opened.choice.implementation,
                reference: Arc::new(HfTokenizer::from_json(&json).unwrap()),
                words: Arc::new(words.collect()),
            });
        }
        work(loaded.as_ref().unwrap())
    })
}

/// Returns a text of about `length` bytes: words drawn by Zipf's law, of which one in five is joined from two, with commas and periods.
fn draw(words: &[String], length: usize) -> String {
    DRAWN.with_borrow_mut(|rng| {
        let mut text = String::new();
        let ranks = (words.len() as f64).ln();
        while text.len() < length {
            let mut word = || words[(rng.f64() * ranks).exp() as usize % words.len()].clone();
            let (first, second) = (word(), word());
            text += &first;
            if rng.u8(..5) == 0 {
                text += &second;
            }
            text += [" ", " ", " ", " ", " ", ", ", ". "][rng.usize(..7)];
        }
        text
    })
}

/// Returns lines of BENCH_TEXTS joined to at least `length` bytes. Each line is used once in this process.
fn texts(words: &[String], length: usize) -> String {
    thread_local! {
        static LINES: RefCell<Option<std::vec::IntoIter<String>>> = RefCell::new(
            std::env::var("BENCH_TEXTS").ok().map(|file| {
                let lines: Vec<String> = std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect();
                lines.into_iter()
            }),
        );
    }
    LINES.with_borrow_mut(|lines| {
        let Some(lines) = lines else { return draw(words, length) };
        let mut text = String::new();
        while text.len() < length {
            text += &lines.next().expect("BENCH_TEXTS has too few lines for all samples: give more, or fewer samples");
            text.push(' ');
        }
        text
    })
}

fn unseen(bencher: Bencher<'_, '_>, name: &str, length: usize, which: fn(&Loaded) -> &Arc<dyn Tokenize>) {
    let (tokenizer, words) = with(name, |loaded| (Arc::clone(which(loaded)), Arc::clone(&loaded.words)));
    let mut ids = Vec::with_capacity(length);
    // A worker does the same before it is ready.
    tokenizer.encode("Hello, world!", true, &mut ids).unwrap();
    bencher
        .with_inputs(|| {
            let batch: Vec<String> = (0..(16 * DOCUMENT / length)).map(|_| texts(&words, length)).collect();
            batch
        })
        .input_counter(|batch: &Vec<String>| BytesCount::new(batch.iter().map(String::len).sum::<usize>()))
        .bench_local_values(|batch| {
            for text in &batch {
                ids.clear();
                tokenizer.encode(black_box(text), true, &mut ids).unwrap();
            }
            ids.len()
        });
}

macro_rules! lengths {
    ($($module:ident $length:expr),*) => {$(
        mod $module {
            use super::*;

            #[divan::bench(args = NAMES, sample_size = 1)]
            fn chosen(bencher: Bencher<'_, '_>, name: &str) {
                unseen(bencher, name, $length, |loaded| &loaded.chosen);
            }

            #[divan::bench(args = NAMES, sample_size = 1)]
            fn tokenizers(bencher: Bencher<'_, '_>, name: &str) {
                unseen(bencher, name, $length, |loaded| &loaded.reference);
            }
        }
    )*};
}

lengths!(sentences SENTENCE, documents DOCUMENT);

/// Measures texts that are hard for a tokenizer. The rate must be the same for 1 MB and for 2 MB, which shows that the time is linear.
#[divan::bench(args = NAMES, consts = [1_000_000, 2_000_000], sample_count = 5, sample_size = 1)]
fn hostile<const BYTES: usize>(bencher: Bencher<'_, '_>, name: &str) {
    let tokenizer = with(name, |loaded| Arc::clone(&loaded.chosen));
    let texts: Vec<String> = HOSTILE.iter().map(|part| part.repeat(BYTES / part.len())).collect();
    let mut ids = Vec::new();
    bencher.counter(BytesCount::new(texts.iter().map(String::len).sum::<usize>())).bench_local(|| {
        for text in &texts {
            ids.clear();
            tokenizer.encode(black_box(text), false, &mut ids).unwrap();
        }
        ids.len()
    });
}
