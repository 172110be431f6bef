//! Times model2vec-rs: `peer-model2vec MODEL THREADS TEXTS...`. ../python_peers.py describes the protocol.

use std::time::Instant;

use anyhow::{Result, bail};
use cpu_time::ProcessTime;
use model2vec_rs::model::StaticModel;

const BATCH: usize = 256;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, threads, files @ ..] = args.as_slice() else {
        bail!("usage: peer-model2vec MODEL THREADS TEXTS...");
    };
    let threads: usize = threads.parse()?;
    let model = StaticModel::from_pretrained(model, None, None, None)?;
    // By default model2vec-rs truncates texts at 512 tokens. In this comparison nothing is truncated.
    let encode = |batch: &[String]| model.encode_with_args(batch, None, BATCH);

    for path in files {
        let texts: Vec<String> = std::fs::read_to_string(path)?.lines().map(str::to_owned).collect();
        if let Ok(path) = std::env::var("VECTORS") {
            std::fs::write(path, encode(&texts).iter().flatten().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())?;
            continue;
        }
        let (warm, timed) = texts.split_at(BATCH);
        encode(warm);
        let (start, cpu) = (Instant::now(), ProcessTime::now());
        // Several threads share the model, because its own parallelism covers only tokenization.
        std::thread::scope(|scope| {
            for share in timed.chunks(timed.len().div_ceil(threads)) {
                scope.spawn(|| share.chunks(BATCH).for_each(|batch| drop(encode(batch))));
            }
        });
        let (wall, cpu, n) = (start.elapsed(), cpu.elapsed(), timed.len() as f64);
        println!("{} {}", wall.as_secs_f64() / n, cpu.as_secs_f64() / n);
    }
    Ok(())
}
