//! The CPU's pooling: gather, scale and add, over the table as stored.

use super::Pooling;
use super::kernel::{self, GROUP, Kernel};
use crate::error::EmbedError;
use crate::norm::CollapsedNorm;
use crate::table::EmbeddingTable;

/// Pools over a table in memory or in a memory map.
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

    /// The same with another kernel, to compare them.
    pub fn with_kernel(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// Writes the mean of one text.
    fn mean_of(&self, ids: &[u32], out: &mut [f32]) {
        out.fill(0.0);
        let mut corrections = [0.0f64; 3];
        let mut groups = ids.chunks(GROUP);
        let mut next = groups.next().map_or_else(Rows::default, |ids| self.rows(ids));
        while !next.is_empty() {
            let rows = next;
            next = groups.next().map_or_else(Rows::default, |ids| self.rows(ids));
            let (now, scales) = rows.get();
            self.kernel.add(self.table.dtype(), now, scales, next.get().0, out);
        }
        self.kernel.order(self.table.dtype(), out);
        for (sum, correction) in corrections.iter_mut().zip(&self.norm.corrections) {
            *sum = ids.iter().filter_map(|&id| correction.per_row.get(id as usize)).map(|&c| f64::from(c)).sum();
        }
        self.finish(ids.len(), corrections, out);
    }

    /// The rows and scales of up to [`GROUP`] ids. An id past the table is a row of nothing.
    fn rows(&self, ids: &[u32]) -> Rows<'_> {
        let mut rows = Rows { count: ids.len().min(GROUP), ..Rows::default() };
        for ((row, scale), &id) in rows.rows.iter_mut().zip(&mut rows.scales).zip(ids) {
            *row = self.table.row(id).unwrap_or_default();
            *scale = self.norm.scale.get(id as usize).copied().unwrap_or_default();
        }
        rows
    }

    /// From sums over `count` tokens to their mean under the norm's weight, corrections and bias.
    fn finish(&self, count: usize, corrections: [f64; 3], out: &mut [f32]) {
        if count == 0 {
            return;
        }
        let share = 1.0 / count as f32;
        self.kernel.weigh(out, &self.norm.weight, share);
        for (sum, correction) in corrections.iter().zip(&self.norm.corrections) {
            let mean = (sum / count as f64) as f32;
            for (x, direction) in out.iter_mut().zip(&correction.direction) {
                *x += mean * direction;
            }
        }
        for (x, b) in out.iter_mut().zip(self.norm.bias.iter().flatten()) {
            *x += b;
        }
    }
}

/// One group of rows.
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
        for (ids, out) in texts.iter().zip(out.chunks_mut(dimensions.max(1))) {
            self.mean_of(ids, out);
        }
        Ok(())
    }

    fn device(&self) -> String {
        format!("cpu ({})", self.kernel.name)
    }

    fn reads_the_table(&self) -> bool {
        true
    }
}
