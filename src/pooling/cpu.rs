//! The CPU's pooling: gather, scale and add, over the table as stored.

use super::Pooling;
use crate::error::EmbedError;
use crate::norm::CollapsedNorm;
use crate::table::{EmbeddingTable, for_each};

/// Tokens added up before their sum joins the total: the rounding error of a long text stays that of a short one.
const BLOCK: usize = 32;

/// Pools over a table in memory or in a memory map.
#[derive(Debug)]
pub struct CpuPooling {
    table: EmbeddingTable,
    norm: CollapsedNorm,
}

impl CpuPooling {
    pub fn new(table: EmbeddingTable, norm: CollapsedNorm) -> Self {
        Self { table, norm }
    }

    /// Writes the mean of one text. `block` is scratch as long as `out`.
    fn mean_of(&self, ids: &[u32], block: &mut [f32], out: &mut [f32]) {
        out.fill(0.0);
        let mut corrections = [0.0f64; 3];
        for ids in ids.chunks(BLOCK) {
            block.fill(0.0);
            for &id in ids {
                let (Some(row), Some(&scale)) = (self.table.row(id), self.norm.scale.get(id as usize)) else {
                    continue;
                };
                for_each(self.table.dtype(), row, block, |sum, x| *sum += scale * x);
                for (sum, correction) in corrections.iter_mut().zip(&self.norm.corrections) {
                    *sum += f64::from(correction.per_row.get(id as usize).copied().unwrap_or(0.0));
                }
            }
            for (total, sum) in out.iter_mut().zip(&*block) {
                *total += sum;
            }
        }
        self.finish(ids.len(), corrections, out);
    }

    /// From sums over `count` tokens to their mean under the norm's weight, corrections and bias.
    fn finish(&self, count: usize, corrections: [f64; 3], out: &mut [f32]) {
        if count == 0 {
            return;
        }
        let share = 1.0 / count as f32;
        for (x, w) in out.iter_mut().zip(&self.norm.weight) {
            *x *= w * share;
        }
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

impl Pooling for CpuPooling {
    fn mean(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> Result<(), EmbedError> {
        let mut block = vec![0.0; dimensions];
        for (ids, out) in texts.iter().zip(out.chunks_mut(dimensions.max(1))) {
            self.mean_of(ids, &mut block, out);
        }
        Ok(())
    }

    fn device(&self) -> String {
        "cpu".to_owned()
    }
}
