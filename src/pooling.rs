//! Mean pooling: the seam between token ids and arithmetic.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
pub mod kernel;
pub mod place;

pub use cpu::CpuPooling;
pub use device::DevicePooling;

use std::ops::RangeInclusive;

use crate::error::EmbedError;

/// Means of normalized token vectors, over one table, on one kind of hardware.
pub trait Pooling: Send + Sync {
    /// Writes the first `dimensions` numbers of each text's mean vector to `out` (texts x `dimensions`, row-major).
    ///
    /// Every id must be below the table's rows, and no text empty: [`crate::embedder::Embedder`] sees to both. An id past the
    /// table adds nothing, and a text without ids gets zeros.
    ///
    /// # Errors
    /// When a device fails; on the CPU never.
    fn mean(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> Result<(), EmbedError>;

    /// Where it runs, for people: "cpu", "cuda:0".
    fn device(&self) -> String;

    /// Whether a call costs something beside its tokens, so that many texts should be given to each.
    fn wants_whole_batches(&self) -> bool {
        false
    }

    /// Whether it goes on reading the table that it was made of.
    fn reads_the_table(&self) -> bool;
}

/// Scales `vector` to length 1; one of length 0 becomes the first unit vector.
///
/// The first unit vector stands for a text without tokens, too: any prefix of it is one again.
pub fn normalize(vector: &mut [f32]) {
    /// Squares that lose nothing in f32, nor does what they are divided by.
    const IN_RANGE: RangeInclusive<f64> = 1e-20..=1e30;
    let kernel = kernel::best();
    let squares = kernel.squares(vector);
    if IN_RANGE.contains(&squares) {
        return kernel.scale(vector, (1.0 / squares.sqrt()) as f32);
    }
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length > 0.0 && length.is_finite() {
        for x in &mut *vector {
            *x = (f64::from(*x) / length) as f32;
        }
    } else {
        vector.fill(0.0);
        if let Some(first) = vector.first_mut() {
            *first = 1.0;
        }
    }
}

/// The dot product: of vectors of length 1, their cosine.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Sums of their own for each of 16 lanes, which the compiler then adds side by side.
    let mut lanes = [0.0f32; 16];
    let (a, rest_a) = a.as_chunks::<16>();
    let (b, rest_b) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for ((lane, x), y) in lanes.iter_mut().zip(a).zip(b) {
            *lane += x * y;
        }
    }
    lanes.iter().sum::<f32>() + rest_a.iter().zip(rest_b).map(|(x, y)| x * y).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::{dot, normalize};

    #[test]
    fn a_dot_product_takes_every_number_once() {
        for n in [0u16, 1, 15, 16, 17, 40] {
            let (a, b): (Vec<f32>, Vec<f32>) = (0..n).map(|i| (f32::from(i), f32::from(i + 1))).unzip();
            assert_eq!(dot(&a, &b), (0..n).map(|i| f32::from(i * (i + 1))).sum::<f32>());
        }
    }

    #[test]
    fn a_vector_gets_length_one() {
        let mut v = [3.0, 4.0];
        normalize(&mut v);
        assert_eq!(v, [0.6, 0.8]);
    }

    #[test]
    fn tiny_and_huge_vectors_keep_their_direction() {
        for scale in [1e-30f32, 1e30] {
            let mut v = [3.0 * scale, 4.0 * scale];
            normalize(&mut v);
            assert!((v[0] - 0.6).abs() < 1e-6 && (v[1] - 0.8).abs() < 1e-6, "{v:?}");
        }
    }

    #[test]
    fn no_direction_becomes_the_first_unit_vector() {
        let mut v = [0.0, 0.0, 0.0];
        normalize(&mut v);
        assert_eq!(v, [1.0, 0.0, 0.0]);
    }
}
