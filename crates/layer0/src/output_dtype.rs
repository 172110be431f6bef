//! The types in which a vector can be returned: floats, 8-bit integers, or one bit for each number.
//!
//! The names are those of the APIs of Cohere, Jina and Voyage, and of `quantize_embeddings` in sentence-transformers 6.2
//! (`util/quantization.py`). A vector is cut to its dimensions and scaled to length 1 first, and converted then:
//!
//! * int8: `q = round(127 x)`, from -127 to 127. No number of a unit vector is too large for that, the scale is the same for all vectors, and so
//!   both the cosine and the dot product (`q . r / 127^2`) can be used.
//! * uint8: `q + 128`, from 1 to 255.
//! * ubinary: one bit for each number, which is 1 if the number is greater than 0. The first number is the most significant bit of the first byte,
//!   as in `numpy.packbits`. The last byte is filled with zeros.
//! * binary: the bytes of ubinary minus 128, as int8.
//!
//! For example, the vector `(0.6, -0.8, 0)` is `(76, -102, 0)` as int8, `(204, 26, 128)` as uint8, `(128)` as ubinary and `(0)` as
//! binary.

use serde::{Deserialize, Serialize};

/// The type of the numbers in which a vector is returned.
///
/// # Examples
///
/// ```
/// use layer0::{Embedder, OutputDtype};
///
/// # let path = "../../tests/fixtures/checkpoints/llama";
/// let embedder = Embedder::builder(path).dimensions(16).open()?;
/// let vectors = embedder.embed(&["a first text", "another text"])?;
/// let bits: Vec<Vec<u8>> = vectors.iter().map(|vector| OutputDtype::Ubinary.convert(vector)).collect();
/// assert_eq!(bits[0].len(), 2);
///
/// let distance: u32 = bits[0].iter().zip(&bits[1]).map(|(a, b)| (a ^ b).count_ones()).sum();
/// assert!(distance <= 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputDtype {
    /// 32-bit floats, as they are computed.
    #[default]
    Float,
    /// Whole numbers from -127 to 127: the numbers of the unit vector, times 127.
    Int8,
    /// Whole numbers from 1 to 255: those of int8, plus 128.
    Uint8,
    /// Eight numbers in each byte, which is stored minus 128, as a signed integer.
    Binary,
    /// Eight numbers in each byte. A bit is 1 if its number is greater than 0.
    Ubinary,
}

/// The factor of int8.
const SCALE: f32 = 127.0;

impl OutputDtype {
    /// All types.
    pub const ALL: [Self; 5] = [Self::Float, Self::Int8, Self::Uint8, Self::Binary, Self::Ubinary];

    /// Returns the name of the type in APIs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int8 => "int8",
            Self::Uint8 => "uint8",
            Self::Binary => "binary",
            Self::Ubinary => "ubinary",
        }
    }

    /// Returns the type with this name in APIs.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Returns the name of the type of each stored number in numpy: `float32`, `int8` or `uint8`.
    pub const fn numpy_name(self) -> &'static str {
        match self {
            Self::Float => "float32",
            Self::Int8 | Self::Binary => "int8",
            Self::Uint8 | Self::Ubinary => "uint8",
        }
    }

    /// Returns the number of stored numbers of a vector with this many dimensions: an eighth of them for the binary types.
    pub const fn columns(self, dimensions: usize) -> usize {
        match self {
            Self::Float | Self::Int8 | Self::Uint8 => dimensions,
            Self::Binary | Self::Ubinary => dimensions.div_ceil(8),
        }
    }

    /// Returns the number of bytes of a vector with this many dimensions.
    pub const fn bytes(self, dimensions: usize) -> usize {
        match self {
            Self::Float => dimensions.saturating_mul(4),
            _ => self.columns(dimensions),
        }
    }

    /// Returns whether each stored number is a signed integer of one byte.
    pub const fn is_signed_byte(self) -> bool {
        matches!(self, Self::Int8 | Self::Binary)
    }

    /// Returns the bytes of a vector: little-endian for floats, and one byte for each stored number otherwise. The integers of a
    /// vector that does not have length 1 are those of the same vector with length 1.
    pub fn convert(self, vector: &[f32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes(vector.len()));
        self.append(vector, &mut out);
        out
    }

    /// Appends the bytes of a vector to `out`, as [`OutputDtype::convert`] returns them.
    pub fn append(self, vector: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::Float if cfg!(target_endian = "little") => out.extend_from_slice(bytemuck::cast_slice(vector)),
            Self::Float => out.extend(vector.iter().flat_map(|x| x.to_le_bytes())),
            Self::Int8 => append_bytes(vector, 0, out),
            Self::Uint8 => append_bytes(vector, 128, out),
            Self::Ubinary => append_bits(vector, 0, out),
            Self::Binary => append_bits(vector, 128, out),
        }
    }

    /// Appends the stored numbers of the bytes `stored`, which [`OutputDtype::convert`] has returned, as numbers between which
    /// cosines can be computed. `dimensions` is the length of the vector. A bit becomes 1 or -1.
    pub fn read(self, stored: &[u8], dimensions: usize, out: &mut Vec<f32>) {
        let bit = |byte: &u8, offset: u8, place: usize| {
            if byte.wrapping_add(offset) << place & 0x80 != 0 { 1.0 } else { -1.0 }
        };
        match self {
            Self::Float => out.extend(stored.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            Self::Int8 => out.extend(stored.iter().map(|byte| f32::from(byte.cast_signed()) / SCALE)),
            Self::Uint8 => out.extend(stored.iter().map(|&byte| (f32::from(byte) - 128.0) / SCALE)),
            Self::Binary | Self::Ubinary => {
                let offset = if self == Self::Binary { 128 } else { 0 };
                out.extend(
                    stored.iter().flat_map(|byte| (0..8).map(move |place| bit(byte, offset, place))).take(dimensions),
                );
            }
        }
    }
}

