//! Uses the crate as a library, without a server, to compute the vectors of texts and compare them with the first text.
//!
//!     cargo run --release --no-default-features --example library -- CHECKPOINT TEXT...

use embedding_server::checkpoint::{Checkpoint, Overrides};
use embedding_server::embedder::{Embedder, Settings};

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
