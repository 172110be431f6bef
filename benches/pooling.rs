//! Compares pooling with the speed at which its rows can be read: `cargo bench --bench pooling`.
//!
//! The ceiling is a loop that reads the same rows in the same order with the widest loads, prefetches one group ahead, and only
//! adds up their words. Token IDs are uniform, so that every row misses the caches, or follow Zipf's law, as words do. Tables are random,
//! because only their size matters.
//!
//! The last table compares the exponent of token counts and the lexical tail with the plain mean.

// A benchmark reports a failure by a panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
#![allow(unsafe_code)] // The loads and prefetches of the ceiling.

use std::hint::black_box;
use std::time::{Duration, Instant};

use layer0::norm::CollapsedNorm;
use layer0::pooling::kernel::{self, GROUP};
use layer0::pooling::{CpuPooling, Pooling};
use layer0::table::{EmbeddingTable, TableDtype};

const TOKENS: usize = 512;
const TEXTS: usize = 64;
/// The number of rounds. The kernels take turns in each round, so that other load affects all of them.
const ROUNDS: usize = 9;

fn main() {
    println!("ns per token, {TOKENS} tokens a text, median of {ROUNDS} rounds (percent of the ceiling)\n");
    let names: Vec<&str> = kernel::available().iter().map(|k| k.name).collect();
    println!("{:<28}{:>9}{}", "table and ids", "ceiling", names.iter().map(|n| format!("{n:>18}")).collect::<String>());
    for (rows, dimensions) in [(128_256, 4096), (262_144, 640)] {
        for dtype in [TableDtype::Bf16, TableDtype::F16, TableDtype::F32, TableDtype::Int8, TableDtype::Int4] {
            if dtype != TableDtype::Bf16 && dimensions == 4096 {
                continue;
            }
            let table = random_table(rows, dimensions, dtype);
            for zipfian in [true, false] {
                report(&table, zipfian);
            }
        }
    }
    report_options();
}

/// Prints what the exponent of token counts and the lexical tail cost in a table of the built-in model's shape.
fn report_options() {
    let table = random_table(92_000, 384, TableDtype::Int4);
    let exponent = |exponent| CpuPooling::new(table.clone(), norm(&table)).with_token_count_exponent(exponent);
    let poolings = [
        ("plain mean", exponent(1.0), 384),
        ("token_count_exponent = 0.7", exponent(0.7), 384),
        ("lexical_dimensions = 128", exponent(1.0).with_lexical_tail(128, 0.8, 2), 512),
        ("lexical_dimensions = 640", exponent(1.0).with_lexical_tail(640, 0.8, 2), 1024),
        ("lexical_dimensions = 1152", exponent(1.0).with_lexical_tail(1152, 0.8, 2), 1536),
    ];
    println!("\nns per token, 92000 x 384 int4, zipf, median of {ROUNDS} rounds (ratio to the plain mean)\n");
    let kernels = kernel::available();
    println!("{:<38}{}", "", kernels.iter().map(|k| format!("{:>18}", k.name)).collect::<String>());
    for length in [30, 512] {
        let mut rng = fastrand::Rng::with_seed(7);
        let texts: Vec<Vec<u32>> = (0..TEXTS * TOKENS / length)
            .map(|_| (0..length).map(|_| id(&mut rng, table.rows(), true)).collect())
            .collect();
        let mut medians = vec![Vec::new(); poolings.len()];
        for kernel in &kernels {
            let mut times = vec![Vec::new(); poolings.len()];
            for _ in 0..ROUNDS {
                for ((_, pooling, dimensions), times) in poolings.iter().zip(&mut times) {
                    let pooling = pooling.clone().with_kernel(*kernel);
                    let mut out = vec![0.0; *dimensions];
                    times.push(time(|| {
                        for ids in &texts {
                            pooling.mean(&[ids], *dimensions, black_box(&mut out)).unwrap();
                        }
                    }));
                }
            }
            for (medians, times) in medians.iter_mut().zip(&mut times) {
                medians.push(median(times).as_secs_f64() * 1e9 / (texts.len() * length) as f64);
            }
        }
        let plain = medians[0].clone();
        for ((name, ..), medians) in poolings.iter().zip(&medians) {
            let ratios = medians.iter().zip(&plain).map(|(ns, plain)| format!("{ns:>10.1} ({:>5.2})", ns / plain));
            println!("{length:>4} tokens, {name:<26}{}", ratios.collect::<String>());
        }
    }
}

