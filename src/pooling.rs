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
use crate::yield_point::{Stopped, YieldPoint};

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

    /// The same for work of which one text may take seconds: `at` is reached every few hundred tokens where the hardware
    /// allows it.
    ///
    /// # Errors
    /// As [`Pooling::mean`], and when `at` ends the work.
    fn mean_in_steps(
        &self,
        texts: &[&[u32]],
        dimensions: usize,
        out: &mut [f32],
        _at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        self.mean(texts, dimensions, out)
    }

    /// One text's mean in f64, for sums that are too large for f32. `None` where the hardware cannot do it.
    ///
    /// # Errors
    /// When `at` ends the work.
    fn exact_mean(&self, _ids: &[u32], _dimensions: usize, _at: &dyn YieldPoint) -> Result<Option<Vec<f64>>, Stopped> {
        Ok(None)
    }

    /// Where it runs, for people: "cpu", "cuda:0".
    fn device(&self) -> String;

    /// Whether a call costs something beside its tokens, so that many texts should be given to each.
    fn wants_whole_batches(&self) -> bool {
        false
    }

    /// Whether it goes on reading the table that it was made of.
    fn reads_the_table(&self) -> bool;
}

/// A number of a vector is an infinity or not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a number of the vector is not finite")]
pub struct NotFinite;

/// Scales `vector` to length 1; one of length 0 becomes the first unit vector.
///
/// # Errors
/// When a number is not finite. The vector is left as it is.
pub fn normalize(vector: &mut [f32]) -> Result<(), NotFinite> {
    /// Squares that lose nothing in f32, nor does what they are divided by.
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

/// What stands for a text without tokens: any prefix of it is a unit vector again.
pub fn first_unit_vector(vector: &mut [f32]) {
    vector.fill(0.0);
    if let Some(first) = vector.first_mut() {
        *first = 1.0;
    }
}

/// Whether every number is finite.
pub fn is_finite(vector: &[f32]) -> bool {
    // The sum of squares may overflow where the numbers do not.
    kernel::best().squares(vector).is_finite() || vector.iter().all(|x| x.is_finite())
}

/// `exact` at length 1 if `normalizes`, as f32. Numbers beyond f32's range are brought into it before they are squared.
///
/// # Errors
/// When a number is not finite, or is not once it is an f32.
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
