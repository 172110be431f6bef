//! Pooling by our own CUDA kernel (kernels/mean.cu). Each row is read once, as stored, and only sums are written. candle's
//! operations would write and read each row several times.
#![allow(unsafe_code)] // Kernels take pointers and lengths that no type checks.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Result, bail};

use super::Pooling;
use crate::error::EmbedError;
use crate::norm::CollapsedNorm;
use crate::table::{EmbeddingTable, TableDtype};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/mean.ptx"));

/// The number of tokens that one block adds. Longer texts are divided, so that a single one keeps the device busy, too.
const PART: usize = 512;

/// The number of parts at a time. It bounds the memory for sums (64 MiB for 4096 dimensions), except for a text of more parts.
const PARTS_AT_A_TIME: usize = 4096;

const THREADS: u32 = 128;

/// The number of bytes of a row that a thread reads at a time. Rows are padded to a multiple of it.
const BYTES_OF_A_THREAD: usize = 16;

/// Pools rows of a table on a CUDA device.
pub struct CudaPooling {
    stream: Arc<CudaStream>,
    ordinal: usize,
    sums: CudaFunction,
    means: CudaFunction,
    /// stored rows x width bytes
    table: CudaSlice<u8>,
    width: usize,
    /// The number of columns of a thread.
    columns_of_a_thread: usize,
    /// rows
    mapping: CudaSlice<u32>,
    /// rows
    scale: CudaSlice<f32>,
    /// corrections x rows, and corrections x dimensions; a number that is not read where there are none.
    per_row: CudaSlice<f32>,
    directions: CudaSlice<f32>,
    corrections: usize,
    /// dimensions
    weight: CudaSlice<f32>,
    /// dimensions, or a number that is not read
    bias: CudaSlice<f32>,
    biased: bool,
    rows: usize,
    dimensions: usize,
    /// Held while texts are on the device, so that only one batch takes memory there.
    turn: Mutex<()>,
}

impl CudaPooling {
    /// Copies the table to `device`.
    ///
    /// # Errors
    /// When the table does not fit, or the device fails.
    pub fn new(table: &EmbeddingTable, norm: &CollapsedNorm, device: &CudaDevice) -> Result<Self> {
        let (rows, dimensions, stored) = (table.rows(), table.dimensions(), table.stored_rows());
        let Some(row_bytes) = table.dtype().row_bytes(dimensions) else { bail!("a row of {dimensions} columns") };
        let width = row_bytes.next_multiple_of(BYTES_OF_A_THREAD);
        let (kernel, columns_of_a_thread) = match table.dtype() {
            TableDtype::Bf16 => ("sums_bf16", 8),
            TableDtype::F16 => ("sums_f16", 8),
            TableDtype::F32 => ("sums_f32", 4),
            TableDtype::Int8 => ("sums_int8", 16),
            TableDtype::Int4 => ("sums_int4", 32),
        };
        let function =
            |name| Ok::<_, candle_core::Error>(device.get_or_load_custom_func(name, "mean", PTX)?.into_cuda_function());
        let numbers = |numbers: Vec<f32>| device.clone_htod(if numbers.is_empty() { &[0.0][..] } else { &numbers });
        let mapping = table.mapping().map_or_else(|| (0..stored as u32).collect(), <[u32]>::to_vec);
        let made = Self {
            stream: device.cuda_stream(),
            ordinal: device.cuda_stream().context().ordinal(),
            sums: function(kernel)?,
            means: function("means")?,
            table: if width == row_bytes {
                device.clone_htod(&table.bytes()[..])?
            } else {
                let mut padded = vec![0; stored * width];
                for (to, from) in padded.chunks_mut(width).zip(table.bytes().chunks(row_bytes)) {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                }
                device.clone_htod(&padded)?
            },
            width,
            columns_of_a_thread,
            mapping: device.clone_htod(&mapping)?,
            scale: numbers(norm.scale.clone())?,
            per_row: numbers(norm.corrections.iter().flat_map(|c| &c.per_row).copied().collect())?,
            directions: numbers(norm.corrections.iter().flat_map(|c| &c.direction).copied().collect())?,
            corrections: norm.corrections.len(),
            weight: numbers(norm.weight.clone())?,
            bias: numbers(norm.bias.clone().unwrap_or_default())?,
            biased: norm.bias.is_some(),
            rows,
            dimensions,
            turn: Mutex::new(()),
        };
        made.stream.synchronize().w()?;
        Ok(made)
    }

