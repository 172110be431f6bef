//! The rows that are trained, and how a gradient changes them.
//!
//! Each row has its own rate, as in Adagrad for sparse gradients (Duchi et al. 2011), but with a running mean and one
//! number for the whole row, so that a rare row moves along its gradient:
//!
//! ```text
//! m_t = mean over the columns of g_t^2
//! v_t = 0.99 v_t + 0.01 m_t
//! T_t = T_t - rate * g_t / (sqrt(v_t / (1 - 0.99^k_t)) + 1e-9)          k_t: how often row t was changed, with this
//! ```
//!
//! Only rows of the batch are read and written, so the cost of a step does not grow with the vocabulary.

use rayon::prelude::*;

use super::batch::{ByRow, Entry};
use super::lanes::{add_scaled, dot, vectorized};
use crate::refine::write::RowDtype;

/// The share of the old mean square that a change keeps.
const DECAY: f32 = 0.99;
/// The addend that keeps rounding errors from moving a row whose gradient is zero.
const SMALLEST: f32 = 1e-9;
/// The number of rows that one task changes.
const ROWS_A_TASK: usize = 64;

/// The rows of the tokens that occur in the texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    pub dimensions: usize,
    /// The rows, row-major.
    pub rows: Vec<f32>,
    /// The running mean of the squared gradient of each row: `v`.
    pub squares: Vec<f32>,
    /// The number of changes of each row: `k`.
    pub changes: Vec<u32>,
    /// The type to which the rows are rounded, and the rounded rows, from which vectors are computed.
    rounded: Option<(RowDtype, Vec<f32>)>,
}

impl Table {
    /// Creates a table. With `rounded`, vectors are computed from rows that are rounded to this type.
    pub fn new(rows: Vec<f32>, dimensions: usize, rounded: Option<RowDtype>) -> Self {
        let count = rows.len() / dimensions.max(1);
        let mut table = Self { dimensions, rows, squares: vec![0.0; count], changes: vec![0; count], rounded: None };
        table.round(rounded);
        table
    }

    /// Computes the rounded rows anew.
    pub fn round(&mut self, dtype: Option<RowDtype>) {
        self.rounded = dtype.map(|dtype| {
            let mut rows = self.rows.clone();
            rows.par_chunks_mut(self.dimensions.max(1)).for_each(|row| dtype.round(row));
            (dtype, rows)
        });
    }

    /// Adds the row of an entry times its weight to `sum`.
    #[inline]
    pub fn add(&self, sum: &mut [f32], entry: Entry) {
        add_scaled(sum, entry.weight, self.row(entry.row));
    }

    /// Returns the row from which vectors are computed.
    #[inline]
    pub fn row(&self, index: u32) -> &[f32] {
        let rows = self.rounded.as_ref().map_or(&self.rows, |(_, rounded)| rounded);
        let start = index as usize * self.dimensions;
        rows.get(start..start + self.dimensions).unwrap_or_default()
    }

    /// Changes the rows of a batch. `gradients` holds the gradient of each text's sum of rows, row-major.
    pub fn change(&mut self, batch: &ByRow, gradients: &[f32], rate: f32) {
        let dimensions = self.dimensions;
        let mut rounded = self.rounded.as_mut().map(|(dtype, rows)| (*dtype, Scattered::new(rows, dimensions)));
        let mut rows = Scattered::new(&mut self.rows, dimensions);
        let (mut squares, mut changes) = (Scattered::new(&mut self.squares, 1), Scattered::new(&mut self.changes, 1));
        let mut tasks: Vec<_> = (0..)
            .zip(&batch.rows)
            .map(|(index, &row)| {
                let rounded = rounded.as_mut().map(|(dtype, rows)| (*dtype, rows.take(row)));
                (index, rows.take(row), squares.take(row), changes.take(row), rounded)
            })
            .collect();
        tasks.par_chunks_mut(ROWS_A_TASK).for_each(|tasks| {
            let mut gradient = vec![0.0f32; dimensions];
            for (index, row, square, changes, rounded) in tasks {
                let (Some(square), Some(changes)) = (square.first_mut(), changes.first_mut()) else { continue };
                let changed = vectorized(|| {
                    gradient.fill(0.0);
                    for &(text, weight) in batch.occurrences(*index) {
                        let start = text as usize * dimensions;
                        let of_text = gradients.get(start..start + dimensions).unwrap_or_default();
                        add_scaled(&mut gradient, weight, of_text);
                    }
                    let mean = dot(&gradient, &gradient) / dimensions as f32;
                    if mean == 0.0 {
                        return false;
                    }
                    *changes = changes.saturating_add(1);
                    *square = DECAY * *square + (1.0 - DECAY) * mean;
                    let corrected = *square / (1.0 - DECAY.powf(*changes as f32));
                    add_scaled(row, -rate / (corrected.sqrt() + SMALLEST), &gradient);
                    true
                });
                if let (true, Some((dtype, rounded))) = (changed, rounded) {
                    rounded.copy_from_slice(row);
                    dtype.round(rounded);
                }
            }
        });
    }
}

