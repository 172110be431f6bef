//! Prints how long a tokenizer.json takes to load, and how long its compiled form takes:
//!
//!     cargo run --release -p layer0-tokenizers --example load -- path/to/tokenizer.json

// The output is the purpose of this program.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs::{self, File};
use std::time::Instant;

use layer0_tokenizers::choose::Tokenizer;
use twox_hash::XxHash3_128;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("name a tokenizer.json")?;
    let json = fs::read(path)?;
    let tokenizer = time("load tokenizer.json", || Tokenizer::from_json(&json))?;
    let key = time("digest of tokenizer.json", || XxHash3_128::oneshot(&json));
    let compiled = time("compile", || tokenizer.compile(&json, key)).ok_or("the tokenizer has no compiled form")?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), &compiled)?;
    for _ in 0..5 {
        time("read the compiled tokenizer", || {
            Tokenizer::from_compiled(&mut File::open(file.path())?, compiled.len() as u64, key)
        })?;
    }
    Ok(())
}

fn time<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    println!("{what}: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    result
}