    /// Returns the means of texts that each have an ID: `[texts, columns]`.
    fn means(&self, texts: &[&[u32]], columns: usize) -> Result<Vec<f32>> {
        // One upload: the IDs, the begin of each part, and the first part of each text.
        let tokens: usize = texts.iter().map(|ids| ids.len()).sum();
        let mut upload = texts.concat();
        let (mut bounds, mut firsts) = (vec![0u32], vec![0u32]);
        let mut end = 0;
        for ids in texts {
            for part in ids.chunks(PART) {
                end += part.len();
                bounds.push(u32::try_from(end).map_err(candle_core::Error::wrap)?);
            }
            firsts.push(bounds.len() as u32 - 1);
        }
        let parts = bounds.len() - 1;
        upload.extend_from_slice(&bounds);
        upload.extend_from_slice(&firsts);
        let upload = self.stream.clone_htod(&upload).w()?;
        let (ids, rest) = (upload.slice(..tokens), upload.slice(tokens..));
        let (bounds, firsts) = (rest.slice(..=parts), rest.slice(parts + 1..));

        let stride = columns.next_multiple_of(self.columns_of_a_thread);
        let mut sums = self.stream.alloc_zeros::<f32>(parts * stride).w()?;
        let mut along = self.stream.alloc_zeros::<f32>((parts * self.corrections).max(1)).w()?;
        let (wide, apart, corrections, rows) =
            (columns as u32, stride as u32, self.corrections as u32, self.rows as u32);
        let (width, dimensions, biased) = (self.width as u64, self.dimensions as u32, u32::from(self.biased));
        let grid = |x: usize, threads: usize| LaunchConfig {
            grid_dim: (x as u32, (threads as u32).div_ceil(THREADS), 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = self.stream.launch_builder(&self.sums);
        launch.arg(&self.table).arg(&width).arg(&self.mapping).arg(&self.scale).arg(&self.per_row);
        launch.arg(&corrections).arg(&rows).arg(&ids).arg(&bounds).arg(&apart).arg(&mut sums).arg(&mut along);
        // SAFETY: the arguments are add_up's in kernels/mean.cu, in its order, with the shapes that it states. It reads rows of
        // ids below `rows`, whose mapping is below the stored rows; threads past `stride` return, and a row has 16 bytes for
        // each that does not, since `columns` is at most the table's.
        unsafe { launch.launch(grid(parts, stride / self.columns_of_a_thread)) }.w()?;

        let mut means = self.stream.alloc_zeros::<f32>(texts.len() * columns).w()?;
        let mut launch = self.stream.launch_builder(&self.means);
        launch.arg(&sums).arg(&along).arg(&bounds).arg(&firsts).arg(&self.weight).arg(&self.directions);
        launch.arg(&corrections).arg(&dimensions).arg(&self.bias).arg(&biased).arg(&wide).arg(&apart);
        launch.arg(&mut means);
        // SAFETY: as above, of the kernel `means`.
        unsafe { launch.launch(grid(texts.len(), columns)) }.w()?;
        self.stream.clone_dtoh(&means).w()
    }

    fn write(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> Result<()> {
        if dimensions > self.dimensions {
            bail!("{dimensions} columns of {}", self.dimensions);
        }
        out.fill(0.0);
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled =
            texts.iter().zip(out.chunks_mut(dimensions.max(1))).filter(|(ids, _)| !ids.is_empty()).peekable();
        while filled.peek().is_some() {
            let (mut ids, mut vectors, mut parts) = (Vec::new(), Vec::new(), 0);
            while let Some((text, vector)) =
                filled.next_if(|(text, _)| parts == 0 || parts + text.len().div_ceil(PART) <= PARTS_AT_A_TIME)
            {
                parts += text.len().div_ceil(PART);
                ids.push(*text);
                vectors.push(vector);
            }
            let means = self.means(&ids, dimensions)?;
            for (vector, mean) in vectors.into_iter().zip(means.chunks(dimensions.max(1))) {
                vector.copy_from_slice(mean);
            }
        }
        Ok(())
    }
}

impl Pooling for CudaPooling {
    fn mean(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> std::result::Result<(), EmbedError> {
        self.write(texts, dimensions, out).map_err(|e| EmbedError::Device { message: e.to_string() })
    }

    fn device(&self) -> String {
        format!("cuda:{}", self.ordinal)
    }

    fn wants_whole_batches(&self) -> bool {
        true
    }

    fn reads_the_table(&self) -> bool {
        false
    }
}
