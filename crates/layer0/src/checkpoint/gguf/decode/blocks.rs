//! Decodes numbers that ggml quantizes in blocks.
//!
//! A block holds 32 or 256 small integers and their scale, which is an f16. In the "K" types, each group of 16 or 32 integers has a scale of
//! its own, which is a small integer too, so a number is a product of three factors. The types with a minimum subtract it; the others subtract a
//! constant, so that their integers are signed.
//!
//! The layouts and the order of the operations are those of `dequantize_row_*` in ggml-quants.c
//! (<https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>), so the results are equal bit for bit.
//!
//! For example, in a block of Q4_0 with the scale 0.5, the byte 0xA3 holds the integers 3 and 10. They are the numbers `(3 - 8) * 0.5 = -2.5` in
//! the first half of the block and `(10 - 8) * 0.5 = 1.0` in the second half.

use bytemuck::{Pod, Zeroable};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// How many numbers one thread decodes at a time. The limit bounds its scratch memory to a few hundred KiB.
const NUMBERS_AT_A_TIME: usize = 64 << 10;

/// How numbers are quantized.
#[derive(Debug, Clone, Copy)]
pub struct BlockType {
    /// The type's number in ggml.h.
    id: u32,
    /// The name, as llama.cpp writes it.
    pub name: &'static str,
    /// How many numbers a block holds.
    pub numbers: usize,
    /// The size of a block in bytes.
    pub bytes: usize,
    /// Decodes consecutive blocks.
    decode: fn(&[u8], &mut [f32]),
}

impl BlockType {
    const fn new<B: Block>(id: u32, name: &'static str) -> Self {
        Self { id, name, numbers: B::NUMBERS, bytes: size_of::<B>(), decode: decode::<B> }
    }

    /// All types that are decoded.
    const ALL: [Self; 10] = [
        Self::new::<Q4_0>(2, "Q4_0"),
        Self::new::<Q4_1>(3, "Q4_1"),
        Self::new::<Q5_0>(6, "Q5_0"),
        Self::new::<Q5_1>(7, "Q5_1"),
        Self::new::<Q8_0>(8, "Q8_0"),
        Self::new::<Q2K>(10, "Q2_K"),
        Self::new::<Q3K>(11, "Q3_K"),
        Self::new::<Q4K>(12, "Q4_K"),
        Self::new::<Q5K>(13, "Q5_K"),
        Self::new::<Q6K>(14, "Q6_K"),
    ];

    /// Returns the type with this number in ggml.h, if it is decoded.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|blocks| blocks.id == id)
    }

    /// Returns `[rows, columns]` numbers as little-endian f16. All cores decode. `columns` must be a multiple of [`BlockType::numbers`].
    pub fn decode_rows(self, bytes: &[u8], rows: usize, columns: usize) -> Vec<u8> {
        let stored = columns / self.numbers * self.bytes;
        let decoded = columns * size_of::<f16>();
        let mut out = vec![0; rows * decoded];
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = rows.div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            for (bytes, out) in bytes.chunks((share * stored).max(1)).zip(out.chunks_mut((share * decoded).max(1))) {
                scope.spawn(move || self.decode_part(bytes, columns, out));
            }
        });
        out
    }

    fn decode_part(self, bytes: &[u8], columns: usize, out: &mut [u8]) {
        let blocks = (NUMBERS_AT_A_TIME.min(columns.max(1)) / self.numbers).max(1);
        let mut numbers = vec![0.0; blocks * self.numbers];
        let mut halves = vec![f16::ZERO; numbers.len()];
        for (bytes, out) in bytes.chunks(blocks * self.bytes).zip(out.chunks_mut(numbers.len() * size_of::<f16>())) {
            (self.decode)(bytes, &mut numbers);
            halves.convert_from_f32_slice(&numbers);
            for (out, half) in out.as_chunks_mut().0.iter_mut().zip(&halves) {
                *out = half.to_le_bytes();
            }
        }
    }
}

/// The bytes of a block in a file.
trait Block: Pod {
    /// How many numbers the block holds.
    const NUMBERS: usize;

    /// Writes the numbers of the block. `out` has [`Block::NUMBERS`] of them.
    fn decode(&self, out: &mut [f32]);
}

fn decode<B: Block>(bytes: &[u8], out: &mut [f32]) {
    let blocks: &[B] = bytemuck::try_cast_slice(bytes).unwrap_or_default();
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(B::NUMBERS)) {
        block.decode(out);
    }
}

/// An f16 in little-endian order, which has no alignment.
type Half = [u8; 2];

fn number(half: Half) -> f32 {
    f16::from_le_bytes(half).to_f32()
}

/// Writes the numbers of a block of 32 whose integers have four bits. The low halves of the bytes are the first 16 integers.
/// `value` computes a number from its integer and its index.
fn nibbles(bytes: [u8; 16], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    let (low, high) = out.split_at_mut(bytes.len().min(out.len()));
    for (shift, first, part) in [(0, 0, low), (4, 16, high)] {
        for (index, (out, byte)) in part.iter_mut().zip(bytes).enumerate() {
            *out = value(byte >> shift & 15, first + index);
        }
    }
}

