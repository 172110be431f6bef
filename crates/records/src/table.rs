//! Reads Parquet: its rows in batches, the column of the texts in any type that Arrow has for text, and a common schema
//! for files whose schemas differ.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray, StructArray};
use arrow_buffer::NullBuffer;
use arrow_json::WriterBuilder;
use arrow_json::writer::LineDelimited;
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};

use super::{
    BadRecord, Chunk, Emit, Ended, Hashing, MAX_LINE, Reading, RecordsError, RecordsErrorKind, Rows, TableError,
    has_column,
};
use layer0_files::{self as files, FileError};

fn damaged(path: &Path, problem: &dyn std::fmt::Display) -> RecordsError {
    let problem = problem.to_string();
    // For an encrypted file, the reader's message names a feature of the crate, which does not help the user.
    let problem = match problem.contains("encrypt") {
        true => "it is encrypted",
        false => problem.as_str(),
    };
    RecordsError::new(RecordsErrorKind::Damaged, path, format!("is no Parquet file that can be read: {problem}"))
}

/// Returns the columns of a Parquet file.
///
/// # Errors
/// Fails if the file cannot be read as Parquet.
pub fn schema(path: &Path) -> Result<SchemaRef, RecordsError> {
    let file = files::open(path).map_err(|e| FileError::reading(path, &e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, &e))?;
    Ok(Arc::clone(builder.schema()))
}

/// Reads the rows of a file in batches.
pub fn read<E: From<RecordsError>>(
    file: File,
    path: &Path,
    reading: Reading<'_>,
    emit: &mut Emit<'_, E>,
) -> Result<Ended, E> {
    let failed = |e: io::Error| RecordsError::from(FileError::reading(path, &e));
    let size = file.metadata().map_err(failed)?.len();
    let mut sha256 = String::new();
    if reading.digest {
        let mut digest = Sha256::new();
        io::copy(&mut files::open(path).map_err(failed)?, &mut Hashing(&mut digest)).map_err(failed)?;
        sha256 = files::hexadecimal(&digest.finalize());
    }
    let mut builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, &e))?;
    let fields = builder.schema().fields();
    let columns: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
    for field in reading.fields() {
        let found = field_type(fields, field);
        has_column(path, &columns, field, found.is_some())?;
        if let Some(kind) = found.filter(|kind| !is_text(kind)) {
            let problem = format!("has {kind} in the column {field:?}, not text");
            return Err(RecordsError::new(RecordsErrorKind::ColumnType, path, problem).into());
        }
    }
    let groups = builder.metadata().row_groups();
    // A batch is decoded as a whole. The number of its rows is therefore derived from the average size of a row,
    // according to the metadata of the file.
    let rows = groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).sum::<u64>().max(1);
    let bytes = groups.iter().map(|group| u64::try_from(group.total_byte_size()).unwrap_or(0)).sum::<u64>();
    let fitting = (reading.limits.bytes as u64 / (bytes / rows).max(1)).clamp(1, reading.limits.rows as u64);
    if !reading.whole {
        let mask = ProjectionMask::columns(builder.parquet_schema(), reading.fields());
        builder = builder.with_projection(mask);
    }
    let reader = builder.with_batch_size(fitting as usize).build().map_err(|e| damaged(path, &e))?;
    let mut first = 1;
    for batch in reader {
        let batch = batch.map_err(|e| damaged(path, &e))?;
        let count = batch.num_rows() as u64;
        let share = (u128::from(size) * u128::from(count) / u128::from(rows)) as u64;
        if !emit(Chunk { rows: Rows::Batch { first, batch }, bytes: share })? {
            break;
        }
        first += count;
    }
    Ok(Ended { columns: None, bytes: size, sha256 })
}

/// Returns the type at `path`: that of the column with this name, or else that of a field within the structs that the
/// path names, as in `a.b`.
pub fn field_type<'a>(fields: &'a Fields, path: &str) -> Option<&'a DataType> {
    if let Some((_, field)) = fields.find(path) {
        return Some(field.data_type());
    }
    path.match_indices('.').find_map(|(dot, _)| match fields.find(path.get(..dot)?)?.1.data_type() {
        DataType::Struct(inner) => field_type(inner, path.get(dot + 1..)?),
        _ => None,
    })
}

/// Returns the column at `path`, found in the same way as by [`field_type`], and the rows that are null because a
/// struct around the column is null.
fn column(columns: &StructArray, path: &str) -> Option<(ArrayRef, Option<NullBuffer>)> {
    let nulls = columns.nulls();
    if let Some(found) = columns.column_by_name(path) {
        return Some((Arc::clone(found), nulls.cloned()));
    }
    path.match_indices('.').find_map(|(dot, _)| {
        let outer = columns.column_by_name(path.get(..dot)?)?.as_struct_opt()?;
        let (found, inner_nulls) = column(outer, path.get(dot + 1..)?)?;
        Some((found, NullBuffer::union(nulls, inner_nulls.as_ref())))
    })
}

