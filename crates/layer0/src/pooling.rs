//! Mean pooling: from token IDs to vectors.

mod compare;
mod counts;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "candle")]
mod device;
pub mod kernel;
pub mod place;
mod tail;

pub use compare::Comparison;
pub use counts::CountWeights;
pub use cpu::CpuPooling;
#[cfg(feature = "candle")]
pub use device::DevicePooling;

use std::ops::RangeInclusive;

use crate::error::EmbedError;
use layer0_tokenizers::yield_point::{Stopped, YieldPoint};

/// Computes the means of normalized token vectors from one table on one kind of hardware.
pub trait Pooling: Send + Sync {
    /// Writes the first `dimensions` numbers of each text's mean vector to `out`, `[texts, dimensions]` in row-major order.
    ///
    /// Every ID must be below the number of rows, and no text may be empty; [`crate::embedder::Embedder`] ensures both. An ID
    /// past the table adds nothing, and a text without IDs gives zeros.
    ///
    /// # Errors
    /// When a device fails. Pooling on the CPU never fails.
    fn mean(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> Result<(), EmbedError>;

    /// Like [`Pooling::mean`], for texts that may take seconds: `at` is called every few hundred tokens if the hardware allows
    /// it.
    ///
    /// # Errors
    /// As for [`Pooling::mean`], and when `at` stops the work.
    fn mean_in_steps(
        &self,
        texts: &[&[u32]],
        dimensions: usize,
        out: &mut [f32],
        _at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        self.mean(texts, dimensions, out)
    }

    /// Computes the mean of one text in f64, for sums that exceed the range of f32. Returns `None` if the hardware cannot do
    /// this.
    ///
    /// # Errors
    /// When `at` stops the work.
    fn exact_mean(&self, _ids: &[u32], _dimensions: usize, _at: &dyn YieldPoint) -> Result<Option<Vec<f64>>, Stopped> {
        Ok(None)
    }

    /// Prepares to compare other tokens with those in `ids`, whose vectors at length 1 are `units`, by their rows as they are stored. Returns
    /// `None` if the vectors must be computed first: on a device, and for norms that add something to a row.
    fn comparison(&self, _ids: &[u32], _units: &[f32]) -> Option<Comparison<'_>> {
        None
    }

    /// Returns the name of the device, for example "cpu" or "cuda:0".
    fn device(&self) -> String;

    /// Returns whether a call has a fixed cost, so that each call should get many texts.
    fn wants_whole_batches(&self) -> bool {
        false
    }

    /// Returns whether the pooling continues to read the table that it was created from.
    fn reads_the_table(&self) -> bool;
}

/// An error: a number of a vector is an infinity or not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a number of the vector is not finite")]
pub struct NotFinite;

/// Scales `vector` to length 1. A vector of length 0 becomes the first unit vector.
///
/// # Errors
/// When a number is not finite. The vector is then unchanged.
pub fn normalize(vector: &mut [f32]) -> Result<(), NotFinite> {
    /// The sums of squares for which no square, and no quotient by their root, is lost to the range of f32.
    const IN_RANGE: RangeInclusive<f64> = 1e-20..=1e30;
    let kernel = kernel::best();
    let squares = kernel.squares(vector);
    if IN_RANGE.contains(&squares) {
        kernel.scale(vector, (1.0 / squares.sqrt()) as f32);
        return Ok(());
    }
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if !length.is_finite() {
        return Err(NotFinite);
    }
    if length > 0.0 {
        for x in &mut *vector {
            *x = (f64::from(*x) / length) as f32;
        }
    } else {
        first_unit_vector(vector);
    }
    Ok(())
}

/// Writes the first unit vector, which represents a text without tokens. Any prefix of it is a unit vector, too.
pub fn first_unit_vector(vector: &mut [f32]) {
    vector.fill(0.0);
    if let Some(first) = vector.first_mut() {
        *first = 1.0;
    }
}

/// Returns whether every number is finite.
pub fn is_finite(vector: &[f32]) -> bool {
    // The sum of squares may overflow although all numbers are finite.
    kernel::best().squares(vector).is_finite() || vector.iter().all(|x| x.is_finite())
}

/// Rounds `exact` to f32, scaled to length 1 if `normalizes`. Numbers beyond the range of f32 are scaled into it before they are
/// squared.
///
/// # Errors
/// When a number is not finite, before or after it is rounded to f32.
pub fn rounded(exact: &[f64], normalizes: bool, out: &mut [f32]) -> Result<(), NotFinite> {
    let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    if exact.iter().any(|x| !x.is_finite()) {
        return Err(NotFinite);
    }
    let scale = if normalizes && largest > 0.0 { largest.recip() } else { 1.0 };
    for (to, x) in out.iter_mut().zip(exact) {
        *to = (x * scale) as f32;
    }
    match normalizes {
        true => normalize(out),
        false if is_finite(out) => Ok(()),
        false => Err(NotFinite),
    }
}

/// Returns the dot product. For vectors of length 1, it is the cosine.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Each of 16 lanes has its own sum, so that the compiler can vectorize the loop.
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
    use super::*;

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
        normalize(&mut v).unwrap();
        assert_eq!(v, [0.6, 0.8]);
    }

    #[test]
    fn tiny_and_huge_vectors_keep_their_direction() {
        for scale in [1e-30f32, 1e30, 8e37] {
            let mut v = [3.0 * scale, 4.0 * scale];
            normalize(&mut v).unwrap();
            assert!((v[0] - 0.6).abs() < 1e-6 && (v[1] - 0.8).abs() < 1e-6, "{v:?}");
        }
    }

    #[test]
    fn no_direction_becomes_the_first_unit_vector() {
        let mut v = [0.0, 0.0, 0.0];
        normalize(&mut v).unwrap();
        assert_eq!(v, [1.0, 0.0, 0.0]);
    }

    #[test]
    fn numbers_that_are_not_finite_are_an_error_and_stay() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut v = [1.0; 70];
            v[66] = bad;
            assert!(!is_finite(&v));
            assert_eq!(normalize(&mut v), Err(NotFinite));
            assert_eq!((v[0], v[66].to_bits()), (1.0, bad.to_bits()));
        }
        assert!(is_finite(&[f32::MAX; 70]));
    }

    #[test]
    fn exact_numbers_beyond_f32_have_a_direction_but_no_f32() {
        let mut out = [0.0; 2];
        assert_eq!(rounded(&[3e200, -4e200], true, &mut out), Ok(()));
        assert_eq!(out, [0.6, -0.8]);
        assert_eq!(rounded(&[3e200, 1.0], false, &mut out), Err(NotFinite));
        assert_eq!(rounded(&[f64::NAN, 1.0], true, &mut out), Err(NotFinite));
        assert_eq!((rounded(&[0.0, 0.0], true, &mut out), out), (Ok(()), [1.0, 0.0]));
        assert_eq!((rounded(&[2e38, 0.0], false, &mut out), out), (Ok(()), [2e38, 0.0]));
    }
}
