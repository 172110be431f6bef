//! Times this library: `peer-ours CHECKPOINT THREADS TEXTS...`. ../python_peers.py describes the protocol.

use std::error::Error;
use std::time::Instant;

use cpu_time::ProcessTime;
use layer0::checkpoint::Checkpoint;
use layer0::embedder::{Embedder, Memory, Settings};

const BATCH: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, threads, files @ ..] = args.as_slice() else {
        return Err("usage: peer-ours CHECKPOINT THREADS TEXTS...".into());
    };
    let threads: usize = threads.parse()?;
    let checkpoint = Checkpoint::open(checkpoint.as_ref(), &Default::default())?;
    // The other libraries pool no special tokens either, and also copy their tables into memory.
    let mut settings = Settings::default();
    settings.special_tokens = Some(false);
    settings.memory = Memory::Copy;
    let embedder = Embedder::new(checkpoint, settings)?;

    for path in files {
        let file = std::fs::read_to_string(path)?;
        let texts: Vec<&str> = file.lines().collect();
        if let Ok(path) = std::env::var("VECTORS") {
            let vectors = embedder.embed(&texts)?;
            std::fs::write(path, vectors.iter().flatten().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())?;
            continue;
        }
        let (warm, timed) = texts.split_at(BATCH);
        embedder.embed(warm)?;
        let (start, cpu) = (Instant::now(), ProcessTime::now());
        std::thread::scope(|scope| {
            let workers: Vec<_> = timed
                .chunks(timed.len().div_ceil(threads))
                .map(|share| scope.spawn(|| share.chunks(BATCH).try_for_each(|batch| embedder.embed(batch).map(drop))))
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker panicked"))
        })?;
        let (wall, cpu, n) = (start.elapsed(), cpu.elapsed(), timed.len() as f64);
        println!("{} {}", wall.as_secs_f64() / n, cpu.as_secs_f64() / n);
    }
    Ok(())
}
