//! The texts of one step as sums of rows: their vectors, and the gradients of their rows.
//!
//! The vector of a text is `u = s / |s|` with `s = sum over distinct tokens of n^p T[t]`, where token `t` occurs `n`
//! times in the text. With the exponent `p = 1`, `s` is the plain sum over the tokens.

use std::ops::Range;

use rayon::prelude::*;

use super::lanes::{dot, vectorized};

/// The number of texts that one task processes.
const TEXTS_A_TASK: usize = 32;
/// A sum of rows that is shorter than this has no direction. A typical row has length `sqrt(dimensions)`.
const SHORTEST: f32 = 1e-6;

/// One token of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// The index of the token's row among the trained rows.
    pub row: u32,
    /// `n^p` for a token that occurs `n` times.
    pub weight: f32,
}

/// Texts as distinct tokens.
#[derive(Debug, Clone)]
pub struct Texts {
    /// Text `i` is `entries[starts[i]..starts[i + 1]]`.
    starts: Vec<usize>,
    entries: Vec<Entry>,
}

/// The vectors of texts.
#[derive(Debug, Default)]
pub struct Vectors {
    /// The vectors, scaled to length 1, row-major. The vector of a text without a direction is zero.
    pub unit: Vec<f32>,
    /// `1 / |s|` for each text, or zero.
    inverse_lengths: Vec<f32>,
    dimensions: usize,
}

impl Texts {
    pub fn new() -> Self {
        Self { starts: vec![0], entries: Vec::new() }
    }

