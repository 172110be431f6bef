//! Pooling on a device of candle's: the table lives there, a batch is one gather and one segment sum.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Embedding, Module};
use half::bf16;

use super::Pooling;
use crate::error::EmbedError;
use crate::norm::CollapsedNorm;
use crate::table::{EmbeddingTable, TableDtype, for_each};

/// Tokens gathered at a time: bounds the f32 copy of the rows (at 4096 dimensions 64 MiB).
const TOKENS_AT_A_TIME: usize = 4096;

/// Pools over a table on a [`Device`], in f32.
#[derive(Debug)]
pub struct DevicePooling {
    device: Device,
    rows: Embedding,
    /// Each id's row, where they differ.
    mapping: Option<Tensor>,
    /// rows x 1
    scale: Embedding,
    /// rows x corrections, and corrections x dimensions
    corrections: Option<(Embedding, Tensor)>,
    /// dimensions
    weight: Tensor,
    /// dimensions
    bias: Option<Tensor>,
}

impl DevicePooling {
    /// Copies the table to `device`.
    ///
    /// # Errors
    /// When it does not fit, or the device fails.
    pub fn new(table: &EmbeddingTable, norm: &CollapsedNorm, device: Device) -> Result<Self> {
        let (rows, dimensions) = (table.rows(), table.dimensions());
        let shape = &[table.stored_rows(), dimensions];
        let stored = match table.dtype() {
            TableDtype::Bf16 => Tensor::from_raw_buffer(table.bytes(), DType::BF16, shape, &device)?,
            TableDtype::F16 => Tensor::from_raw_buffer(table.bytes(), DType::F16, shape, &device)?,
            TableDtype::F32 => Tensor::from_raw_buffer(table.bytes(), DType::F32, shape, &device)?,
            TableDtype::Int8 | TableDtype::Int4 => integers(table, &device)?,
        };
        let mapping = table.mapping().map(|mapping| Tensor::new(mapping, &device)).transpose()?;
        let scale = Tensor::from_slice(&norm.scale, (rows, 1), &device)?;
        let corrections = if norm.corrections.is_empty() {
            None
        } else {
            let columns: Vec<Tensor> = norm
                .corrections
                .iter()
                .map(|c| Tensor::from_slice(&c.per_row, (rows, 1), &device))
                .collect::<Result<_>>()?;
            let directions: Vec<Tensor> = norm
                .corrections
                .iter()
                .map(|c| Tensor::from_slice(&c.direction, (1, dimensions), &device))
                .collect::<Result<_>>()?;
            let count = columns.len();
            Some((Embedding::new(Tensor::cat(&columns, 1)?, count), Tensor::cat(&directions, 0)?))
        };
        Ok(Self {
            rows: Embedding::new(stored, dimensions),
            mapping,
            scale: Embedding::new(scale, 1),
            corrections,
            weight: Tensor::from_slice(&norm.weight, dimensions, &device)?,
            bias: norm.bias.as_ref().map(|b| Tensor::from_slice(b, dimensions, &device)).transpose()?,
            device,
        })
    }

    fn mean_of(&self, ids: &[u32]) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for ids in ids.chunks(TOKENS_AT_A_TIME) {
            let ids = Tensor::new(ids, &self.device)?;
            let rows = match &self.mapping {
                None => self.rows.forward(&ids)?,
                Some(mapping) => self.rows.forward(&mapping.index_select(&ids, 0)?)?,
            };
            let rows = rows.to_dtype(DType::F32)?;
            let mut sum = rows.broadcast_mul(&self.scale.forward(&ids)?)?.sum(0)?.mul(&self.weight)?;
            if let Some((per_row, directions)) = &self.corrections {
                let along = per_row.forward(&ids)?.sum_keepdim(0)?.matmul(directions)?;
                sum = (sum + along.squeeze(0)?)?;
            }
            total = Some(match total {
                None => sum,
                Some(total) => (total + sum)?,
            });
        }
        let Some(total) = total else { return Tensor::zeros_like(&self.weight) };
        let mean = (total / ids.len() as f64)?;
        self.bias.as_ref().map_or(Ok(mean.clone()), |bias| mean.add(bias))
    }
}

/// The stored integers of a table as bf16, which holds them exactly; `norm.scale` has their steps. candle has no gather
/// over eight or four bits, so on a device such a table is two bytes a number.
fn integers(table: &EmbeddingTable, device: &Device) -> Result<Tensor> {
    let (rows, dimensions) = (table.stored_rows(), table.dimensions());
    let mut row = vec![0.0f32; dimensions];
    let mut numbers = Vec::with_capacity(rows * dimensions);
    for stored in table.bytes().chunks(table.bytes().len() / rows) {
        for_each(table.dtype(), stored, &mut row, |out, x| *out = x);
        numbers.extend(row.iter().map(|&x| bf16::from_f32(x)));
    }
    Tensor::from_vec(numbers, (rows, dimensions), device)
}

impl Pooling for DevicePooling {
    fn mean(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> std::result::Result<(), EmbedError> {
        for (ids, out) in texts.iter().zip(out.chunks_mut(dimensions.max(1))) {
            let mean = self.mean_of(ids).and_then(|mean| mean.narrow(0, 0, dimensions)?.to_vec1::<f32>());
            out.copy_from_slice(&mean.map_err(|e| EmbedError::Device { message: e.to_string() })?);
        }
        Ok(())
    }

    fn device(&self) -> String {
        match self.device.location() {
            candle_core::DeviceLocation::Cpu => "cpu (candle)".to_owned(),
            candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }
}
