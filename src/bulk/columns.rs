//! JSON objects as columns: for Parquet, which has to know a column's type before its first row.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use serde_json::{Map, Value};

/// The columns of all records, found in the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Columns {
    /// In the order in which they were found.
    columns: Vec<(String, Kind)>,
    /// The place of each by its name.
    places: HashMap<String, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Null so far.
    Unknown,
    Boolean,
    Integer,
    Number,
    String,
    /// Lists, objects, and columns of several types: their JSON, as a string.
    Json,
}

impl Columns {
    pub fn infer<'a>(records: impl Iterator<Item = &'a Map<String, Value>>) -> Self {
        let mut found = Self::default();
        for (name, value) in records.flatten() {
            let kind = Kind::of(value);
            match found.places.get(name).and_then(|&place| found.columns.get_mut(place)) {
                Some((_, known)) => *known = known.or(kind),
                None => {
                    found.places.insert(name.clone(), found.columns.len());
                    found.columns.push((name.clone(), kind));
                }
            }
        }
        found
    }

    /// What keeps a later record out of these columns.
    pub fn misfit(&self, record: &Map<String, Value>) -> Option<String> {
        record.iter().find_map(|(name, value)| {
            let known = self.places.get(name).and_then(|&place| self.columns.get(place));
            match known {
                Some((_, kind)) if kind.or(Kind::of(value)) == *kind => None,
                Some((_, kind)) => {
                    Some(format!("has {value} in {name:?}, which is {} in the first records", kind.name()))
                }
                None => Some(format!("has a field {name:?} that the first records have not")),
            }
        })
    }

    /// Records that fit.
    ///
    /// # Errors
    /// Those of Arrow.
    pub fn batch(&self, records: &[Map<String, Value>]) -> Result<RecordBatch, String> {
        let mut fields = Vec::new();
        let mut arrays: Vec<ArrayRef> = Vec::new();
        for (name, kind) in &self.columns {
            let values = records.iter().map(|record| record.get(name).filter(|value| !value.is_null()));
            let array: ArrayRef = match kind {
                Kind::Boolean => Arc::new(values.map(|v| v?.as_bool()).collect::<BooleanArray>()),
                Kind::Integer => Arc::new(values.map(|v| v?.as_i64()).collect::<Int64Array>()),
                Kind::Number => Arc::new(values.map(|v| v?.as_f64()).collect::<Float64Array>()),
                Kind::String => Arc::new(values.map(|v| v?.as_str()).collect::<StringArray>()),
                Kind::Json | Kind::Unknown => {
                    Arc::new(values.map(|v| v.map(Value::to_string)).collect::<StringArray>())
                }
            };
            fields.push(Field::new(name, array.data_type().clone(), true));
            arrays.push(array);
        }
        let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(records.len()));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options).map_err(|e| e.to_string())
    }
}

impl Kind {
    fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Unknown,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.is_i64() => Self::Integer,
            Value::Number(_) => Self::Number,
            Value::String(_) => Self::String,
            Value::Array(_) | Value::Object(_) => Self::Json,
        }
    }

    /// The kind that holds both.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (a, Self::Unknown) | (Self::Unknown, a) => a,
            (Self::Integer, Self::Number) | (Self::Number, Self::Integer) => Self::Number,
            _ => Self::Json,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "null",
            Self::Boolean => "true or false",
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Json => "JSON",
        }
    }
}

/// The type of a text column, which may be any of Arrow's strings.
pub fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn kinds_widen_while_they_are_inferred_and_stand_after_that() {
        let first = [
            map(r#"{"id": 1, "x": 1, "tags": ["a"], "ok": null}"#),
            map(r#"{"id": 2, "x": 1.5, "tags": "b", "ok": true, "text": "t"}"#),
        ];
        let columns = Columns::infer(first.iter());
        assert_eq!(columns.misfit(&map(r#"{"id": 3, "x": 2, "tags": 7, "text": null}"#)), None);
        assert_eq!(
            columns.misfit(&map(r#"{"id": "x"}"#)).unwrap(),
            r#"has "x" in "id", which is an integer in the first records"#
        );
        assert!(columns.misfit(&map(r#"{"id": 1.5}"#)).is_some());
        assert!(columns.misfit(&map(r#"{"new": 1}"#)).unwrap().contains("\"new\""));
        let batch = columns.batch(&first).unwrap();
        let column = |name: &str| batch.column_by_name(name).unwrap().clone();
        let tags = column("tags");
        let tags = tags.as_any().downcast_ref::<StringArray>().unwrap();
        assert_eq!((tags.value(0), tags.value(1)), (r#"["a"]"#, r#""b""#));
        assert_eq!(column("x").data_type(), &DataType::Float64);
        assert_eq!((column("ok").null_count(), column("text").null_count()), (1, 1));
    }
}
