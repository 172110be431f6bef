//! Pooling on the CPU: gathers rows from the table as stored, scales them and adds them.

use super::kernel::{self, GROUP, Kernel};
use super::{Comparison, Pooling};
use crate::error::EmbedError;
use crate::norm::CollapsedNorm;
use crate::table::{EmbeddingTable, for_each};
use layer0_tokenizers::yield_point::{Stopped, Undisturbed, YieldPoint};

/// The number of groups that are added in f32. Their sums are added in f64, so the rounding error does not grow with the length
/// of the text.
const GROUPS_OF_A_BLOCK: usize = 32;

/// Pools rows of a table in memory or in a memory map.
#[derive(Debug)]
pub struct CpuPooling {
    pub(super) table: EmbeddingTable,
    pub(super) norm: CollapsedNorm,
    kernel: Kernel,
}

impl CpuPooling {
    pub fn new(table: EmbeddingTable, norm: CollapsedNorm) -> Self {
        Self { table, norm, kernel: kernel::best() }
    }

    /// Returns the same pooling with another kernel, to compare kernels.
    pub fn with_kernel(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// Writes the mean of one text to `out`.
    fn mean_of(&self, ids: &[u32], out: &mut [f32], at: &dyn YieldPoint) -> Result<(), Stopped> {
        out.fill(0.0);
        // The sums of the blocks before the one in `out`.
        let mut totals: Vec<f64> = Vec::new();
        let mut in_block = 0;
        let mut groups = ids.chunks(GROUP);
        let mut next = groups.next().map_or_else(Rows::default, |ids| self.rows(ids));
        while !next.is_empty() {
            let rows = next;
            next = groups.next().map_or_else(Rows::default, |ids| self.rows(ids));
            let (now, scales) = rows.get();
            self.kernel.add(self.table.dtype(), now, scales, next.get().0, out);
            in_block += 1;
            if in_block == GROUPS_OF_A_BLOCK && !next.is_empty() {
                in_block = 0;
                totals.resize(out.len(), 0.0);
                for (total, sum) in totals.iter_mut().zip(&mut *out) {
                    *total += f64::from(std::mem::take(sum));
                }
                at.reached()?;
            }
        }
        let mut share = 1.0 / ids.len().max(1) as f32;
        if !totals.is_empty() {
            for (total, sum) in totals.iter().zip(&mut *out) {
                *sum = ((total + f64::from(*sum)) / ids.len() as f64) as f32;
            }
            share = 1.0;
        }
        self.kernel.order(self.table.dtype(), out);
        self.finish(ids, share, out);
        Ok(())
    }

    /// Returns the mean of each correction's scalars, with its direction.
    fn corrections(&self, ids: &[u32]) -> impl Iterator<Item = (f64, &[f32])> {
        let count = ids.len().max(1) as f64;
        self.norm.corrections.iter().map(move |correction| {
            let numbers = ids.iter().filter_map(|&id| correction.per_row.get(id as usize));
            (numbers.map(|&c| f64::from(c)).sum::<f64>() / count, correction.direction.as_slice())
        })
    }

    /// Returns the rows and scales of up to [`GROUP`] IDs. An ID past the table gives an empty row.
    fn rows(&self, ids: &[u32]) -> Rows<'_> {
        let mut rows = Rows { count: ids.len().min(GROUP), ..Rows::default() };
        for ((row, scale), &id) in rows.rows.iter_mut().zip(&mut rows.scales).zip(ids) {
            *row = self.table.row(id).unwrap_or_default();
            *scale = self.norm.scale.get(id as usize).copied().unwrap_or_default();
        }
        rows
    }

    /// Turns sums into the mean: multiplies by `share` and the norm's weight, and adds the corrections and the bias.
    fn finish(&self, ids: &[u32], share: f32, out: &mut [f32]) {
        if ids.is_empty() {
            return;
        }
        self.kernel.weigh(out, &self.norm.weight, share);
        for (mean, direction) in self.corrections(ids) {
            let mean = mean as f32;
            for (x, direction) in out.iter_mut().zip(direction) {
                *x += mean * direction;
            }
        }
        for (x, b) in out.iter_mut().zip(self.norm.bias.iter().flatten()) {
            *x += b;
        }
    }
}

/// A group of rows, with their scales.
#[derive(Default, Clone, Copy)]
struct Rows<'a> {
    rows: [&'a [u8]; GROUP],
    scales: [f32; GROUP],
    count: usize,
}

impl Rows<'_> {
    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn get(&self) -> (&[&[u8]], &[f32]) {
        (self.rows.get(..self.count).unwrap_or_default(), self.scales.get(..self.count).unwrap_or_default())
    }
}