/// Returns the fifth bit of the integer with this index, in its place.
fn fifth_bit(bits: [u8; 4], index: usize) -> u8 {
    ((u32::from_le_bytes(bits) >> index & 1) << 4) as u8
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q4_0 {
    scale: Half,
    integers: [u8; 16],
}

impl Block for Q4_0 {
    const NUMBERS: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        let scale = number(self.scale);
        nibbles(self.integers, out, |integer, _| (f32::from(integer) - 8.0) * scale);
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q4_1 {
    scale: Half,
    minimum: Half,
    integers: [u8; 16],
}

impl Block for Q4_1 {
    const NUMBERS: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        let (scale, minimum) = (number(self.scale), number(self.minimum));
        nibbles(self.integers, out, |integer, _| f32::from(integer) * scale + minimum);
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q5_0 {
    scale: Half,
    fifth_bits: [u8; 4],
    integers: [u8; 16],
}

impl Block for Q5_0 {
    const NUMBERS: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        let scale = number(self.scale);
        nibbles(self.integers, out, |integer, index| {
            (f32::from(integer | fifth_bit(self.fifth_bits, index)) - 16.0) * scale
        });
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q5_1 {
    scale: Half,
    minimum: Half,
    fifth_bits: [u8; 4],
    integers: [u8; 16],
}

impl Block for Q5_1 {
    const NUMBERS: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        let (scale, minimum) = (number(self.scale), number(self.minimum));
        nibbles(self.integers, out, |integer, index| {
            f32::from(integer | fifth_bit(self.fifth_bits, index)) * scale + minimum
        });
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q8_0 {
    scale: Half,
    integers: [i8; 32],
}

impl Block for Q8_0 {
    const NUMBERS: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        let scale = number(self.scale);
        for (out, integer) in out.iter_mut().zip(self.integers) {
            *out = f32::from(integer) * scale;
        }
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q2K {
    /// For each group of 16, the factor of the scale in the low four bits and that of the minimum in the others.
    factors: [u8; 16],
    integers: [u8; 64],
    scale: Half,
    minimum: Half,
}

impl Block for Q2K {
    const NUMBERS: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        let (scale, minimum) = (number(self.scale), number(self.minimum));
        for (index, (out, factors)) in out.chunks_exact_mut(16).zip(self.factors).enumerate() {
            let (scale, minimum) = (scale * f32::from(factors & 15), minimum * f32::from(factors >> 4));
            for (out, integer) in out.iter_mut().zip(two_bits(&self.integers, index)) {
                *out = scale * f32::from(integer) - minimum;
            }
        }
    }
}

/// Returns the 16 integers of two bits of a group. A byte holds one integer of each of four groups, which are 32 numbers apart.
fn two_bits(bytes: &[u8; 64], group: usize) -> impl Iterator<Item = u8> {
    let (half, shift, part) = (group / 8, group % 8 / 2 * 2, group % 2);
    bytes.iter().skip(32 * half + 16 * part).take(16).map(move |byte| byte >> shift & 3)
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q3K {
    third_bits: [u8; 32],
    integers: [u8; 64],
    /// The factors of the scale, of six bits each.
    factors: [u8; 12],
    scale: Half,
}

impl Q3K {
    /// Returns the factor of each group of 16. Four bits are in the first eight bytes, and the other two in the last four.
    fn factors(&self) -> [i8; 16] {
        let [.., a, b, c, d] = self.factors;
        let high = [a, b, c, d];
        let mut factors = [0; 16];
        for (index, factor) in factors.iter_mut().enumerate() {
            let low = self.factors.get(index % 8).map_or(0, |byte| byte >> (index / 8 * 4) & 15);
            let high = high.get(index % 4).map_or(0, |byte| byte >> (index / 4 * 2) & 3);
            *factor = (low | high << 4) as i8 - 32;
        }
        factors
    }
}

impl Block for Q3K {
    const NUMBERS: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        let scale = number(self.scale);
        for (index, (out, factor)) in out.chunks_exact_mut(16).zip(self.factors()).enumerate() {
            let scale = scale * f32::from(factor);
            let third_bits = self.third_bits.iter().skip(16 * (index % 2)).map(|byte| byte >> (index / 2) & 1);
            for ((out, integer), third) in out.iter_mut().zip(two_bits(&self.integers, index)).zip(third_bits) {
                *out = scale * (f32::from(integer | third << 2) - 4.0);
            }
        }
    }
}

/// Returns the factors of the scale and of the minimum for each group of 32. They have six bits each: those of the first four groups are whole,
/// and those of the others have their upper two bits in the upper bits of the first ones.
fn six_bit_factors(bytes: [u8; 12]) -> [(u8, u8); 8] {
    let (scales, rest) = bytes.split_at(4);
    let (minimums, others) = rest.split_at(4);
    let mut factors = [(0, 0); 8];
    let (first, last) = factors.split_at_mut(4);
    let sources = scales.iter().zip(minimums).zip(others);
    for (((scale, minimum), other), (first, last)) in sources.zip(first.iter_mut().zip(last)) {
        *first = (scale & 63, minimum & 63);
        *last = (other & 15 | scale >> 6 << 4, other >> 4 | minimum >> 6 << 4);
    }
    factors
}

/// Writes the numbers of a block of 256 with a scale and a minimum for each group of 32. A byte holds one integer of each of two groups.
/// `upper` returns the bits above the lower four of a number, from the group and the place in it.
fn groups_with_minimum(
    (scale, minimum): (f32, f32),
    factors: [u8; 12],
    integers: &[u8; 128],
    out: &mut [f32],
    upper: impl Fn(usize, usize) -> u8,
) {
    for (group, (out, factors)) in out.chunks_exact_mut(32).zip(six_bit_factors(factors)).enumerate() {
        let (scale, minimum) = (scale * f32::from(factors.0), minimum * f32::from(factors.1));
        let bytes = integers.iter().skip(group / 2 * 32);
        for (place, (out, byte)) in out.iter_mut().zip(bytes).enumerate() {
            let integer = byte >> (group % 2 * 4) & 15 | upper(group, place);
            *out = scale * f32::from(integer) - minimum;
        }
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q4K {
    scale: Half,
    minimum: Half,
    factors: [u8; 12],
    integers: [u8; 128],
}

impl Block for Q4K {
    const NUMBERS: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        let factors = (number(self.scale), number(self.minimum));
        groups_with_minimum(factors, self.factors, &self.integers, out, |_, _| 0);
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q5K {
    scale: Half,
    minimum: Half,
    factors: [u8; 12],
    fifth_bits: [u8; 32],
    integers: [u8; 128],
}

impl Block for Q5K {
    const NUMBERS: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        let factors = (number(self.scale), number(self.minimum));
        groups_with_minimum(factors, self.factors, &self.integers, out, |group, place| {
            self.fifth_bits.get(place).map_or(0, |byte| (byte >> group & 1) << 4)
        });
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Q6K {
    integers: [u8; 128],
    /// The upper two bits of each integer.
    upper_bits: [u8; 64],
    /// The factor of the scale for each group of 16.
    factors: [i8; 16],
    scale: Half,
}

impl Block for Q6K {
    const NUMBERS: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        let scale = number(self.scale);
        for (group, (out, factor)) in out.chunks_exact_mut(16).zip(self.factors).enumerate() {
            let scale = scale * f32::from(factor);
            // Each half of the block has 64 bytes of integers. The low four bits of the bytes are the first 64 integers, and the others the last.
            let (half, quarter, part) = (group / 8, group % 8 / 2, group % 2);
            let bytes = self.integers.iter().skip(64 * half + 32 * (quarter % 2) + 16 * part);
            let upper = self.upper_bits.iter().skip(32 * half + 16 * part);
            for ((out, byte), upper) in out.iter_mut().zip(bytes).zip(upper) {
                let integer = byte >> (quarter / 2 * 4) & 15 | (upper >> (2 * quarter) & 3) << 4;
                *out = scale * (f32::from(integer) - 32.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};

    use super::*;

    fn judge(dtype: GgmlDType, bytes: &[u8], rows: usize, columns: usize) -> Vec<f32> {
        let blocks = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, dtype).unwrap();
        let numbers = QTensor::new(blocks, (rows, columns)).unwrap().dequantize(&Device::Cpu).unwrap();
        numbers.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn random_blocks_of_every_type_decode_to_the_same_bits_as_in_candle() {
        let mut rng = fastrand::Rng::with_seed(1);
        let types = [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
            GgmlDType::Q2K,
            GgmlDType::Q3K,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ];
        for (blocks, dtype) in BlockType::ALL.into_iter().zip(types) {
            assert_eq!((blocks.numbers, blocks.bytes), (dtype.block_size(), dtype.type_size()), "{}", blocks.name);
            // More numbers than are decoded at a time, and rows that the threads share unevenly.
            let (rows, columns) = (3, NUMBERS_AT_A_TIME + 256);
            let bytes: Vec<u8> = (0..rows * columns / blocks.numbers * blocks.bytes).map(|_| rng.u8(..)).collect();
            let found = blocks.decode_rows(&bytes, rows, columns);
            let expected = judge(dtype, &bytes, rows, columns);
            assert_eq!(found.len(), 2 * expected.len());
            for (found, expected) in found.as_chunks().0.iter().zip(expected) {
                let (found, expected) = (f16::from_le_bytes(*found), f16::from_f32(expected));
                let equal = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(equal, "{}: {found} instead of {expected}", blocks.name);
            }
        }
    }
}