/// Appends `round(127 x) + offset` of each number `x` of the vector, scaled to length 1.
fn append_bytes(vector: &[f32], offset: u8, out: &mut Vec<u8>) {
    // Only vectors of models with `normalize = false` do not have length 1. A length that differs from 1 by rounding is kept, so that the
    // integers follow from the floats alone.
    const ROUNDING: f64 = 1e-3;
    let squares: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let length = squares.sqrt();
    let factor =
        if length > 0.0 && (length - 1.0).abs() > ROUNDING { (f64::from(SCALE) / length) as f32 } else { SCALE };
    // The conversion to i8 saturates.
    out.extend(vector.iter().map(|&x| ((x * factor).round() as i8).cast_unsigned().wrapping_add(offset)));
}

/// Appends one bit for each number of the vector, and subtracts `offset` from each byte.
fn append_bits(vector: &[f32], offset: u8, out: &mut Vec<u8>) {
    let byte = |numbers: &[f32]| {
        let bits = numbers.iter().zip((0..8).rev()).map(|(&x, place)| u8::from(x > 0.0) << place);
        bits.fold(0, |all, bit| all | bit).wrapping_sub(offset)
    };
    out.extend(vector.chunks(8).map(byte));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation_holds() {
        for (dtype, expected) in [
            (OutputDtype::Int8, vec![76, -102i8 as u8, 0]),
            (OutputDtype::Uint8, vec![204, 26, 128]),
            (OutputDtype::Ubinary, vec![0b1000_0000]),
            (OutputDtype::Binary, vec![0]),
        ] {
            assert_eq!(dtype.convert(&[0.6, -0.8, 0.0]), expected, "{dtype:?}");
            assert_eq!(expected.len(), dtype.bytes(3), "{dtype:?}");
        }
        assert_eq!(OutputDtype::Float.convert(&[0.5, -2.0]), [0, 0, 0, 63, 0, 0, 0, 192]);
    }

    #[test]
    fn bits_are_packed_like_numpy_packs_them() {
        // numpy.packbits([1, 0, 0, 1, 1, 0, 1, 0, 1]) is [154, 128].
        let vector = [0.1, -0.1, 0.0, 0.1, 0.1, -0.0, 0.1, -0.1, 0.1];
        assert_eq!(OutputDtype::Ubinary.convert(&vector), [154, 128]);
        assert_eq!(OutputDtype::Binary.convert(&vector), [26, 0]);
        assert_eq!((OutputDtype::Ubinary.columns(9), OutputDtype::Ubinary.columns(16)), (2, 2));
    }

    #[test]
    fn integers_do_not_depend_on_the_length_of_the_vector_and_never_overflow() {
        for factor in [1e-3, 1.0, 5.0, 1e4] {
            let vector = [0.6, -0.8, 0.0].map(|x: f32| x * factor);
            assert_eq!(OutputDtype::Int8.convert(&vector), [76, -102i8 as u8, 0], "{factor}");
        }
        assert_eq!(OutputDtype::Int8.convert(&[1.0, 0.0]), [127, 0]);
        assert_eq!(OutputDtype::Int8.convert(&[-1.0, 0.0]), [-127i8 as u8, 0]);
        assert_eq!(OutputDtype::Int8.convert(&[0.0, 0.0]), [0, 0]);
    }

    #[test]
    fn stored_numbers_are_read_back() {
        let vector = [0.6f32, -0.8, 0.0];
        for dtype in [OutputDtype::Float, OutputDtype::Int8, OutputDtype::Uint8] {
            let mut read = Vec::new();
            dtype.read(&dtype.convert(&vector), 3, &mut read);
            assert!(read.iter().zip(&vector).all(|(a, b)| (a - b).abs() <= 0.5 / SCALE), "{dtype:?} {read:?}");
        }
        for dtype in [OutputDtype::Binary, OutputDtype::Ubinary] {
            let mut read = Vec::new();
            dtype.read(&dtype.convert(&vector), 3, &mut read);
            assert_eq!(read, [1.0, -1.0, -1.0], "{dtype:?}");
        }
    }
}