/// Tells whether a column of this type can hold texts. Binary types count as text, because older writers leave out the
/// annotation that marks bytes as text.
pub fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_text(values),
        DataType::RunEndEncoded(_, values) => is_text(values.data_type()),
        // A column of this type holds only nulls.
        DataType::Null => true,
        _ => is_string(kind) || is_binary(kind),
    }
}

fn is_string(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_))
}

/// Returns the text of each row of a batch, or the problem of the row.
///
/// # Errors
/// Fails if the batch has no text column at `path`.
pub fn texts(batch: &RecordBatch, path: &str) -> Result<Vec<Result<String, BadRecord>>, TableError> {
    let (array, nulls) =
        column(&StructArray::from(batch.clone()), path).ok_or_else(|| TableError("has lost its column".to_owned()))?;
    let plain = match array.data_type() {
        DataType::Dictionary(_, values) => arrow_cast::cast(&array, values),
        DataType::RunEndEncoded(_, values) => arrow_cast::cast(&array, values.data_type()),
        _ => Ok(Arc::clone(&array)),
    };
    let plain = plain.map_err(failed)?;
    let bytes: Vec<Option<&[u8]>> = match plain.data_type() {
        DataType::Utf8 => plain.as_string::<i32>().iter().map(|text| text.map(str::as_bytes)).collect(),
        DataType::LargeUtf8 => plain.as_string::<i64>().iter().map(|text| text.map(str::as_bytes)).collect(),
        DataType::Utf8View => plain.as_string_view().iter().map(|text| text.map(str::as_bytes)).collect(),
        DataType::Binary => plain.as_binary::<i32>().iter().collect(),
        DataType::LargeBinary => plain.as_binary::<i64>().iter().collect(),
        DataType::BinaryView => plain.as_binary_view().iter().collect(),
        DataType::FixedSizeBinary(_) => plain.as_fixed_size_binary().iter().collect(),
        DataType::Null => vec![None; plain.len()],
        other => return Err(TableError(format!("has {other} in the column {path:?}, not text"))),
    };
    let is_null = |row: usize| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
    let text = |(row, bytes): (usize, Option<&[u8]>)| match bytes.filter(|_| !is_null(row)) {
        None => Err(BadRecord::new("has no text")),
        Some(bytes) if bytes.len() > MAX_LINE => {
            Err(BadRecord::new(format!("has a text that is longer than {} MiB", MAX_LINE >> 20)))
        }
        Some(bytes) => {
            let problem = |e| BadRecord::new(format!("has bytes that are not UTF-8: {e}"));
            str::from_utf8(bytes).map(str::to_owned).map_err(problem)
        }
    };
    Ok(bytes.into_iter().enumerate().map(text).collect())
}

/// Returns the rows of a batch as JSON lines.
///
/// # Errors
/// Fails if JSON cannot represent a column or a value.
pub fn json_lines(batch: &RecordBatch) -> Result<Vec<u8>, TableError> {
    let columns = batch.schema_ref().fields().iter().zip(batch.columns()).map(|(field, column)| {
        if is_uuid(field) {
            return Ok((field.name(), uuids(column)));
        }
        let kind = with_string_keys(column.data_type());
        let column = if kind == *column.data_type() { Arc::clone(column) } else { cast_strictly(column, &kind)? };
        Ok((field.name(), column))
    });
    let columns = columns.collect::<Result<Vec<_>, TableError>>()?;
    let fields: Vec<_> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let arrays: Vec<ArrayRef> = columns.into_iter().map(|(_, column)| column).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let rows = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options);
    let rows = rows.map_err(failed)?;
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(&rows).and_then(|()| writer.finish()).map_err(failed)?;
    let json = writer.into_inner();
    // The writer writes this text in place of a time that is out of range. A record may contain the same text, so the
    // time columns are checked as well.
    if memchr::memmem::find(&json, b"\"ERROR: ").is_some() {
        for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
            if field.data_type().is_temporal() {
                cast_strictly(column, &DataType::Utf8)
                    .map_err(|e| TableError(format!("has a time in {:?} that cannot be written: {e}", field.name())))?;
            }
        }
    }
    Ok(json)
}

fn is_uuid(field: &Field) -> bool {
    field.extension_type_name() == Some("arrow.uuid") && *field.data_type() == DataType::FixedSizeBinary(16)
}

