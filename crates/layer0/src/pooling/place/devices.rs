//! Starts devices, compares them with the CPU, and finds the number of tokens from which on a device is faster than the CPU.

use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use candle_core::Device;
use layer0_tokenizers::yield_point::{Stopped, YieldPoint};

use super::{DeviceChoice, NO_DEVICES, Unavailable};
use crate::error::EmbedError;
use crate::pooling::{Comparison, CpuPooling, DevicePooling, Pooling};
use crate::table::EmbeddingTable;

/// The devices that this build supports, in the order in which [`DeviceChoice::Auto`] tries them.
const BUILT: &[DeviceChoice] = &[
    #[cfg(feature = "cuda")]
    DeviceChoice::Cuda(0),
    #[cfg(feature = "metal")]
    DeviceChoice::Metal(0),
];

/// Creates the pooling of the table of `cpu`, as [`super::place`] does.
pub(super) fn place(
    choice: DeviceChoice,
    min_tokens: Option<usize>,
    cpu: CpuPooling,
) -> Result<(Box<dyn Pooling>, Option<String>), Unavailable> {
    place_by(open, choice, min_tokens, cpu)
}

/// Like [`place`], with devices that `open` creates.
fn place_by(
    open: impl Fn(DeviceChoice) -> Result<Device, Unavailable>,
    choice: DeviceChoice,
    min_tokens: Option<usize>,
    cpu: CpuPooling,
) -> Result<(Box<dyn Pooling>, Option<String>), Unavailable> {
    let candidates = match choice {
        DeviceChoice::Cpu => Vec::new(),
        DeviceChoice::Auto => BUILT.to_vec(),
        one => vec![one],
    };
    let mut reasons = Vec::new();
    for candidate in candidates {
        let on_device = open(candidate).and_then(|device| {
            let failed = |e: &str| diagnose(candidate, e, cpu.table.bytes().len());
            let device = on(device, &cpu).map_err(|e| failed(&e.to_string()))?;
            compare(&cpu, &*device).map_err(|e| failed(&e))?;
            let min_tokens = min_tokens.map_or_else(|| measure(&cpu, &*device), Ok);
            Ok((device, min_tokens.map_err(|e| failed(&e.to_string()))?))
        });
        match on_device {
            Ok((device, 0..=1)) => return Ok((device, None)),
            Ok((device, min_tokens)) => return Ok((Box::new(BySize { cpu, device, min_tokens }), None)),
            Err(why) if choice != DeviceChoice::Auto => return Err(why),
            Err(why) => reasons.push(why.problem),
        }
    }
    if choice == DeviceChoice::Auto && reasons.is_empty() {
        reasons.push(NO_DEVICES.to_owned());
    }
    Ok((Box::new(cpu), (!reasons.is_empty()).then(|| reasons.join("; "))))
}

/// Copies the table to `device`.
fn on(device: Device, cpu: &CpuPooling) -> candle_core::Result<Box<dyn Pooling>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = &device {
        return Ok(Box::new(super::super::cuda::CudaPooling::new(&cpu.table, &cpu.norm, device)?));
    }
    Ok(Box::new(DevicePooling::new(&cpu.table, &cpu.norm, device)?))
}

fn open(choice: DeviceChoice) -> Result<Device, Unavailable> {
    match choice {
        // All threads share one stream. candle's default stream is a different one in each thread, and the streams do not
        // wait for each other.
        DeviceChoice::Cuda(number) => start(Device::new_cuda_with_stream, choice, number),
        DeviceChoice::Metal(number) => start(Device::new_metal, choice, number),
        DeviceChoice::Auto | DeviceChoice::Cpu | DeviceChoice::CandleCpu => Ok(Device::Cpu),
    }
}

fn start(
    start: fn(usize) -> candle_core::Result<Device>,
    choice: DeviceChoice,
    number: usize,
) -> Result<Device, Unavailable> {
    // candle indexes the list of Metal devices without checking its length.
    match catch_unwind(AssertUnwindSafe(|| start(number))) {
        Ok(started) => started.map_err(|e| diagnose(choice, &e.to_string(), 0)),
        Err(_) => Err(diagnose(choice, "it panicked at the start, as where there is no device of that number", 0)),
    }
}