    pub fn clear(&mut self) {
        self.starts.truncate(1);
        self.entries.clear();
    }

    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Appends a text. `rows` are the rows of its tokens, in which equal rows follow each other.
    pub fn push(&mut self, rows: impl Iterator<Item = u32>, exponent: f32) {
        let start = self.entries.len();
        let mut count = 0u32;
        for row in rows {
            match self.entries.get_mut(start..).and_then(<[Entry]>::last_mut).filter(|last| last.row == row) {
                Some(last) => {
                    count += 1;
                    last.weight = (count as f32).powf(exponent);
                }
                None => {
                    count = 1;
                    self.entries.push(Entry { row, weight: 1.0 });
                }
            }
        }
        self.starts.push(self.entries.len());
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the entries of text `index`.
    pub fn text(&self, index: usize) -> &[Entry] {
        match self.starts.get(index..index + 2) {
            Some(&[start, end]) => self.entries.get(Range { start, end }).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Computes the vectors of the texts of `range`. `add(sum, entry)` adds the row of an entry times its weight.
    pub fn vectors(
        &self,
        range: Range<usize>,
        dimensions: usize,
        add: impl Fn(&mut [f32], Entry) + Sync,
        out: &mut Vectors,
    ) {
        out.dimensions = dimensions;
        out.unit.clear();
        out.unit.resize(range.len() * dimensions, 0.0);
        out.inverse_lengths.clear();
        out.inverse_lengths.resize(range.len(), 0.0);
        out.unit
            .par_chunks_mut(TEXTS_A_TASK * dimensions)
            .zip(out.inverse_lengths.par_chunks_mut(TEXTS_A_TASK))
            .enumerate()
            .for_each(|(task, (vectors, inverse))| {
                let first = range.start + task * TEXTS_A_TASK;
                vectorized(|| {
                    let texts = vectors.chunks_mut(dimensions).zip(inverse).enumerate();
                    for (index, (sum, inverse)) in texts {
                        for &entry in self.text(first + index) {
                            add(sum, entry);
                        }
                        let length = dot(sum, sum).sqrt();
                        *inverse = if length > SHORTEST { length.recip() } else { 0.0 };
                        for x in sum {
                            *x *= *inverse;
                        }
                    }
                });
            });
    }
}

impl Vectors {
    pub fn range(&self, texts: Range<usize>) -> &[f32] {
        self.unit.get(texts.start * self.dimensions..texts.end * self.dimensions).unwrap_or_default()
    }

    /// Replaces the gradients of the vectors `u` by the gradients of the sums `s`: `(g - u (u . g)) / |s|`.
    pub fn through_the_scaling(&self, gradients: &mut [f32]) {
        let dimensions = self.dimensions;
        gradients
            .par_chunks_mut(TEXTS_A_TASK * dimensions)
            .zip(self.unit.par_chunks(TEXTS_A_TASK * dimensions))
            .zip(self.inverse_lengths.par_chunks(TEXTS_A_TASK))
            .for_each(|((gradients, vectors), inverse)| {
                vectorized(|| {
                    let texts = gradients.chunks_mut(dimensions).zip(vectors.chunks(dimensions)).zip(inverse);
                    for ((gradient, vector), inverse) in texts {
                        let along = dot(gradient, vector);
                        for (g, u) in gradient.iter_mut().zip(vector) {
                            *g = (*g - along * u) * inverse;
                        }
                    }
                });
            });
    }
}

/// The entries of a batch by their rows. The memory is reused from batch to batch.
#[derive(Debug)]
pub struct ByRow {
    /// For each row of the table, the number of its entries, and then the end of its entries. All zeros between
    /// batches.
    counters: Vec<u32>,
    /// The rows that occur in the batch, in ascending order.
    pub rows: Vec<u32>,
    /// Row `rows[i]` occurs in `occurrences[starts[i]..starts[i + 1]]`, in the order of the texts.
    starts: Vec<u32>,
    occurrences: Vec<(u32, f32)>,
}

impl ByRow {
    /// Creates an index for a table of `rows` rows.
    pub fn new(rows: usize) -> Self {
        Self { counters: vec![0; rows], rows: Vec::new(), starts: Vec::new(), occurrences: Vec::new() }
    }

    /// Sorts the entries of `texts` by their rows.
    pub fn fill(&mut self, texts: &Texts) {
        self.rows.clear();
        for entry in texts.entries() {
            if let Some(counter) = self.counters.get_mut(entry.row as usize) {
                if *counter == 0 {
                    self.rows.push(entry.row);
                }
                *counter += 1;
            }
        }
        self.rows.sort_unstable();
        self.starts.clear();
        let mut sum = 0;
        for &row in &self.rows {
            self.starts.push(sum);
            if let Some(counter) = self.counters.get_mut(row as usize) {
                sum += std::mem::replace(counter, sum);
            }
        }
        self.starts.push(sum);
        self.occurrences.clear();
        self.occurrences.resize(sum as usize, (0, 0.0));
        for text in 0..texts.len() {
            for entry in texts.text(text) {
                let Some(next) = self.counters.get_mut(entry.row as usize) else { continue };
                if let Some(slot) = self.occurrences.get_mut(*next as usize) {
                    *slot = (u32::try_from(text).unwrap_or(u32::MAX), entry.weight);
                }
                *next += 1;
            }
        }
        for &row in &self.rows {
            if let Some(counter) = self.counters.get_mut(row as usize) {
                *counter = 0;
            }
        }
    }

    /// Returns the texts that contain row `rows[index]`, each with the weight of the row in it.
    pub fn occurrences(&self, index: usize) -> &[(u32, f32)] {
        match self.starts.get(index..index + 2) {
            Some(&[start, end]) => self.occurrences.get(start as usize..end as usize).unwrap_or_default(),
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::add_scaled;
    use super::*;

    #[test]
    fn repeated_tokens_count_to_the_power_of_the_exponent() {
        let mut texts = Texts::new();
        texts.push([3, 5, 5, 5, 5].into_iter(), 0.5);
        texts.push([5].into_iter(), 0.5);
        texts.push([].into_iter(), 0.5);
        assert_eq!(texts.text(0), [Entry { row: 3, weight: 1.0 }, Entry { row: 5, weight: 2.0 }]);
        // A text that begins with the last token of the text before it is a text of its own.
        assert_eq!((texts.text(1), texts.text(2)), (&[Entry { row: 5, weight: 1.0 }][..], &[][..]));
        let mut by_row = ByRow::new(9);
        for _ in 0..2 {
            by_row.fill(&texts);
            assert_eq!(by_row.rows, [3, 5]);
            assert_eq!((by_row.occurrences(0), by_row.occurrences(1)), (&[(0, 1.0)][..], &[(0, 2.0), (1, 1.0)][..]));
        }
    }

    #[test]
    fn a_text_without_a_direction_has_the_zero_vector_and_no_gradient() {
        let table = [3.0f32, 4.0, -3.0, -4.0];
        let mut texts = Texts::new();
        texts.push([0].into_iter(), 1.0);
        texts.push([0, 1].into_iter(), 1.0);
        let mut vectors = Vectors::default();
        let add = |sum: &mut [f32], entry: Entry| add_scaled(sum, entry.weight, &table[2 * entry.row as usize..][..2]);
        texts.vectors(0..2, 2, add, &mut vectors);
        assert_eq!(vectors.unit, [0.6, 0.8, 0.0, 0.0]);
        let mut gradients = [1.0, 0.0, 1.0, 1.0];
        vectors.through_the_scaling(&mut gradients);
        let expected = [(1.0 - 0.36) / 5.0, -0.48 / 5.0, 0.0, 0.0];
        assert!(gradients.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7), "{gradients:?}");
    }
}
