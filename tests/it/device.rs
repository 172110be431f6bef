//! Tests pooling on devices. The arithmetic runs on candle's CPU device, which stands in for the hardware. If there is
//! a real device, the tests of the embeddings API run on it as well.

use std::io::Write;

use candle_core::Device;
use embedding_server::config::Config;
use half::{bf16, f16};
use layer0::norm::{CollapsedNorm, Correction};
use layer0::pooling::place::{DeviceChoice, place};
use layer0::pooling::{CpuPooling, DevicePooling, Pooling};
use layer0::table::{EmbeddingTable, TableDtype};
use proptest::prelude::*;

use crate::common::{checkpoint, test_device};
use crate::process::{Server, command, model as model_at};

const DTYPES: [TableDtype; 5] =
    [TableDtype::Bf16, TableDtype::F16, TableDtype::F32, TableDtype::Int8, TableDtype::Int4];

/// Returns a table of numbers between -1 and 1, and a norm that has every property that a norm can have.
fn model(
    rng: &mut fastrand::Rng,
    dtype: TableDtype,
    rows: usize,
    dimensions: usize,
) -> (EmbeddingTable, CollapsedNorm) {
    let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.f32() * 2.0 - 1.0).collect() };
    let values = numbers(rows * dimensions);
    let bytes: Vec<u8> = match dtype {
        TableDtype::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        TableDtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        TableDtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        TableDtype::Int8 => values.iter().map(|x| (x * 128.0) as i8 as u8).collect(),
        TableDtype::Int4 => (0..rows * dimensions.div_ceil(2)).map(|i| (values[i] * 1e4) as i32 as u8).collect(),
    };
    let step = match dtype {
        TableDtype::Int8 => 1.0 / 128.0,
        TableDtype::Int4 => 1.0 / 8.0,
        _ => 1.0,
    };
    let table = EmbeddingTable::new(bytes.into(), dtype, rows, dimensions).unwrap();
    let norm = CollapsedNorm {
        scale: numbers(rows).iter().map(|x| x * step).collect(),
        weight: numbers(dimensions),
        bias: Some(numbers(dimensions)),
        corrections: (0..3).map(|_| Correction { per_row: numbers(rows), direction: numbers(dimensions) }).collect(),
    };
    (table, norm)
}

/// Returns the largest difference between the vectors of two poolings.
fn off(a: &dyn Pooling, b: &dyn Pooling, texts: &[Vec<u32>], dimensions: usize) -> f32 {
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    // The buffers start with different numbers, so that a value that is not overwritten is noticed.
    let (mut x, mut y) = (vec![7.0; texts.len() * dimensions], vec![-7.0; texts.len() * dimensions]);
    a.mean(&texts, dimensions, &mut x).unwrap();
    b.mean(&texts, dimensions, &mut y).unwrap();
    x.iter().zip(&y).map(|(x, y)| (x - y).abs()).fold(0.0, |max, x| if x.is_nan() { x } else { x.max(max) })
}

/// Generates the lengths of texts in tokens: zero, a few, and about 4096, at which a text is cut.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let length = prop_oneof![4 => 0..20usize, 1 => Just(0), 1 => 100..600usize, 1 => 4090..4100usize, 1 => Just(9000)];
    prop_oneof![prop::collection::vec(length, 0..12), prop::collection::vec(0..4usize, 60..140)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_on_a_device_is_the_cpus(
        lengths in lengths(), seed in any::<u64>(), dtype in 0..5usize, dimensions in 1..34usize, share in any::<bool>(),
        prefix in any::<prop::sample::Index>(), plain in any::<bool>(),
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut table, mut norm) = model(&mut rng, DTYPES[dtype], 50, dimensions);
        if share {
            let mapping: Vec<u32> = (0..70).map(|_| rng.u32(..50)).collect();
            table = table.with_mapping(mapping.into()).unwrap();
            norm.scale.extend_from_within(..20);
            norm.corrections.iter_mut().for_each(|c| c.per_row.extend_from_within(..20));
        }
        if plain {
            norm = CollapsedNorm { bias: None, corrections: Vec::new(), ..norm };
        }
        // IDs up to two past the end of the table are drawn. Such an ID adds nothing to the sum but counts for the mean.
        let texts: Vec<Vec<u32>> =
            lengths.iter().map(|&n| (0..n).map(|_| rng.u32(..table.rows() as u32 + 2)).collect()).collect();
        let device = DevicePooling::new(&table, &norm, Device::Cpu).unwrap();
        let cpu = CpuPooling::new(table, norm);
        for dimensions in [dimensions, 1 + prefix.index(dimensions)] {
            let off = off(&cpu, &device, &texts, dimensions);
            prop_assert!(off < 1e-5, "{off}");
        }
    }
}