/// Lends rows of a matrix mutably, in ascending order and each once.
struct Scattered<'a, T> {
    rest: &'a mut [T],
    width: usize,
    passed: usize,
}

impl<'a, T> Scattered<'a, T> {
    fn new(numbers: &'a mut [T], width: usize) -> Self {
        Self { rest: numbers, width, passed: 0 }
    }

    /// Returns row `row`, which is higher than every row before. The result is empty if there is no such row.
    fn take(&mut self, row: u32) -> &'a mut [T] {
        let rest = std::mem::take(&mut self.rest);
        let skipped = (row as usize - self.passed) * self.width;
        let Some((row_and_rest, _)) = rest.split_at_mut_checked(skipped).map(|(skipped, rest)| (rest, skipped)) else {
            return &mut [];
        };
        let Some((found, rest)) = row_and_rest.split_at_mut_checked(self.width) else { return &mut [] };
        self.rest = rest;
        self.passed = row as usize + 1;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Texts;
    use super::*;

    fn batch(texts: &[&[u32]]) -> ByRow {
        let mut all = Texts::new();
        texts.iter().for_each(|text| all.push(text.iter().copied(), 1.0));
        let mut by_row = ByRow::new(8);
        by_row.fill(&all);
        by_row
    }

    #[test]
    fn the_first_change_of_a_row_is_as_long_as_the_rate_whatever_the_gradient() {
        let mut table = Table::new(vec![1.0; 16], 2, None);
        let batch = batch(&[&[1, 5], &[5, 7]]);
        table.change(&batch, &[3e-4, 4e-4, -3e-4, -4e-4], 0.5);
        let root = (2.0f32).sqrt();
        for (row, expected) in
            [(0, [1.0, 1.0]), (1, [1.0 - 0.3 * root, 1.0 - 0.4 * root]), (7, [1.0 + 0.3 * root, 1.0 + 0.4 * root])]
        {
            let found = table.row(row);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{row}: {found:?} {expected:?}");
        }
        // The two gradients of row 5 cancel out, so the row and its mean square stay as they are.
        assert_eq!((table.row(5), table.squares[5], table.changes[5]), (&[1.0, 1.0][..], 0.0, 0));
        assert_eq!(table.changes, [0, 1, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn later_changes_are_scaled_by_the_mean_of_the_squares() {
        let mut table = Table::new(vec![0.0; 8], 1, None);
        let batch = batch(&[&[2]]);
        table.change(&batch, &[1.0], 1.0);
        table.change(&batch, &[3.0], 1.0);
        let v: f32 = 0.99 * 0.01 + 0.01 * 9.0;
        let expected = -1.0 - 3.0 / (v / (1.0 - 0.99f32.powi(2))).sqrt();
        assert!((table.row(2)[0] - expected).abs() < 1e-4, "{} {expected}", table.row(2)[0]);
    }

    #[test]
    fn vectors_are_of_rounded_rows_and_changes_add_up_in_the_exact_ones() {
        let mut table = Table::new([127.0, 0.4, 3.0, 1.0].repeat(2), 4, Some(RowDtype::Int8));
        assert_eq!(table.row(0), [127.0, 0.0, 3.0, 1.0]);
        table.change(&batch(&[&[0]]), &[0.0, -1.0, 0.0, 0.0], 0.06);
        assert_eq!(table.row(0)[1], 1.0);
        assert!((table.rows[1] - 0.52).abs() < 1e-4);
        assert_eq!(table.row(1), [127.0, 0.0, 3.0, 1.0]);
    }
}
