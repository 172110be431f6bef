//! Decodes blocks of quantized numbers by candle.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Error};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// How many numbers one thread decodes at a time. The limit bounds its scratch memory to a few hundred KiB.
const NUMBERS_AT_A_TIME: usize = 64 << 10;

pub const EXPECTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K or Q6_K";
pub const REMEDY: &str = "take another quantization of the model, such as Q8_0";

/// How numbers are quantized in blocks.
pub type BlockType = GgmlDType;

/// Returns the name and the type of the blocks of a type in ggml.h, if candle decodes them.
pub const fn block_type(dtype: u32) -> Option<(&'static str, BlockType)> {
    Some(match dtype {
        2 => ("Q4_0", GgmlDType::Q4_0),
        3 => ("Q4_1", GgmlDType::Q4_1),
        6 => ("Q5_0", GgmlDType::Q5_0),
        7 => ("Q5_1", GgmlDType::Q5_1),
        8 => ("Q8_0", GgmlDType::Q8_0),
        10 => ("Q2_K", GgmlDType::Q2K),
        11 => ("Q3_K", GgmlDType::Q3K),
        12 => ("Q4_K", GgmlDType::Q4K),
        13 => ("Q5_K", GgmlDType::Q5K),
        14 => ("Q6_K", GgmlDType::Q6K),
        _ => return None,
    })
}

/// Returns all rows as little-endian f16. candle decodes them on every core.
pub fn decode_rows(bytes: &[u8], dtype: BlockType, rows: usize, columns: usize) -> Result<Vec<u8>, Error> {
    let stored = columns / dtype.block_size() * dtype.type_size();
    let decoded = columns * size_of::<f16>();
    let mut out = vec![0; rows * decoded];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = bytes
            .chunks(share * stored)
            .zip(out.chunks_mut(share * decoded))
            .map(|(bytes, out)| scope.spawn(move || decode_part(bytes, dtype, columns, out)))
            .collect();
        for part in parts {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok::<_, Error>(())
    })?;
    Ok(out)
}

fn decode_part(bytes: &[u8], dtype: BlockType, columns: usize, out: &mut [u8]) -> Result<(), Error> {
    let stored = columns / dtype.block_size() * dtype.type_size();
    let at_a_time = (NUMBERS_AT_A_TIME / columns).max(1);
    let mut halves = vec![f16::ZERO; at_a_time * columns];
    for (bytes, out) in bytes.chunks(at_a_time * stored).zip(out.chunks_mut(at_a_time * columns * 2)) {
        let blocks = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, dtype)?;
        let numbers = QTensor::new(blocks, (bytes.len() / stored, columns))?.dequantize(&Device::Cpu)?;
        let numbers = numbers.flatten_all()?.to_vec1::<f32>()?;
        if let Some(halves) = halves.get_mut(..numbers.len()) {
            halves.convert_from_f32_slice(&numbers);
            for (out, half) in out.as_chunks_mut().0.iter_mut().zip(halves) {
                *out = half.to_le_bytes();
            }
        }
    }
    Ok(())
}
