//! Computes the vectors of texts and compares them with the first text.
//!
//!     cargo run --release -p layer0 --example library -- CHECKPOINT TEXT...

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Settings};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let checkpoint = arguments.next().ok_or("usage: library CHECKPOINT TEXT...")?;
    let texts: Vec<String> = arguments.collect();
    let embedder = Embedder::new(Checkpoint::open(checkpoint.as_ref(), &Overrides::default())?, Settings::default())?;
    let vectors = embedder.embed(&texts)?;
    // Vectors have length 1, so their dot product is their cosine.
    for (text, vector) in texts.iter().zip(&vectors) {
        let cosine: f32 = vectors.iter().take(1).flat_map(|first| first.iter().zip(vector)).map(|(a, b)| a * b).sum();
        println!("{cosine:6.3}  {text}");
    }
    Ok(())
}
