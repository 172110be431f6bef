//! Compares the vectors of every family with those of transformers (`tests/fixtures/make.py`).

use std::path::Path;

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Input};
use layer0::norm::FinalNorm;
use layer0::pooling::{CpuPooling, DevicePooling, Pooling};
use serde::Deserialize;

use crate::common::{TestApp, checkpoint, difference, length, settings};

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    mean: Vec<Vec<f32>>,
}

fn golden(dir: &Path) -> Golden {
    serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap()
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(checkpoint(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 68, "the fixtures are missing");
    names
}

/// Returns the tolerance: 1e-6 of the largest number, which is the precision of f32 at that size.
fn tolerance(mean: &[f32]) -> f32 {
    1e-6 * mean.iter().fold(1.0, |max, x| x.abs().max(max))
}

#[test]
fn every_family_equals_transformers() {
    let mut wrong = Vec::new();
    for name in names() {
        let dir = checkpoint(&name);
        let golden = golden(&dir);
        let settings = settings(|settings| settings.normalize = Some(false));
        let embedder = match Checkpoint::open(&dir, &Overrides::default()).and_then(|c| Embedder::new(c, settings)) {
            Ok(embedder) => embedder,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        assert!(golden.texts.len() >= 6, "{name}");
        for (i, text) in golden.texts.iter().enumerate() {
            let tokens = embedder.tokens(i, &Input::Text(text.clone())).unwrap();
            if tokens.ids() != golden.ids[i] {
                wrong.push(format!("{name}: {text:?}: ids {:?}, not {:?}", tokens.ids(), golden.ids[i]));
                continue;
            }
            let mut mean = vec![0.0; embedder.dimensions()];
            embedder.pool(&[tokens], embedder.dimensions(), &mut mean).unwrap();
            let off = difference(&mean, &golden.mean[i]);
            if off > tolerance(&golden.mean[i]) {
                wrong.push(format!("{name}: {text:?}: off by {off}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs the arithmetic of devices on candle's CPU device. CUDA and Metal run the same operations on other hardware.
#[test]
fn pooling_by_candle_equals_the_cpus_own() {
    for name in ["llama", "gemma", "phi", "bloom", "olmo"] {
        let checkpoint = Checkpoint::open(&checkpoint(name), &Overrides::default()).unwrap();
        let norm: &FinalNorm = &checkpoint.norm;
        let collapsed = norm.collapse(&checkpoint.table, 1).unwrap();
        let device = DevicePooling::new(&checkpoint.table, &collapsed, candle_core::Device::Cpu).unwrap();
        let cpu = CpuPooling::new(checkpoint.table.clone(), collapsed);
        let long: Vec<u32> = (0..10_000).map(|i| i * 7 % checkpoint.table.rows() as u32).collect();
        let texts: [&[u32]; 3] = [&[1, 2, 3], &long, &[]];
        for dimensions in [checkpoint.table.dimensions(), 5] {
            let mut a = vec![0.0; 3 * dimensions];
            let mut b = a.clone();
            cpu.mean(&texts, dimensions, &mut a).unwrap();
            device.mean(&texts, dimensions, &mut b).unwrap();
            assert!(difference(&a, &b) < 1e-5, "{name}: {}", difference(&a, &b));
        }
    }
}

/// The whole server returns the same vectors, scaled to length 1.
#[test]
fn the_server_answers_the_golden_direction() {
    let app = TestApp::start(|_| {});
    let golden = golden(&checkpoint("llama"));
    let answer = app.embed(&serde_json::json!({"input": golden.texts}));
    let tokens: usize = golden.ids.iter().map(Vec::len).sum();
    assert_eq!(answer.body["usage"]["prompt_tokens"], tokens);
    for (vector, mean) in answer.vectors().iter().zip(&golden.mean) {
        let expected: Vec<f32> = mean.iter().map(|x| (f64::from(*x) / length(mean)) as f32).collect();
        assert!(difference(vector, &expected) < 1e-6);
        assert!((length(vector) - 1.0).abs() < 1e-6);
    }
}
