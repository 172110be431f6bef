//! Measures how long it takes to write an embedding in each format of the API: `cargo bench --bench wire`.

#![allow(clippy::unwrap_used)]

use divan::Bencher;
use embedding_server::decimal;

fn main() {
    divan::main();
}

/// Returns a unit vector of normally distributed numbers.
fn vector(dimensions: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut normal = || (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0;
    let scale = 1.0 / (dimensions as f32).sqrt();
    (0..dimensions).map(|_| normal() * scale).collect()
}

const DIMENSIONS: [usize; 2] = [640, 4096];

fn write(bencher: Bencher<'_, '_>, dimensions: usize, append: impl Fn(&mut Vec<u8>, &[f32])) {
    let vector = vector(dimensions);
    let mut out = Vec::new();
    bencher.bench_local(|| {
        out.clear();
        append(&mut out, &vector);
        out.len()
    });
}

#[divan::bench(args = DIMENSIONS)]
fn decimals(bencher: Bencher<'_, '_>, dimensions: usize) {
    write(bencher, dimensions, decimal::array);
}

#[divan::bench(args = DIMENSIONS)]
fn decimals_by_serde_json(bencher: Bencher<'_, '_>, dimensions: usize) {
    write(bencher, dimensions, |out, vector| serde_json::to_writer(out, vector).unwrap());
}

#[divan::bench(args = DIMENSIONS)]
fn base64(bencher: Bencher<'_, '_>, dimensions: usize) {
    write(bencher, dimensions, |out, vector| {
        base64_simd::STANDARD.encode_append(bytemuck::cast_slice::<f32, u8>(vector), out);
    });
}