impl Pooling for CpuPooling {
    fn mean(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> Result<(), EmbedError> {
        self.mean_in_steps(texts, dimensions, out, &Undisturbed)
    }

    fn mean_in_steps(
        &self,
        texts: &[&[u32]],
        dimensions: usize,
        out: &mut [f32],
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        for (ids, out) in texts.iter().zip(out.chunks_mut(dimensions.max(1))) {
            self.mean_of(ids, out, at)?;
        }
        Ok(())
    }

    fn exact_mean(&self, ids: &[u32], dimensions: usize, at: &dyn YieldPoint) -> Result<Option<Vec<f64>>, Stopped> {
        let mut totals = vec![0.0f64; dimensions];
        let mut row = vec![0.0f32; dimensions];
        for ids in ids.chunks(GROUP * GROUPS_OF_A_BLOCK) {
            for &id in ids {
                let scale = f64::from(self.norm.scale.get(id as usize).copied().unwrap_or_default());
                for_each(self.table.dtype(), self.table.row(id).unwrap_or_default(), &mut row, |to, x| *to = x);
                for (total, &x) in totals.iter_mut().zip(&row) {
                    *total += scale * f64::from(x);
                }
            }
            at.reached()?;
        }
        let count = ids.len().max(1) as f64;
        for (total, &weight) in totals.iter_mut().zip(&self.norm.weight) {
            *total = *total / count * f64::from(weight);
        }
        for (mean, direction) in self.corrections(ids) {
            for (total, &direction) in totals.iter_mut().zip(direction) {
                *total += mean * f64::from(direction);
            }
        }
        for (total, &b) in totals.iter_mut().zip(self.norm.bias.iter().flatten()) {
            *total += f64::from(b);
        }
        Ok(Some(totals))
    }

    fn comparison(&self, ids: &[u32]) -> Option<Comparison<'_>> {
        Comparison::new(&self.table, &self.norm, self.kernel, ids)
    }

    fn device(&self) -> String {
        format!("cpu ({})", self.kernel.name)
    }

    fn reads_the_table(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::norm::Correction;
    use crate::pooling::normalize;
    use crate::table::TableDtype;

    const WIDTH: usize = 37;

    fn pooling(rows: &[f32], corrections: Vec<Correction>) -> CpuPooling {
        let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
        let count = rows.len() / WIDTH;
        let table = EmbeddingTable::new(bytes.into(), TableDtype::F32, count, WIDTH).unwrap();
        let scale = (0..count).map(|row| 0.1 + row as f32 * 0.37).collect();
        CpuPooling::new(
            table,
            CollapsedNorm { scale, weight: vec![1.7; WIDTH], bias: Some(vec![0.3; WIDTH]), corrections },
        )
    }

    fn random(count: usize, rng: &mut fastrand::Rng) -> Vec<f32> {
        (0..count).map(|_| rng.f32() - 0.5).collect()
    }

    /// One token repeated, so that all rounding errors have the same sign, and random tokens.
    #[test]
    fn long_texts_are_as_exact_as_short_ones_on_every_kernel() {
        let mut rng = fastrand::Rng::with_seed(11);
        let numbers = random(5 * WIDTH, &mut rng);
        let correction = Correction { per_row: random(5, &mut rng), direction: random(WIDTH, &mut rng) };
        let any: Vec<u32> = (0..100_000).map(|_| rng.u32(..5)).collect();
        for kernel in kernel::available() {
            let pooling = pooling(&numbers, vec![correction.clone()]).with_kernel(kernel);
            for ids in [&any[..], &vec![3; 400_000], &[3; 257], &any[..1000]] {
                let mut found = vec![0.0; WIDTH];
                pooling.mean(&[ids], WIDTH, &mut found).unwrap();
                let exact = pooling.exact_mean(ids, WIDTH, &Undisturbed).unwrap().unwrap();
                let length = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
                normalize(&mut found).unwrap();
                for (found, exact) in found.iter().zip(&exact) {
                    assert!((f64::from(*found) - exact / length).abs() < 5e-7, "{}: {}", kernel.name, ids.len());
                }
            }
        }
    }

    #[test]
    fn short_texts_are_added_as_one_block() {
        let mut rng = fastrand::Rng::with_seed(12);
        let pooling = pooling(&random(9 * WIDTH, &mut rng), Vec::new());
        let ids: Vec<u32> = (0..256).map(|_| rng.u32(..9)).collect();
        let mut sums = vec![0.0; WIDTH];
        for ids in ids.chunks(GROUP) {
            let rows = pooling.rows(ids);
            pooling.kernel.add(TableDtype::F32, rows.get().0, rows.get().1, &[], &mut sums);
        }
        let expected: Vec<f32> = sums.iter().map(|x| x * (1.7 * (1.0 / 256.0)) + 0.3).collect();
        let mut found = vec![0.0; WIDTH];
        pooling.mean(&[&ids], WIDTH, &mut found).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_long_text_can_be_stopped() {
        struct Stop;
        impl YieldPoint for Stop {
            fn reached(&self) -> Result<(), Stopped> {
                Err(Stopped)
            }
        }
        let pooling = pooling(&[1.0; WIDTH], Vec::new());
        let mut out = vec![0.0; WIDTH];
        assert_eq!(pooling.mean_in_steps(&[&[0; 256]], WIDTH, &mut out, &Stop), Ok(()));
        assert_eq!(pooling.mean_in_steps(&[&[0; 257]], WIDTH, &mut out, &Stop), Err(EmbedError::Stopped(Stopped)));
        assert_eq!(pooling.exact_mean(&[0], WIDTH, &Stop), Err(Stopped));
    }
}
