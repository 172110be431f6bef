//! Pooling by candle's operations on a device. The table is on the device, and a batch of texts is one upload of IDs, a few large
//! operations, and one download of vectors.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, DeviceLocation, Result, Tensor, bail};
use candle_nn::{Embedding, Module};

use super::Pooling;
use crate::error::EmbedError;
use crate::norm::CollapsedNorm;
use crate::table::{EmbeddingTable, TableDtype};

/// The number of tokens that are gathered at a time. It bounds the copies of rows (32 MiB for 4096 dimensions of bf16, and 64 MiB
/// as f32).
const TOKENS_AT_A_TIME: usize = 4096;

/// The number of texts that are summed at a time. The sum is a product with a matrix `[texts, tokens]`, so its cost grows with
/// both.
const TEXTS_AT_A_TIME: usize = 64;

/// Pools rows of a table on a [`Device`], in f32.
#[derive(Debug)]
pub struct DevicePooling {
    device: Device,
    dtype: TableDtype,
    /// The rows as stored. Integers are stored as unsigned bytes, because candle gathers those on every device, and signed bytes
    /// on none.
    rows: Embedding,
    /// The stored row of each ID, if tokens share rows.
    mapping: Option<Tensor>,
    /// `[rows, 1]`
    scale: Embedding,
    /// `[rows, corrections]` and `[corrections, dimensions]`
    corrections: Option<(Embedding, Tensor)>,
    /// `[dimensions]`
    weight: Tensor,
    /// `[dimensions]`
    bias: Option<Tensor>,
    /// The column 0, 1, 2, ...: `[TEXTS_AT_A_TIME, 1]`
    places: Tensor,
    vocabulary: usize,
    /// Held while a batch is on the device, so that only one batch takes memory there.
    turn: Mutex<()>,
}

/// The text index of an ID past the table, which belongs to no text.
const NOWHERE: u32 = u32::MAX;

/// Texts that are summed by the same operations: their number, and the range of their tokens in the batch.
struct Group {
    texts: usize,
    first: usize,
    tokens: usize,
}

/// A batch in the form in which it is uploaded.
#[derive(Default)]
struct Batch {
    ids: Vec<u32>,
    /// For each ID, the index of its text within the group.
    places: Vec<u32>,
    groups: Vec<Group>,
    /// For each text, 1 divided by its number of tokens.
    shares: Vec<f32>,
}

impl DevicePooling {
    /// Copies the table to `device`.
    ///
    /// # Errors
    /// When the table does not fit, or the device fails.
    pub fn new(table: &EmbeddingTable, norm: &CollapsedNorm, device: Device) -> Result<Self> {
        let (rows, dimensions) = (table.rows(), table.dimensions());
        let column = |numbers: &[f32]| Tensor::from_slice(numbers, (rows, 1), &device);
        let corrections = if norm.corrections.is_empty() {
            None
        } else {
            let columns: Vec<Tensor> = norm.corrections.iter().map(|c| column(&c.per_row)).collect::<Result<_>>()?;
            let directions =
                norm.corrections.iter().map(|c| Tensor::from_slice(&c.direction, (1, dimensions), &device));
            let directions: Vec<Tensor> = directions.collect::<Result<_>>()?;
            Some((Embedding::new(Tensor::cat(&columns, 1)?, columns.len()), Tensor::cat(&directions, 0)?))
        };
        let made = Self {
            dtype: table.dtype(),
            rows: stored(table, &device)?,
            mapping: table.mapping().map(|mapping| Tensor::new(mapping, &device)).transpose()?,
            scale: Embedding::new(column(&norm.scale)?, 1),
            corrections,
            weight: Tensor::from_slice(&norm.weight, dimensions, &device)?,
            bias: norm.bias.as_ref().map(|b| Tensor::from_slice(b, dimensions, &device)).transpose()?,
            places: Tensor::arange(0, TEXTS_AT_A_TIME as u32, &device)?.unsqueeze(1)?,
            vocabulary: rows,
            turn: Mutex::new(()),
            device,
        };
        // The next pooling may run on another thread.
        made.device.synchronize()?;
        Ok(made)
    }

