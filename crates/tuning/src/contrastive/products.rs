//! Matrix products of row-major matrices, whose results do not depend on the number of threads: each task computes a
//! fixed number of rows on one thread.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// The number of rows of the result that one task computes. Each task packs the whole right matrix, so fewer rows cost
/// more packing.
const ROWS_A_TASK: usize = 192;

/// Returns row-major numbers as a matrix of `columns` columns.
pub fn matrix(numbers: &[f32], columns: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(numbers, numbers.len() / columns.max(1), columns)
}

/// Computes `out = alpha * left * right`. `out` is row-major.
pub fn multiply(out: &mut [f32], left: MatRef<'_, f32>, right: MatRef<'_, f32>, alpha: f32) {
    let columns = right.ncols();
    out.par_chunks_mut(ROWS_A_TASK * columns.max(1)).enumerate().for_each(|(task, out)| {
        let rows = out.len() / columns.max(1);
        let left = left.subrows(task * ROWS_A_TASK, rows);
        let out = MatMut::from_row_major_slice_mut(out, rows, columns);
        matmul(out, Accum::Replace, left, right, alpha, Par::Seq);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_over_several_tasks_equal_the_definition() {
        let (n, m, d) = (2 * ROWS_A_TASK + 5, 7, 3);
        let number = |i: usize| ((i * 37 + 11) % 17) as f32 - 8.0;
        let a: Vec<f32> = (0..n * d).map(number).collect();
        let b: Vec<f32> = (0..m * d).map(number).collect();
        let mut out = vec![f32::NAN; n * m];
        multiply(&mut out, matrix(&a, d), matrix(&b, d).transpose(), 2.0);
        for i in 0..n {
            for j in 0..m {
                let expected: f32 = (0..d).map(|k| 2.0 * a[i * d + k] * b[j * d + k]).sum();
                assert_eq!(out[i * m + j], expected);
            }
        }
        multiply(&mut out[..0], matrix(&[], d), matrix(&b, d).transpose(), 1.0);
    }
}