#[test]
fn ids_past_the_table_alone_and_no_ids_at_all() {
    let (table, norm) = model(&mut fastrand::Rng::with_seed(1), TableDtype::Bf16, 50, 8);
    let device = DevicePooling::new(&table, &norm, Device::Cpu).unwrap();
    let bias = norm.bias.clone().unwrap();
    let mut out = [7.0; 16];
    device.mean(&[&[50, u32::MAX], &[]], 8, &mut out).unwrap();
    assert_eq!((&out[..8], &out[8..]), (bias.as_slice(), [0.0; 8].as_slice()));
    let mut out = [7.0; 8];
    device.mean(&[&[]], 8, &mut out).unwrap();
    assert_eq!(out, [0.0; 8]);
    device.mean(&[], 8, &mut []).unwrap();
}

/// `server.device` applies only to models without a device of their own.
#[test]
fn a_models_own_device_comes_before_the_servers() {
    let text = "[server]\ndevice = \"cuda:1\"\n[[models]]\nid = \"a\"\npath = \"/a\"\ndevice_min_tokens = 5\n\
                [[models]]\nid = \"b\"\npath = \"/b\"\ndevice = \"metal\"";
    let config: Config = toml::from_str(text).unwrap();
    let settings: Vec<_> = config.models.iter().map(|model| model.clone().on(&config.server).settings()).collect();
    assert_eq!((settings[0].device, settings[0].device_min_tokens), (DeviceChoice::Cuda(1), Some(5)));
    assert_eq!((settings[1].device, settings[1].device_min_tokens), (DeviceChoice::Metal(0), None));
}

#[test]
fn without_a_device_the_program_ends_or_says_why_it_goes_on() {
    let model = model_at(&checkpoint("llama"));
    let start = |device| Server::start(&["serve", "--model", &model, "--device", device]);
    let log_of_a_day = |device| {
        let server = start(device);
        server.wait_until_ready();
        server.signal("TERM");
        let (code, log) = server.end();
        assert_eq!(code, Some(0), "{log}");
        log
    };
    let log = log_of_a_day("candle-cpu");
    assert!(log.contains("tokens on, else cpu ("), "the device and the smallest batch for it are not logged: {log}");
    if cfg!(any(feature = "cuda", feature = "metal")) {
        println!("skipped: this build knows a device");
        return;
    }
    let log = log_of_a_day("auto");
    assert!(
        log.contains("device = \"auto\" has chosen the CPU") && log.contains("neither the feature cuda nor metal"),
        "{log}"
    );
    let output = command(&["serve", "--port", "0", "--model", &model, "--device", "cuda:1"]).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78));
    assert!(log.contains("cuda:1") && log.contains("cargo build --release --features cuda"), "{log}");
    let output = command(&["serve", "--device", "gpu"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
}

/// Tests the error messages for each error of the CUDA driver. tests/cuda/emulator.cpp stands in for the driver, and
/// these variables select its behavior.
#[cfg(feature = "cuda")]
#[test]
fn a_driver_that_has_no_device_for_us_is_a_clear_error() {
    if std::env::var_os("EMULATED_DEVICES").is_none() {
        writeln!(std::io::stderr(), "skipped a_driver_that_has_no_device_for_us: tests/cuda/run runs it").unwrap();
        return;
    }
    let model = model_at(&checkpoint("llama"));
    let run = |device: &str, variable: &str, value: &str| {
        let mut command = command(&["serve", "--port", "0", "--model", &model, "--device", device]);
        Server::run(command.env(variable, value))
    };
    for (device, variable, value, parts) in [
        (
            "cuda",
            "EMULATED_DEVICES",
            "-1",
            ["CUDA_ERROR_STUB_LIBRARY", "driver is missing or too old", "install NVIDIA's"],
        ),
        ("cuda", "EMULATED_DEVICES", "0", ["CUDA_ERROR_NO_DEVICE", "finds no device", "--gpus all"]),
        ("cuda:1", "EMULATED_DEVICES", "1", ["CUDA_ERROR_INVALID_DEVICE", "no device of that number", "nvidia-smi -L"]),
        ("cuda", "EMULATED_MEMORY", "1000", ["CUDA_ERROR_OUT_OF_MEMORY", "memory is full", "refining it to int8"]),
    ] {
        let (code, log) = run(device, variable, value).end();
        assert_eq!(code, Some(1), "{log}");
        assert!(parts.iter().all(|part| log.contains(part)), "{parts:?}: {log}");
        let server = run("auto", variable, if device == "cuda:1" { "0" } else { value });
        server.wait_until_ready();
        server.signal("TERM");
        let (code, log) = server.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("\"auto\" has chosen the CPU") && log.contains("device=\"cpu ("), "{log}");
    }
    let server = run("auto", "EMULATED_DEVICES", "1");
    server.wait_until_ready();
    server.signal("TERM");
    let (_, log) = server.end();
    assert!(log.contains("cuda:0"), "{log}");
}

