//! Reads vectors from a column of a Parquet file, such as the files that `embed` writes.

use std::fs::File;

use crate::error::InvalidVectors;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, Field};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

/// The number of rows that are decoded at once.
const ROWS: usize = 1024;

/// A reader of the vectors of one column, row by row.
pub struct VectorColumn {
    reader: ParquetRecordBatchReader,
    batch: Option<(ArrayRef, usize)>,
}

impl VectorColumn {
    /// Opens the only column of `file` that holds lists of floating-point numbers. If several columns do, the one named
    /// "embedding" is opened.
    ///
    /// # Errors
    /// Fails if there is no such column.
    pub fn open(file: File) -> Result<Self, InvalidVectors> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| format!("is no Parquet file: {e}"))?;
        let fields = builder.schema().fields().clone();
        let columns: Vec<(usize, &str)> = fields
            .iter()
            .enumerate()
            .filter(|(_, field)| holds_vectors(field))
            .map(|(index, field)| (index, field.name().as_str()))
            .collect();
        let chosen = match columns.as_slice() {
            [only] => Some(only),
            several => several.iter().find(|(_, name)| *name == "embedding"),
        };
        let Some((index, _)) = chosen else {
            let names: Vec<&str> = columns.iter().map(|(_, name)| *name).collect();
            return Err(format!("has the columns {names:?} of vectors, and none of them is named \"embedding\"").into());
        };
        let mask = ProjectionMask::roots(builder.parquet_schema(), [*index]);
        let reader = builder.with_projection(mask).with_batch_size(ROWS).build();
        Ok(Self { reader: reader.map_err(|e| format!("cannot be read: {e}"))?, batch: None })
    }

    /// Returns the next vector, or `None` after the last one.
    ///
    /// # Errors
    /// Fails if the file is damaged, or if a row has no vector.
    pub fn next(&mut self) -> Result<Option<Vec<f32>>, InvalidVectors> {
        loop {
            if let Some((column, row)) = self.batch.as_mut().filter(|(column, row)| *row < column.len()) {
                let vector = vector(column, *row);
                *row += 1;
                return vector.map(Some).ok_or_else(|| "has no vector".into());
            }
            match self.reader.next() {
                None => return Ok(None),
                Some(batch) => {
                    let batch = batch.map_err(|e| format!("cannot be read: {e}"))?;
                    self.batch = batch.columns().first().map(|column| (ArrayRef::clone(column), 0));
                }
            }
        }
    }
}

fn holds_vectors(field: &Field) -> bool {
    match field.data_type() {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            item.data_type().is_floating()
        }
        _ => false,
    }
}

fn vector(column: &ArrayRef, row: usize) -> Option<Vec<f32>> {
    if column.is_null(row) {
        return None;
    }
    let values = match column.data_type() {
        DataType::List(_) => column.as_list::<i32>().value(row),
        DataType::LargeList(_) => column.as_list::<i64>().value(row),
        DataType::FixedSizeList(_, _) => column.as_fixed_size_list().value(row),
        _ => return None,
    };
    if values.null_count() > 0 {
        return None;
    }
    match values.data_type() {
        DataType::Float16 => Some(values.as_primitive::<Float16Type>().values().iter().map(|x| x.to_f32()).collect()),
        DataType::Float32 => Some(values.as_primitive::<Float32Type>().values().to_vec()),
        DataType::Float64 => Some(values.as_primitive::<Float64Type>().values().iter().map(|&x| x as f32).collect()),
        _ => None,
    }
}