/// Translates a driver's error to a problem and a remedy; `table` is the size of the table in bytes.
fn diagnose(choice: DeviceChoice, error: &str, table: usize) -> Unavailable {
    /// The errors of CUDA's driver API by name (cuda.h), with their meaning here and the remedy.
    const KNOWN: [(&[&str], &str, &str); 5] = [
        (
            &["OUT_OF_MEMORY"],
            "its memory is full",
            "free memory on it, or make the table smaller: refining it to int8 halves one of bf16",
        ),
        (
            &["INVALID_DEVICE"],
            "there is no device of that number",
            "`nvidia-smi -L` lists them; CUDA_VISIBLE_DEVICES hides some, and counts the others from 0",
        ),
        (
            &["NO_DEVICE"],
            "the driver finds no device",
            "give the container its devices (`--gpus all`), and see that CUDA_VISIBLE_DEVICES is not empty",
        ),
        (
            &["STUB_LIBRARY", "INSUFFICIENT_DRIVER", "DRIVER_MISMATCH", "UNSUPPORTED_PTX_VERSION"],
            "the driver is missing or too old",
            "install NVIDIA's driver for the CUDA that this was built with, or a newer one",
        ),
        (
            &["NO_BINARY_FOR_GPU", "INVALID_PTX", "INVALID_IMAGE"],
            "this was built for another generation of GPU",
            "build with CUDA_COMPUTE_CAP set to this one's (`nvidia-smi --query-gpu=compute_cap --format=csv`)",
        ),
    ];
    let name = String::from(choice);
    let line = error.lines().next().unwrap_or_default();
    let known = KNOWN.iter().find(|(words, ..)| words.iter().any(|word| error.contains(word)));
    let size = if table > 0 { format!("; the table has {} MiB", table.div_ceil(1 << 20)) } else { String::new() };
    Unavailable {
        problem: match known {
            Some((_, meaning, _)) => format!("cannot use device = \"{name}\": {meaning} ({line}{size})"),
            None => format!("cannot use device = \"{name}\": {line}{size}"),
        },
        remedy: match known {
            Some((_, _, remedy)) => format!("{remedy}; or set device = \"cpu\", or \"auto\" to do without a device"),
            None => "set device = \"cpu\", or \"auto\" to do without a device".to_owned(),
        },
    }
}

/// Returns `count` IDs spread over the table, in texts of at most 512 IDs.
fn texts_of(table: &EmbeddingTable, count: usize) -> Vec<Vec<u32>> {
    // The step is prime, so that no row is close to the one before.
    let ids: Vec<u32> = (0..count).map(|i| (i.wrapping_mul(7919) % table.rows()) as u32).collect();
    ids.chunks(512).map(<[u32]>::to_vec).collect()
}

/// Checks that the vectors of the device equal those of the CPU. Otherwise a faulty driver or kernel would only be noticed by
/// searches that find nothing.
fn compare(cpu: &CpuPooling, device: &dyn Pooling) -> Result<(), String> {
    const TOLERANCE: f32 = 1e-4;
    let (texts, dimensions) = (texts_of(&cpu.table, 5000), cpu.table.dimensions());
    let mut texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    texts.push(&[0]);
    let mut expected = vec![0.0; texts.len() * dimensions];
    let mut found = expected.clone();
    cpu.mean(&texts, dimensions, &mut expected).map_err(|e| e.to_string())?;
    device.mean(&texts, dimensions, &mut found).map_err(|e| e.to_string())?;
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    // The comparison is written so that NaN is a difference.
    let equal = |(a, b): &(&f32, &f32)| (*a - *b).abs() <= TOLERANCE * largest;
    match expected.iter().zip(&found).find(|pair| !equal(pair)) {
        Some((a, b)) => Err(format!("it computes {b} where the CPU computes {a}")),
        None => Ok(()),
    }
}

