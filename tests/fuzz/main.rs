//! Feeds hostile bytes to everything that reads bytes from a client or a checkpoint. The bytes are mutations of the corpus
//! (`tests/fuzz/corpus`, and the fixtures). Nothing may panic, take longer than [`SLOWEST`], or take more memory than [`memory`].
//!
//!     FUZZ_SECONDS=3600 cargo test --test fuzz
//!
//! `FUZZ_SECONDS` is the time for all targets together, 4 by default. The seed is random and is printed; `FUZZ_SEED` sets it. An input that
//! fails is written to `target/fuzz`: move it into the corpus, whose files are replayed in each run.

// A test reports a failure by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod allocator;
mod mutate;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// The longest time for one input, in a debug build on a busy machine. Most inputs take a millisecond.
const SLOWEST: Duration = Duration::from_secs(30);

/// Returns the limit on the memory for reading `length` hostile bytes. The maps of a tokenizer are many times as large as its file.
fn memory(length: usize) -> usize {
    (64 << 20) + 400 * length
}

type Target = (&'static str, fn(&[u8]));

fn main() {
    // `cargo test NAME` passes the names of tests of other binaries, too.
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect(name));
    let seconds = number("FUZZ_SECONDS").unwrap_or(4);
    let seed = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let targets: Vec<Target> = targets::ALL.into_iter().filter(|(name, _)| chosen(name)).collect();
    let Some(each) = Duration::from_secs(seconds).checked_div(targets.len() as u32) else { return };
    println!("FUZZ_SEED={seed}, {each:?} for each of {} targets", targets.len());
    // The hook prints nothing, because a panic is reported together with its input.
    std::panic::set_hook(Box::new(|_| {}));
    let running = watchdog();
    let mut failed = 0;
    for (name, target) in targets {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "no corpus for {name}");
        let (started, mut rng, mut runs, mut wrong) = (Instant::now(), Rng::with_seed(seed), 0u64, false);
        let replayed = corpus.clone();
        let mutated = std::iter::from_fn(|| (started.elapsed() < each).then(|| mutate::one(&corpus, &mut rng)));
        for input in replayed.into_iter().chain(mutated) {
            runs += 1;
            if let Err(problem) = run(name, target, &input, &running) {
                println!("{name}: {problem}: {}", keep(name, &input).display());
                wrong = true;
                break;
            }
        }
        failed += u32::from(wrong);
        println!("{name}: {runs} inputs, {}", if wrong { "FAILED" } else { "ok" });
    }
    println!("{} passed, {failed} failed", targets::ALL.len() as u32 - failed);
    std::process::exit(i32::from(failed > 0));
}

/// The target that is running, its input, and the time at which it started.
type Running = Arc<Mutex<Option<(&'static str, Vec<u8>, Instant)>>>;

/// Ends the process if one input takes too long.
fn watchdog() -> Running {
    let running = Running::default();
    let watched = Arc::clone(&running);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if let Some((name, input, since)) = &*watched.lock().unwrap()
                && since.elapsed() > SLOWEST
            {
                println!("{name}: takes over {SLOWEST:?}: {}", keep(name, input).display());
                std::process::exit(1);
            }
        }
    });
    running
}

fn run(name: &'static str, target: fn(&[u8]), input: &[u8], running: &Running) -> Result<(), String> {
    *running.lock().unwrap() = Some((name, input.to_vec(), Instant::now()));
    let before = allocator::watermark();
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    let taken = allocator::peak().saturating_sub(before);
    *running.lock().unwrap() = None;
    if let Err(panic) = result {
        let text = panic.downcast_ref::<String>().cloned();
        return Err(format!(
            "panics: {}",
            text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
        ));
    }
    if taken > memory(input.len()) { Err(format!("takes {taken} bytes for {}", input.len())) } else { Ok(()) }
}

/// Returns the seeds of a target: inputs that failed once, and the fixtures of its kind.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut found = Vec::new();
    collect(&tests.join("fuzz/corpus").join(name), &|_| true, &mut found);
    let is = |wanted: &'static str| move |path: &Path| path.file_name().is_some_and(|file| file == wanted);
    let fixtures = tests.join("fixtures");
    match name {
        "safetensors" => collect(&fixtures, &is("model.safetensors"), &mut found),
        "safetensors_index" => collect(&fixtures, &is("model.safetensors.index.json"), &mut found),
        "model_config" => collect(&fixtures, &is("config.json"), &mut found),
        "tokenizer" => collect(&fixtures, &is("tokenizer.json"), &mut found),
        "gguf" => collect(&fixtures, &|path| path.extension().is_some_and(|e| e == "gguf"), &mut found),
        "config" => collect(&tests.join("../config"), &|_| true, &mut found),
        _ => {}
    }
    found
}

fn collect(path: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<Vec<u8>>) {
    if path.is_dir() {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| collect(entry, wanted, found));
    } else if wanted(path)
        && let Ok(bytes) = std::fs::read(path)
    {
        found.push(bytes);
    }
}

fn keep(name: &str, input: &[u8]) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(format!("{:016x}", fastrand::u64(..)));
    std::fs::write(&path, input).unwrap();
    path
}
