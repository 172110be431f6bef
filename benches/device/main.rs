//! Compares pooling on a device with the speed of the device's memory. Run benches/device/run, or
//!
//!     cargo bench --features cuda --bench device -- cuda:0 [ROWS DIMENSIONS TEXTS TOKENS]
//!
//! The speed of the memory is measured by a copy of a GiB within it, and counts bytes read and written. A batch is timed as in the server, from
//! token IDs in host memory to vectors in host memory. The transfers of as many bytes are also timed alone. Token IDs are uniform, because
//! repeated rows would be read from caches. The table is random, because only its size matters.

// A benchmark reports a failure by a panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::hint::black_box;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use layer0::norm::CollapsedNorm;
use layer0::pooling::CpuPooling;
use layer0::pooling::place::{DeviceChoice, place};
use layer0::table::{EmbeddingTable, TableDtype};

const ROUNDS: usize = 9;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Some((name, sizes)) = arguments.split_first() else {
        println!("skipped: name a device, as in `cargo bench --features cuda --bench device -- cuda:0`");
        return;
    };
    let sizes: Vec<usize> = sizes.iter().map(|size| size.parse().unwrap()).collect();
    let [rows, dimensions, texts, tokens] = sizes[..].try_into().unwrap_or([128_256, 4096, 2048, 500]);
    let choice = DeviceChoice::try_from(name.clone()).unwrap();
    let device = match choice {
        DeviceChoice::Cuda(n) => Device::new_cuda_with_stream(n).unwrap(),
        DeviceChoice::Metal(n) => Device::new_metal(n).unwrap(),
        DeviceChoice::CandleCpu => Device::Cpu,
        DeviceChoice::Auto | DeviceChoice::Cpu => panic!("{name} is no device"),
    };
    let mut rng = fastrand::Rng::with_seed(7);
    let ids: Vec<Vec<u32>> = (0..texts).map(|_| (0..tokens).map(|_| rng.u32(..rows as u32)).collect()).collect();
    let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    println!(
        "{rows} x {dimensions}, {texts} texts of {tokens} tokens on {name}; median of {ROUNDS} rounds (least, most)\n"
    );

    let copied = (1 << 30).min(16 * rows * dimensions);
    let block = Tensor::zeros(copied, DType::U8, &device).unwrap();
    let copy = rounds(|| {
        black_box(block.copy().unwrap());
        device.synchronize().unwrap();
    });
    drop(block);
    let speed = 2.0 * copied as f64 / copy[1];
    println!("memory, by a copy          {:>8.1} GB/s", speed / 1e9);

    let all: Vec<u32> = ids.concat();
    let vectors = Tensor::zeros(texts * dimensions, DType::F32, &device).unwrap();
    let transfers = rounds(|| {
        black_box(Tensor::from_slice(&all, all.len(), &device).unwrap());
        black_box(vectors.to_vec1::<f32>().unwrap());
    });
    println!("transfers of a batch       {:>8.2} ms", transfers[1] * 1e3);
    drop(vectors);

    println!("\n{:<6}{:<28}{:>14}{:>10}{:>12}{:>24}", "", "", "tokens/s", "GB/s", "of memory", "without transfers");
    let mut out = vec![0.0; texts * dimensions];
    for dtype in [TableDtype::Bf16, TableDtype::F16, TableDtype::F32, TableDtype::Int8, TableDtype::Int4] {
        let (table, norm) = model(rows, dimensions, dtype);
        let pooling =
            place(choice, Some(0), CpuPooling::new(table.clone(), norm.clone())).map_err(|e| e.problem).unwrap().0;
        let cpu = CpuPooling::new(table, norm);
        for pooling in [&*pooling, &cpu] {
            let time = rounds(|| pooling.mean(&ids, dimensions, black_box(&mut out)).unwrap());
            let bytes = (all.len() * dtype.row_bytes(dimensions).unwrap()) as f64;
            let (least, most) = (all.len() as f64 / time[2], all.len() as f64 / time[0]);
            print!("{:<6}{:<28}{:>14.0}", dtype.name(), pooling.device(), all.len() as f64 / time[1]);
            print!("{:>10.1}{:>11.0}%", bytes / time[1] / 1e9, 100.0 * bytes / time[1] / speed);
            if pooling.reads_the_table() {
                println!("{:>24}  ({least:.0} to {most:.0})", "one thread");
            } else {
                let alone = time[1] - transfers[1];
                println!("{:>23.0}%  ({least:.0} to {most:.0})", 100.0 * bytes / alone / speed);
            }
        }
    }
}

/// Returns the shortest, the median and the longest time in seconds.
fn rounds(mut f: impl FnMut()) -> [f64; 3] {
    f();
    let mut times = [0.0; ROUNDS].map(|_: f64| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    });
    times.sort_by(f64::total_cmp);
    [times[0], times[ROUNDS / 2], times[ROUNDS - 1]]
}

fn model(rows: usize, dimensions: usize, dtype: TableDtype) -> (EmbeddingTable, CollapsedNorm) {
    // In every dtype these are small numbers, neither NaN nor subnormal.
    let pattern: &[u8] = match dtype {
        TableDtype::Bf16 => &[0x12, 0x3c, 0x34, 0x3c],
        TableDtype::F16 => &[0x12, 0x24, 0x34, 0x24],
        TableDtype::F32 => &[0x12, 0x34, 0x56, 0x3c],
        TableDtype::Int8 | TableDtype::Int4 => &[1, 7, 0xf9, 100],
    };
    let bytes: Vec<u8> = pattern.iter().copied().cycle().take(rows * dtype.row_bytes(dimensions).unwrap()).collect();
    let table = EmbeddingTable::new(bytes.into(), dtype, rows, dimensions).unwrap();
    let norm =
        CollapsedNorm { scale: vec![0.5; rows], weight: vec![1.0; dimensions], bias: None, corrections: Vec::new() };
    (table, norm)
}