/// Measures the number of tokens from which on the device is faster than one CPU thread.
fn measure(cpu: &CpuPooling, device: &dyn Pooling) -> Result<usize, EmbedError> {
    const ROUNDS: usize = 3;
    let dimensions = cpu.table.dimensions();
    crossover(|tokens| {
        let texts = texts_of(&cpu.table, tokens);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let mut out = vec![0.0; texts.len() * dimensions];
        let mut best = [Duration::MAX; 2];
        for _ in 0..ROUNDS {
            for (best, pooling) in best.iter_mut().zip([cpu as &dyn Pooling, device]) {
                let start = Instant::now();
                pooling.mean(&texts, dimensions, black_box(&mut out))?;
                *best = start.elapsed().min(*best);
            }
        }
        Ok(best)
    })
}

/// Returns the first of 16, 32, 64, ... tokens for which the device takes no longer than the CPU, according to `times`. A batch
/// that would take long to measure goes to the requested device.
fn crossover(mut times: impl FnMut(usize) -> Result<[Duration; 2], EmbedError>) -> Result<usize, EmbedError> {
    const LONG: Duration = Duration::from_millis(20);
    let mut tokens = 16;
    loop {
        let [cpu, device] = times(tokens)?;
        if device <= cpu || cpu.max(device) > LONG {
            return Ok(tokens);
        }
        tokens *= 2;
    }
}

/// Pools small batches on the CPU, and the others on a device.
struct BySize {
    cpu: CpuPooling,
    device: Box<dyn Pooling>,
    /// The number of tokens of the smallest batch for the device.
    min_tokens: usize,
}

impl Pooling for BySize {
    fn mean(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> Result<(), EmbedError> {
        let tokens: usize = texts.iter().map(|ids| ids.len()).sum();
        if tokens < self.min_tokens {
            self.cpu.mean(texts, dimensions, out)
        } else {
            self.device.mean(texts, dimensions, out)
        }
    }

    fn exact_mean(&self, ids: &[u32], dimensions: usize, at: &dyn YieldPoint) -> Result<Option<Vec<f64>>, Stopped> {
        self.cpu.exact_mean(ids, dimensions, at)
    }

    fn comparison(&self, ids: &[u32], units: &[f32]) -> Option<Comparison<'_>> {
        self.cpu.comparison(ids, units)
    }

    fn device(&self) -> String {
        format!("{} from {} tokens on, else {}", self.device.device(), self.min_tokens, self.cpu.device())
    }

    fn wants_whole_batches(&self) -> bool {
        true
    }