/// Compares the vectors of a real device with those of the CPU. The other tests cover the embeddings API: their servers
/// use the same device.
#[test]
fn a_real_device_makes_the_cpus_vectors() {
    let Some(choice) = test_device() else {
        // The message is written directly to standard error, because the test harness hides the output of a test that
        // passes.
        let reason = "skipped a_real_device_makes_the_cpus_vectors: EMBEDDING_SERVER_TEST_DEVICE names no device (cuda:0, metal:0)";
        writeln!(std::io::stderr(), "{reason}").unwrap();
        return;
    };
    let mut rng = fastrand::Rng::with_seed(9);
    for dtype in DTYPES {
        for (rows, dimensions) in [(1000, 640), (300, 4096), (50, 33)] {
            let (table, norm) = model(&mut rng, dtype, rows, dimensions);
            // With this mapping, the scales are indexed by token ID and the numbers by row.
            let table = table.with_mapping((0..rows as u32).rev().collect()).unwrap();
            let (device, _) =
                place(choice, Some(0), CpuPooling::new(table.clone(), norm.clone())).map_err(|e| e.problem).unwrap();
            assert!(!device.reads_the_table(), "{}", device.device());
            let cpu = CpuPooling::new(table, norm);
            for lengths in [vec![0, 1, 500, 9000, 0, 3], vec![2; if dimensions < 100 { 5000 } else { 200 }], vec![]] {
                let texts: Vec<Vec<u32>> =
                    lengths.iter().map(|&n| (0..n).map(|_| rng.u32(..rows as u32 + 1)).collect()).collect();
                for dimensions in [dimensions, 17] {
                    let off = off(&cpu, &*device, &texts, dimensions);
                    assert!(off < 1e-5, "{} {dtype:?} {rows} x {dimensions}: off by {off}", device.device());
                    if device.device().starts_with("cuda:") {
                        same_bits_in_any_batch(&*device, &texts, dimensions);
                    }
                }
            }
        }
    }
}

/// Checks that our own kernel adds up a text in the same order, whatever the other texts of the batch are.
fn same_bits_in_any_batch(device: &dyn Pooling, texts: &[Vec<u32>], dimensions: usize) {
    let batch: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let mut together = vec![0.0; texts.len() * dimensions];
    device.mean(&batch, dimensions, &mut together).unwrap();
    for (text, expected) in batch.iter().zip(together.chunks(dimensions)) {
        let mut alone = vec![0.0; dimensions];
        device.mean(&[text], dimensions, &mut alone).unwrap();
        assert_eq!(alone, expected);
    }
}