    /// Returns the means of texts that each have an ID: `[texts, dimensions]`.
    fn means(&self, batch: &Batch, dimensions: usize) -> Result<Tensor> {
        let count = batch.ids.len();
        let uploaded = Tensor::from_vec([batch.ids.as_slice(), &batch.places].concat(), (2, count), &self.device)?;
        let (mut sums, mut along) = (Vec::new(), Vec::new());
        for group in &batch.groups {
            let (mut sum, mut corrections) = (None, None);
            for first in (0..group.tokens).step_by(TOKENS_AT_A_TIME) {
                let length = TOKENS_AT_A_TIME.min(group.tokens - first);
                let tokens = uploaded.narrow(1, group.first + first, length)?;
                let (more, more_corrections) = self.sums(&tokens, group.texts, dimensions)?;
                sum = Some(added(sum, more)?);
                corrections = more_corrections.map(|more| added(corrections, more)).transpose()?;
            }
            sums.extend(sum);
            along.extend(corrections);
        }
        let shares = Tensor::from_slice(&batch.shares, (batch.shares.len(), 1), &self.device)?;
        let weight = self.weight.narrow(0, 0, dimensions)?;
        let mut means = Tensor::cat(&sums, 0)?.broadcast_mul(&shares)?.broadcast_mul(&weight)?;
        if let Some((_, directions)) = &self.corrections {
            let along = Tensor::cat(&along, 0)?.broadcast_mul(&shares)?;
            means = (means + along.matmul(&directions.narrow(1, 0, dimensions)?.contiguous()?)?)?;
        }
        self.bias.as_ref().map_or(Ok(means.clone()), |bias| means.broadcast_add(&bias.narrow(0, 0, dimensions)?))
    }

    /// For `tokens` (2 x tokens: ids and their texts), the sums of scaled rows (texts x `dimensions`) and of corrections
    /// (texts x corrections).
    fn sums(&self, tokens: &Tensor, texts: usize, dimensions: usize) -> Result<(Tensor, Option<Tensor>)> {
        let (ids, places) = (tokens.get(0)?, tokens.get(1)?.unsqueeze(0)?);
        let belongs = self.places.narrow(0, 0, texts)?.broadcast_eq(&places)?.to_dtype(DType::F32)?;
        let scaled = belongs.broadcast_mul(&self.scale.forward(&ids)?.t()?)?;
        let rows = match &self.mapping {
            None => self.rows.forward(&ids)?,
            Some(mapping) => self.rows.forward(&mapping.index_select(&ids, 0)?)?,
        };
        let numbers = |columns: usize| rows.narrow(1, 0, columns)?.to_dtype(DType::F32)?.contiguous();
        let sum = match self.dtype {
            TableDtype::Bf16 | TableDtype::F16 | TableDtype::F32 => scaled.matmul(&numbers(dimensions)?)?,
            TableDtype::Int8 => scaled.matmul(&(numbers(dimensions)? - INT8_OFFSET)?)?,
            TableDtype::Int4 => {
                let pairs = numbers(dimensions.div_ceil(2))?;
                let odd = (&pairs / 16.0)?.floor()?;
                let even = (pairs - (&odd * 16.0)?)?;
                let sum_of = |half: Tensor| scaled.matmul(&(half - INT4_OFFSET)?);
                let pairs = Tensor::stack(&[sum_of(even)?, sum_of(odd)?], 2)?;
                pairs.flatten_from(1)?.narrow(1, 0, dimensions)?
            }
        };
        let corrections = self.corrections.as_ref().map(|(per_row, _)| belongs.matmul(&per_row.forward(&ids)?));
        Ok((sum, corrections.transpose()?))
    }