/// Formats a column of UUIDs in the usual form: `00112233-4455-6677-8899-aabbccddeeff`.
fn uuids(column: &ArrayRef) -> ArrayRef {
    let text = |bytes: &[u8]| {
        let mut text = String::with_capacity(36);
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text += &format!("{byte:02x}");
        }
        text
    };
    Arc::new(column.as_fixed_size_binary().iter().map(|bytes| bytes.map(text)).collect::<StringArray>())
}

/// Returns the same type with strings as the keys of all maps, because JSON has no other keys.
fn with_string_keys(kind: &DataType) -> DataType {
    let inner = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(with_string_keys(field.data_type())));
    match kind {
        DataType::Map(entries, sorted) => match entries.data_type() {
            DataType::Struct(fields) => {
                let fields: Fields = fields
                    .iter()
                    .enumerate()
                    .map(|(at, field)| match at {
                        0 if !is_string(field.data_type()) => {
                            Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8))
                        }
                        _ => inner(field),
                    })
                    .collect();
                let entries = entries.as_ref().clone().with_data_type(DataType::Struct(fields));
                DataType::Map(Arc::new(entries), *sorted)
            }
            _ => kind.clone(),
        },
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        DataType::List(item) => DataType::List(inner(item)),
        DataType::LargeList(item) => DataType::LargeList(inner(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(inner(item), *size),
        _ => kind.clone(),
    }
}

/// Casts a column to the type `kind`. Fails if a value does not fit into the type.
fn cast_strictly(column: &ArrayRef, kind: &DataType) -> Result<ArrayRef, TableError> {
    let strict = arrow_cast::CastOptions { safe: false, ..arrow_cast::CastOptions::default() };
    arrow_cast::cast_with_options(column, kind, &strict).map_err(failed)
}

/// Returns the columns of a file that joins files with the columns `a` and `b`. The column `text` becomes UTF-8,
/// whatever its types in `a` and `b` are.
///
/// # Errors
/// Fails if a column is missing from one of the two, or if its two types have no common type.
pub fn common(a: &Schema, b: &Schema, text: &str) -> Result<SchemaRef, TableError> {
    let missing = |from: &Schema, names: &Schema| {
        names.fields().iter().map(|field| field.name().clone()).find(|name| from.field_with_name(name).is_err())
    };
    if let Some(name) = missing(a, b) {
        return Err(TableError(format!("has a column {name:?} that the inputs before it have not")));
    }
    if let Some(name) = missing(b, a) {
        return Err(TableError(format!("has no column {name:?}, which the inputs before it have")));
    }
    let fields = a.fields().iter().map(|field| {
        let other = b.field_with_name(field.name()).map_err(failed)?;
        let (a, b) = (field.data_type(), other.data_type());
        if field.name() == text && a != b && is_text(a) && is_text(b) {
            return Ok(Arc::new(field.as_ref().clone().with_data_type(DataType::LargeUtf8).with_nullable(true)));
        }
        common_field(field, other).ok_or_else(|| {
            let (name, kind, before) = (field.name(), other.data_type(), field.data_type());
            TableError(format!("has {kind} in the column {name:?}, and the inputs before it have {before}"))
        })
    });
    let fields = fields.collect::<Result<Vec<FieldRef>, TableError>>()?;
    Ok(Arc::new(Schema::new_with_metadata(fields, a.metadata().clone())))
}

fn common_field(a: &Field, b: &Field) -> Option<FieldRef> {
    let kind = common_type(a.data_type(), b.data_type())?;
    let nullable = a.is_nullable() || b.is_nullable();
    Some(Arc::new(a.clone().with_data_type(kind).with_nullable(nullable)))
}

/// Returns the type to which the values of both types can be cast without loss.
fn common_type(a: &DataType, b: &DataType) -> Option<DataType> {
    let plain = |kind: &DataType| match kind {
        DataType::Dictionary(_, values) => values.as_ref().clone(),
        DataType::RunEndEncoded(_, values) => values.data_type().clone(),
        kind => kind.clone(),
    };
    match (a, b) {
        (a, b) if a == b => return Some(a.clone()),
        // pandas writes a column of type Null if it found no value in the column.
        (DataType::Null, kind) | (kind, DataType::Null) => return Some(kind.clone()),
        (DataType::Struct(a), DataType::Struct(b)) => {
            let same_names = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.name() == b.name());
            let fields = a.iter().zip(b).map(|(a, b)| common_field(a, b)).collect::<Option<Vec<_>>>()?;
            return same_names.then(|| DataType::Struct(fields.into()));
        }
        (DataType::List(a), DataType::List(b)) => return common_field(a, b).map(DataType::List),
        (DataType::List(a) | DataType::LargeList(a), DataType::List(b) | DataType::LargeList(b)) => {
            return common_field(a, b).map(DataType::LargeList);
        }
        _ => {}
    }
    let (a, b) = (plain(a), plain(b));
    let is_large = |kind: &DataType| matches!(kind, DataType::LargeUtf8 | DataType::LargeBinary);
    match (&a, &b) {
        (a, b) if a == b => Some(a.clone()),
        (a, b) if is_string(a) && is_string(b) => {
            Some(if is_large(a) || is_large(b) { DataType::LargeUtf8 } else { DataType::Utf8 })
        }
        (a, b) if is_binary(a) && is_binary(b) => {
            Some(if is_large(a) || is_large(b) { DataType::LargeBinary } else { DataType::Binary })
        }
        (a, b) if a.is_integer() && b.is_integer() => wider(a, b),
        _ => None,
    }
}