fn report(table: &EmbeddingTable, zipfian: bool) {
    let mut rng = fastrand::Rng::with_seed(7);
    let texts: Vec<Vec<u32>> =
        (0..TEXTS).map(|_| (0..TOKENS).map(|_| id(&mut rng, table.rows(), zipfian)).collect()).collect();
    let poolings: Vec<CpuPooling> =
        kernel::available().into_iter().map(|k| CpuPooling::new(table.clone(), norm(table)).with_kernel(k)).collect();
    let mut times = vec![Vec::new(); poolings.len() + 1];
    for _ in 0..ROUNDS {
        times[0].push(time(|| {
            for ids in &texts {
                black_box(read(table, ids));
            }
        }));
        for (pooling, times) in poolings.iter().zip(&mut times[1..]) {
            let mut out = vec![0.0; table.dimensions()];
            times.push(time(|| {
                for ids in &texts {
                    pooling.mean(&[ids], table.dimensions(), black_box(&mut out)).unwrap();
                }
            }));
        }
    }
    let per_token: Vec<f64> =
        times.iter_mut().map(|t| median(t).as_secs_f64() * 1e9 / (TEXTS * TOKENS) as f64).collect();
    let name = format!(
        "{} x {} {} {}",
        table.rows(),
        table.dimensions(),
        table.dtype().name(),
        if zipfian { "zipf" } else { "uniform" }
    );
    let columns: String =
        per_token[1..].iter().map(|ns| format!("{:>10.1} ({:>4.0}%)", ns, 100.0 * per_token[0] / ns)).collect();
    println!("{name:<28}{:>9.1}  {columns}", per_token[0]);
}

/// Reads the rows of `ids`, and returns a sum that depends on every word.
fn read(table: &EmbeddingTable, ids: &[u32]) -> u64 {
    let groups: Vec<Vec<&[u8]>> =
        ids.chunks(GROUP).map(|ids| ids.iter().map(|&id| table.row(id).unwrap()).collect()).collect();
    let mut sum = 0;
    for (i, rows) in groups.iter().enumerate() {
        let ahead = groups.get(i + 1).map_or(&[][..], Vec::as_slice);
        sum ^= read_group(rows, ahead);
    }
    sum
}

#[cfg(target_arch = "x86_64")]
fn read_group(rows: &[&[u8]], ahead: &[&[u8]]) -> u64 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    fn widest(rows: &[&[u8]], ahead: &[&[u8]]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 2];
        for offset in (0..rows[0].len()).step_by(64) {
            for (i, row) in rows.iter().enumerate() {
                let line: &[u8; 64] = row[offset..].first_chunk().unwrap();
                // SAFETY: `line` has 64 bytes, and the load accepts any alignment.
                let words = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
                sums[i % 2] = _mm512_add_epi64(sums[i % 2], words);
            }
            for row in ahead {
                _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(offset).cast());
            }
        }
        _mm512_reduce_add_epi64(_mm512_add_epi64(sums[0], sums[1])).cast_unsigned()
    }

    // SAFETY: the CPU supports AVX-512F, as the condition checks.
    if is_x86_feature_detected!("avx512f") { unsafe { widest(rows, ahead) } } else { read_words(rows) }
}

#[cfg(not(target_arch = "x86_64"))]
fn read_group(rows: &[&[u8]], _ahead: &[&[u8]]) -> u64 {
    read_words(rows)
}

fn read_words(rows: &[&[u8]]) -> u64 {
    rows.iter().flat_map(|row| row.as_chunks::<8>().0).fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

fn id(rng: &mut fastrand::Rng, rows: usize, zipfian: bool) -> u32 {
    // The rank is the inverse of the cumulative sum of 1/rank. The rows of frequent tokens are scattered over the table.
    let rank = if zipfian { (rng.f64() * (rows as f64).ln()).exp() as usize } else { rng.usize(..rows) };
    (rank.wrapping_mul(0x9e37_79b1) % rows) as u32
}

fn random_table(rows: usize, dimensions: usize, dtype: TableDtype) -> EmbeddingTable {
    let mut bytes = vec![0u8; rows * dtype.row_bytes(dimensions).unwrap()];
    // In every dtype these are small numbers, neither NaN nor subnormal.
    let pattern: &[u8] = match dtype {
        TableDtype::Bf16 => &[0x12, 0x3c, 0x34, 0x3c],
        TableDtype::F16 => &[0x12, 0x24, 0x34, 0x24],
        TableDtype::F32 => &[0x12, 0x34, 0x56, 0x3c],
        TableDtype::Int8 | TableDtype::Int4 => &[1, 7, 0xf9, 100],
    };
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = pattern[i % pattern.len()];
    }
    EmbeddingTable::new(bytes.into(), dtype, rows, dimensions).unwrap()
}

fn norm(table: &EmbeddingTable) -> CollapsedNorm {
    CollapsedNorm {
        scale: vec![0.5; table.rows()],
        weight: vec![1.0; table.dimensions()],
        bias: None,
        corrections: Vec::new(),
    }
}

fn time(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