    fn write(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> Result<()> {
        out.fill(0.0);
        let batch = Batch::of(texts, self.vocabulary);
        let vectors = out.chunks_mut(dimensions.max(1)).zip(texts).filter(|(_, ids)| !ids.is_empty());
        if batch.groups.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let means = self.means(&batch, dimensions)?.flatten_all()?.to_vec1::<f32>()?;
        for ((vector, _), mean) in vectors.zip(means.chunks(dimensions.max(1))) {
            vector.copy_from_slice(mean);
        }
        Ok(())
    }
}

impl Batch {
    /// A group is several texts that fit into one step together, or one text of any number of steps: where a text is cut
    /// depends on nothing but the text.
    fn of(texts: &[&[u32]], vocabulary: usize) -> Self {
        let mut batch = Self::default();
        for ids in texts.iter().filter(|ids| !ids.is_empty()) {
            let fits = |group: &&mut Group| {
                group.texts < TEXTS_AT_A_TIME && group.tokens.saturating_add(ids.len()) <= TOKENS_AT_A_TIME
            };
            let place = match batch.groups.last_mut().filter(fits) {
                Some(group) => {
                    group.texts += 1;
                    group.tokens += ids.len();
                    group.texts - 1
                }
                None => {
                    batch.groups.push(Group { texts: 1, first: batch.ids.len(), tokens: ids.len() });
                    0
                }
            };
            for &id in *ids {
                let known = (id as usize) < vocabulary;
                batch.ids.push(if known { id } else { 0 });
                batch.places.push(if known { place as u32 } else { NOWHERE });
            }
            batch.shares.push(1.0 / ids.len() as f32);
        }
        batch
    }
}

fn added(sum: Option<Tensor>, more: Tensor) -> Result<Tensor> {
    sum.map_or(Ok(more.clone()), |sum| sum + more)
}

/// What an integer is stored plus.
const INT8_OFFSET: f64 = 128.0;
const INT4_OFFSET: f64 = 8.0;

/// The table's stored rows on `device`: as many bytes as in the file.
fn stored(table: &EmbeddingTable, device: &Device) -> Result<Embedding> {
    let width = table.dtype().row_bytes(table.dimensions()).unwrap_or_default();
    let (bytes, rows) = (table.bytes(), table.stored_rows());
    let columns = if table.dtype().is_integer() { width } else { table.dimensions() };
    // candle's CUDA kernels find a number of a row by an index of 32 bits.
    if rows.checked_mul(columns).and_then(|numbers| u32::try_from(numbers).ok()).is_none() {
        bail!("candle's kernels reach the first {} numbers of a table, and it has {rows} x {columns}", u32::MAX);
    }
    let shape = &[rows, columns];
    let stored = match table.dtype() {
        TableDtype::Bf16 => Tensor::from_raw_buffer(bytes, DType::BF16, shape, device)?,
        TableDtype::F16 => Tensor::from_raw_buffer(bytes, DType::F16, shape, device)?,
        TableDtype::F32 => Tensor::from_raw_buffer(bytes, DType::F32, shape, device)?,
        TableDtype::Int4 => Tensor::from_raw_buffer(bytes, DType::U8, shape, device)?,
        // Two's complement, less its sign: plus 128.
        TableDtype::Int8 => Tensor::from_vec(bytes.iter().map(|x| x ^ 0x80).collect::<Vec<u8>>(), shape, device)?,
    };
    Ok(Embedding::new(stored, columns))
}

impl Pooling for DevicePooling {
    fn mean(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> std::result::Result<(), EmbedError> {
        self.write(texts, dimensions, out).map_err(|e| EmbedError::Device { message: e.to_string() })
    }

    fn device(&self) -> String {
        match self.device.location() {
            DeviceLocation::Cpu => "cpu (candle)".to_owned(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id} (candle)"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }

    fn wants_whole_batches(&self) -> bool {
        true
    }

    fn reads_the_table(&self) -> bool {
        false
    }
}