/// Returns the integer type that holds the values of both types.
fn wider(a: &DataType, b: &DataType) -> Option<DataType> {
    let bits = |kind: &DataType| kind.primitive_width().unwrap_or(8);
    match (a.is_signed_integer(), b.is_signed_integer()) {
        (a_signed, b_signed) if a_signed == b_signed => Some(if bits(a) > bits(b) { a.clone() } else { b.clone() }),
        (true, _) if bits(a) > bits(b) => Some(a.clone()),
        (_, true) if bits(b) > bits(a) => Some(b.clone()),
        _ if bits(a).max(bits(b)) < 8 => Some(DataType::Int64),
        _ => None,
    }
}

/// Returns the rows of `batch` with the columns of `schema`. [`common`] must have built `schema` from the columns of
/// the batch and of other files.
///
/// # Errors
/// Returns the errors of Arrow.
pub fn cast(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, TableError> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let columns = schema.fields().iter().map(|field| {
        let column = batch.column_by_name(field.name());
        let column = column.ok_or_else(|| TableError(format!("has no column {:?}", field.name())))?;
        cast_strictly(column, field.data_type())
    });
    let columns = columns.collect::<Result<Vec<_>, TableError>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "a function for map_err")]
fn failed(error: arrow_schema::ArrowError) -> TableError {
    TableError(error.to_string())
}

#[cfg(test)]
mod tests {
    use arrow_array::types::Int32Type;
    use arrow_array::{BinaryArray, DictionaryArray, StringArray};

    use super::*;

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap()
    }

    #[test]
    fn texts_are_read_from_dictionaries_binary_and_structs() {
        let dictionary: DictionaryArray<Int32Type> = [Some("a"), None, Some("a")].into_iter().collect();
        let binary = BinaryArray::from_iter([Some(&b"b"[..]), Some(b"\xff"), None]);
        let inner: ArrayRef = Arc::new(StringArray::from_iter([Some("x"), Some("hidden"), None]));
        let field = Arc::new(Field::new("text", DataType::Utf8, true));
        let outer = StructArray::new(vec![field].into(), vec![inner], Some(vec![true, false, true].into()));
        let own: ArrayRef = Arc::new(StringArray::from(vec!["1", "2", "3"]));
        let rows = batch(vec![
            ("d", Arc::new(dictionary)),
            ("b", Arc::new(binary)),
            ("doc", Arc::new(outer)),
            ("doc.own", own),
        ]);
        let found = |path: &str| texts(&rows, path).unwrap().into_iter().map(Result::ok).collect::<Vec<_>>();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(found("d"), [some("a"), None, some("a")]);
        assert_eq!(found("b"), [some("b"), None, None]);
        assert_eq!(found("doc.text"), [some("x"), None, None]);
        assert_eq!(found("doc.own"), [some("1"), some("2"), some("3")]);
        assert!(texts(&rows, "b").unwrap()[1].as_ref().unwrap_err().to_string().contains("not UTF-8"));
        assert!(texts(&rows, "doc").is_err() && texts(&rows, "doc.none").is_err());
    }

    #[test]
    fn types_of_several_files_meet_where_nothing_is_lost() {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        for (a, b, expected) in [
            (DataType::Utf8, DataType::LargeUtf8, Some(DataType::LargeUtf8)),
            (DataType::Utf8View, DataType::Utf8, Some(DataType::Utf8)),
            (dictionary.clone(), DataType::Utf8, Some(DataType::Utf8)),
            (dictionary.clone(), dictionary.clone(), Some(dictionary)),
            (DataType::Null, DataType::Float64, Some(DataType::Float64)),
            (DataType::Int32, DataType::Int64, Some(DataType::Int64)),
            (DataType::UInt32, DataType::Int16, Some(DataType::Int64)),
            (DataType::UInt64, DataType::Int64, None),
            (DataType::Int64, DataType::Float64, None),
            (DataType::Utf8, DataType::Int64, None),
        ] {
            assert_eq!(common_type(&a, &b), expected, "{a} and {b}");
            assert_eq!(common_type(&b, &a), expected, "{b} and {a}");
        }
    }
}