    fn reads_the_table(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::norm::CollapsedNorm;
    use crate::table::TableDtype;

    fn cpu() -> CpuPooling {
        let bytes: Vec<u8> = (0..40u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let table = EmbeddingTable::new(bytes.into(), TableDtype::F32, 10, 4).unwrap();
        let norm = CollapsedNorm { scale: vec![1.0; 10], weight: vec![1.0; 4], bias: None, corrections: Vec::new() };
        CpuPooling::new(table, norm)
    }

    fn unavailable() -> Unavailable {
        Unavailable { problem: "a problem".to_owned(), remedy: "a remedy".to_owned() }
    }

    #[test]
    fn a_device_that_does_not_start_is_an_error_unless_any_will_do() {
        let fails = |_| Err(unavailable());
        for choice in [DeviceChoice::Cuda(0), DeviceChoice::Metal(2)] {
            assert_eq!(place_by(fails, choice, None, cpu()).err(), Some(unavailable()));
        }
        let (pooling, reason) = place_by(fails, DeviceChoice::Auto, None, cpu()).ok().unwrap();
        assert!(pooling.device().starts_with("cpu (") && pooling.reads_the_table());
        let built = BUILT.len();
        let expected = if built == 0 { NO_DEVICES.to_owned() } else { vec!["a problem"; built].join("; ") };
        assert_eq!(reason, Some(expected));
        let (pooling, reason) = place_by(fails, DeviceChoice::Cpu, None, cpu()).ok().unwrap();
        assert!(pooling.device().starts_with("cpu (") && reason.is_none() && !pooling.wants_whole_batches());
    }

    /// candle's CPU device, which is told from the CPU's own pooling by its name.
    #[test]
    fn small_batches_stay_on_the_cpu_and_zero_leaves_none_there() {
        let starts = |_| Ok(Device::Cpu);
        let (pooling, reason) = place_by(starts, DeviceChoice::Cuda(0), Some(3), cpu()).ok().unwrap();
        assert!(pooling.device().starts_with("cpu (candle) from 3 tokens on, else cpu ("), "{}", pooling.device());
        assert!(pooling.wants_whole_batches() && pooling.reads_the_table() && reason.is_none());
        let (pooling, _) = place_by(starts, DeviceChoice::Cuda(0), Some(0), cpu()).ok().unwrap();
        assert_eq!(pooling.device(), "cpu (candle)");
        assert!(!pooling.reads_the_table());
    }

    #[test]
    fn the_number_of_tokens_decides_which_pooling_takes_a_batch() {
        // A device with another table shows which one answered.
        let mut cpu = cpu();
        let device = DevicePooling::new(&cpu.table, &cpu.norm, Device::Cpu).unwrap();
        cpu.norm.scale.fill(2.0);
        let both = BySize { cpu, device: Box::new(device), min_tokens: 3 };
        let mut out = [0.0; 8];
        both.mean(&[&[1], &[1]], 4, &mut out).unwrap();
        assert_eq!(out, [8.0, 10.0, 12.0, 14.0, 8.0, 10.0, 12.0, 14.0]);
        both.mean(&[&[1], &[1, 1]], 4, &mut out).unwrap();
        assert_eq!(out, [4.0, 5.0, 6.0, 7.0, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn a_device_that_computes_anything_else_is_refused() {
        let mut cpu = cpu();
        let device = DevicePooling::new(&cpu.table, &cpu.norm, Device::Cpu).unwrap();
        assert_eq!(compare(&cpu, &device), Ok(()));
        for wrong in [1.01, f32::NAN] {
            cpu.norm.scale.fill(wrong);
            let error = compare(&cpu, &device).unwrap_err();
            assert!(error.contains("where the CPU computes"), "{error}");
        }
    }

    #[test]
    fn the_first_size_at_which_the_device_is_as_fast_decides() {
        let cost = |cpu: u64, device: u64| Ok([Duration::from_micros(cpu), Duration::from_micros(device)]);
        assert_eq!(crossover(|tokens| cost(tokens as u64, 100)), Ok(128));
        assert_eq!(crossover(|tokens| cost(tokens as u64, tokens as u64)), Ok(16));
        // Never as fast: measured until it takes long, and not for ever.
        let last = Cell::new(0);
        let never = crossover(|tokens| {
            last.set(tokens);
            cost(tokens as u64, 10 * tokens as u64)
        });
        assert_eq!(never, Ok(2048));
        assert_eq!(last.get(), 2048);
        let failed = EmbedError::Device { message: String::new() };
        assert_eq!(crossover(|_| Err(failed.clone())), Err(failed));
    }

    #[test]
    fn what_cuda_says_becomes_what_to_do() {
        for (error, meaning, remedy) in [
            ("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", "memory is full", "int8"),
            (
                "DriverError(CUDA_ERROR_INVALID_DEVICE, \"invalid device ordinal\")",
                "no device of that number",
                "nvidia-smi -L",
            ),
            ("DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device\")", "finds no device", "--gpus all"),
            ("DriverError(CUDA_ERROR_STUB_LIBRARY, \"\")", "driver is missing or too old", "install NVIDIA's driver"),
            ("DriverError(CUDA_ERROR_NO_BINARY_FOR_GPU)", "another generation", "CUDA_COMPUTE_CAP"),
            ("anything else", "anything else", "set device"),
        ] {
            let Unavailable { problem, remedy: found } =
                diagnose(DeviceChoice::Cuda(7), &format!("{error}\n  backtrace"), 3 << 20);
            assert!(problem.starts_with("cannot use device = \"cuda:7\": ") && problem.contains(meaning), "{problem}");
            assert!(
                problem.contains(error) && problem.contains("3 MiB") && !problem.contains("backtrace"),
                "{problem}"
            );
            assert!(found.contains(remedy) && found.contains("\"cpu\""), "{found}");
        }
    }

    #[test]
    fn a_panic_at_the_start_is_an_error() {
        let Err(error) = start(|_| panic!("index out of bounds"), DeviceChoice::Metal(9), 9) else { panic!() };
        assert!(error.problem.contains("metal:9") && error.problem.contains("no device of that number"), "{error:?}");
    }
}
