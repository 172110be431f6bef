//! Converts JSON objects to columns for Parquet, which needs the type of a column before the first row is written.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{Field, Schema};

use super::error::UnwritableRows;
use layer0_files::json::{kept_number, nulled};
use layer0_records::BadRecord;
use layer0_records::json::{Object, shortened};

/// One value of a record. A number is kept as text, so that no digits are lost.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Boolean(bool),
    Number(String),
    /// NaN or an infinity.
    NotFinite(f64),
    String(String),
    /// The JSON of a list or an object.
    Json(String),
}

/// The values of a record by their names. Each name occurs once.
pub type Cells = HashMap<String, Cell>;

/// The columns of a run. They are inferred from the first records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Columns {
    /// The columns, in the order in which they were found.
    columns: Vec<(String, Type)>,
    /// The index of each column by its name.
    places: HashMap<String, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Boolean,
    /// A column of type Int64.
    Integer,
    /// A column of type UInt64.
    Unsigned,
    /// A column of type Float64.
    Number,
    String,
    /// A string column that holds the JSON of each value. It is used for lists, for objects, for numbers that no
    /// numeric type holds exactly, and for values of several types.
    Json,
}

/// The kinds of values that occurred in a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    boolean: bool,
    string: bool,
    json: bool,
    /// Whether any number occurred.
    number: bool,
    /// Whether these kinds of whole numbers occurred: numbers below zero, numbers that only UInt64 holds, and numbers
    /// that Float64 would round.
    negative: bool,
    unsigned: bool,
    inexact: bool,
    /// Whether a number occurred that has a fraction or an exponent, or that is not finite.
    fraction: bool,
    /// Whether a number occurred that every numeric type would round.
    long: bool,
}

impl Columns {
    /// Infers the columns from records, each given as its names in order and its values.
    pub fn infer<'a>(records: impl Iterator<Item = (&'a [String], &'a Cells)>) -> Self {
        let mut found: Vec<(String, Seen)> = Vec::new();
        let mut places = HashMap::new();
        for (names, cells) in records {
            for name in names {
                let Some(cell) = cells.get(name) else { continue };
                let place = *places.entry(name.clone()).or_insert(found.len());
                if place == found.len() {
                    found.push((name.clone(), Seen::default()));
                }
                if let Some((_, seen)) = found.get_mut(place) {
                    seen.add(cell);
                }
            }
        }
        Self { columns: found.into_iter().map(|(name, seen)| (name, seen.kind())).collect(), places }
    }

    /// Returns string columns with these names. They are used for inputs that have no records.
    pub fn of_strings(names: &[String]) -> Self {
        Self {
            columns: names.iter().map(|name| (name.clone(), Type::String)).collect(),
            places: names.iter().cloned().zip(0..).collect(),
        }
    }

    /// Returns the reason why a later record does not fit into these columns, or `None` if it fits.
    pub fn misfit(&self, cells: &Cells) -> Option<BadRecord> {
        let mut problems: Vec<(&String, String)> = cells
            .iter()
            .filter_map(|(name, cell)| {
                let known = self.places.get(name).and_then(|&place| self.columns.get(place));
                let Some((_, kind)) = known else {
                    return Some((name, format!("has a field {name:?} that the first records have not")));
                };
                (!kind.holds(cell)).then(|| {
                    let (cell, kind) = (cell.json(), kind.name());
                    (name, format!("has {} in {name:?}, which is {kind} in the first records", shortened(&cell)))
                })
            })
            .collect();
        problems.sort();
        problems.into_iter().next().map(|(_, problem)| BadRecord::new(problem))
    }

    /// Builds a batch from records that fit into the columns.
    ///
    /// # Errors
    /// Returns the errors of Arrow.
    pub fn batch(&self, records: &[Cells]) -> Result<RecordBatch, UnwritableRows> {
        let mut fields = Vec::new();
        let mut arrays: Vec<ArrayRef> = Vec::new();
        for (name, kind) in &self.columns {
            let cells = records.iter().map(|cells| cells.get(name));
            let array: ArrayRef = match kind {
                Type::Boolean => Arc::new(cells.map(|cell| cell?.boolean()).collect::<BooleanArray>()),
                Type::Integer => Arc::new(cells.map(|cell| cell?.number()?.parse().ok()).collect::<Int64Array>()),
                Type::Unsigned => Arc::new(cells.map(|cell| cell?.number()?.parse().ok()).collect::<UInt64Array>()),
                Type::Number => Arc::new(cells.map(|cell| cell?.float()).collect::<Float64Array>()),
                Type::String => Arc::new(cells.map(|cell| cell?.string()).collect::<StringArray>()),
                Type::Json => {
                    let text = |cell: Option<&Cell>| {
                        cell.filter(|cell| !matches!(cell, Cell::Null | Cell::NotFinite(_))).map(Cell::json)
                    };
                    Arc::new(cells.map(text).collect::<StringArray>())
                }
            };
            fields.push(Field::new(name, array.data_type().clone(), true));
            arrays.push(array);
        }
        let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(records.len()));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options);
        batch.map_err(|e| UnwritableRows(e.to_string()))
    }
}

/// Returns the names of the fields of a record in order, and the values.
///
/// # Errors
/// Fails if a string cannot be read. The message continues a sentence that begins with "the record".
pub fn cells(object: &Object<'_>) -> Result<(Vec<String>, Cells), BadRecord> {
    let mut names = Vec::new();
    let mut cells = Cells::new();
    for (name, value) in object.iter() {
        let text = value.get();
        let cell = match text.as_bytes().first() {
            Some(b'n') => Cell::Null,
            Some(b't' | b'f') => Cell::Boolean(text == "true"),
            Some(b'"') => {
                let problem = |e| BadRecord::new(format!("is no JSON object: {e}"));
                let string: String = serde_json::from_str(text).map_err(problem)?;
                kept_number(&string).map_or(Cell::String(string), Cell::NotFinite)
            }
            // Within lists and objects, a number that is not finite can only be written as null.
            Some(b'[' | b'{') => Cell::Json(nulled(text)),
            _ => Cell::Number(text.to_owned()),
        };
        if cells.insert(name.to_owned(), cell).is_none() {
            names.push(name.to_owned());
        }
    }
    Ok((names, cells))
}

impl Cell {
    fn boolean(&self) -> Option<bool> {
        if let Self::Boolean(value) = self { Some(*value) } else { None }
    }

    fn number(&self) -> Option<&str> {
        if let Self::Number(digits) = self { Some(digits) } else { None }
    }

    fn string(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Self::NotFinite(number) => Some(*number),
            _ => self.number()?.parse().ok(),
        }
    }

    fn json(&self) -> String {
        match self {
            Self::Null | Self::NotFinite(_) => "null".to_owned(),
            Self::Boolean(value) => value.to_string(),
            Self::Number(text) | Self::Json(text) => text.clone(),
            Self::String(text) => serde_json::Value::String(text.clone()).to_string(),
        }
    }
}

impl Seen {
    fn add(&mut self, cell: &Cell) {
        match cell {
            Cell::Null => {}
            Cell::Boolean(_) => self.boolean = true,
            Cell::String(_) => self.string = true,
            Cell::Json(_) => self.json = true,
            Cell::NotFinite(_) => (self.number, self.fraction) = (true, true),
            Cell::Number(digits) => {
                self.number = true;
                let is_exact = is_exact(digits);
                if !is_whole(digits) {
                    self.fraction = true;
                    self.long |= !is_exact;
                    return;
                }
                self.inexact |= !is_exact;
                match (digits.parse::<i64>(), digits.parse::<u64>()) {
                    (Ok(number), _) => self.negative |= number < 0,
                    (_, Ok(_)) => self.unsigned = true,
                    _ => self.long = true,
                }
            }
        }
    }

    /// Returns the type that holds all values that occurred.
    fn kind(self) -> Type {
        match (self.boolean, self.string, self.number, self.json) {
            (true, false, false, false) => Type::Boolean,
            (false, true, false, false) => Type::String,
            (false, false, true, false) if self.long => Type::Json,
            (false, false, true, false) if self.fraction && !self.inexact => Type::Number,
            (false, false, true, false) if self.fraction || self.negative && self.unsigned => Type::Json,
            (false, false, true, false) if self.unsigned => Type::Unsigned,
            (false, false, true, false) => Type::Integer,
            // Only null occurred so far, so a later record may have a value of any type.
            _ => Type::Json,
        }
    }
}

impl Type {
    fn holds(self, cell: &Cell) -> bool {
        match (self, cell) {
            (Self::Json, _) | (_, Cell::Null) | (Self::Number, Cell::NotFinite(_)) => true,
            (Self::Boolean, Cell::Boolean(_)) | (Self::String, Cell::String(_)) => true,
            (Self::Integer, Cell::Number(digits)) => is_whole(digits) && digits.parse::<i64>().is_ok(),
            (Self::Unsigned, Cell::Number(digits)) => is_whole(digits) && digits.parse::<u64>().is_ok(),
            (Self::Number, Cell::Number(digits)) => is_exact(digits),
            _ => false,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Boolean => "true or false",
            Self::Integer => "an integer of 64 bits",
            Self::Unsigned => "an unsigned integer of 64 bits",
            Self::Number => "a number of 64 bits",
            Self::String => "a string",
            Self::Json => "JSON",
        }
    }
}

fn is_whole(digits: &str) -> bool {
    !digits.contains(['.', 'e', 'E'])
}

/// Tells whether the f64 nearest to `text` preserves all digits of `text`.
fn is_exact(text: &str) -> bool {
    /// Every f64 with an exponent within the bounds below preserves this many significant digits.
    const SAFE_DIGITS: usize = 15;
    const SAFE_EXPONENT: i64 = 290;
    /// The exact decimal expansion of an f64 has fewer significant digits than this.
    const MOST_DIGITS: usize = 800;
    let Some((digits, exponent)) = significant(text) else { return false };
    if digits.len() <= SAFE_DIGITS && exponent.abs() < SAFE_EXPONENT {
        return true;
    }
    let Some(number) = text.parse::<f64>().ok().filter(|number| number.is_finite()) else { return false };
    digits.len() <= MOST_DIGITS && significant(&format!("{number:.*e}", digits.len() - 1)) == Some((digits, exponent))
}

/// Returns the digits of a number, from the first to the last nonzero one, and the power of ten of the first digit.
fn significant(text: &str) -> Option<(String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let whole = whole.trim_start_matches('-').trim_start_matches('0');
    let digits = format!("{whole}{fraction}");
    let leading = digits.len() - digits.trim_start_matches('0').len();
    let digits = digits.trim_matches('0').to_owned();
    if digits.is_empty() {
        return Some((digits, 0));
    }
    let exponent: i64 = exponent.parse().ok()?;
    let place = i64::try_from(whole.len()).ok()? - i64::try_from(leading).ok()?;
    Some((digits, exponent.checked_add(place)?))
}

#[cfg(test)]
mod tests {
    use arrow_schema::DataType;

    use super::*;
    use layer0_files::json::NonFinite;
    use layer0_records::json::strict_object;

    fn record(json: &str) -> (Vec<String>, Cells) {
        let strict = strict_object(json.as_bytes(), NonFinite::Kept).unwrap();
        cells(&Object::parse(&strict).unwrap()).unwrap()
    }

    fn columns(records: &[(Vec<String>, Cells)]) -> Columns {
        Columns::infer(records.iter().map(|(names, cells)| (names.as_slice(), cells)))
    }

    /// Returns the type of the column that these values make, and the values as they are written.
    fn column(values: &[&str]) -> (DataType, String) {
        let records: Vec<_> = values.iter().map(|value| record(&format!("{{\"x\":{value}}}"))).collect();
        let columns = columns(&records);
        let cells: Vec<Cells> = records.into_iter().map(|(_, cells)| cells).collect();
        assert!(cells.iter().all(|cells| columns.misfit(cells).is_none()), "{values:?}");
        let batch = columns.batch(&cells).unwrap();
        let array = batch.column(0);
        let text = |row| match arrow_array::Array::is_null(array, row) {
            true => "-".to_owned(),
            false => arrow_cast::display::array_value_to_string(array, row).unwrap(),
        };
        (array.data_type().clone(), (0..values.len()).map(text).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn whole_numbers_keep_their_digits() {
        for (values, kind, expected) in [
            (&["1", "null", "-9223372036854775808"][..], DataType::Int64, "1 - -9223372036854775808"),
            (&["18446744073709551615", "0"], DataType::UInt64, "18446744073709551615 0"),
            (&["18446744073709551615", "-1"], DataType::Utf8, "18446744073709551615 -1"),
            (&["18446744073709551616", "1"], DataType::Utf8, "18446744073709551616 1"),
            (&["9007199254740992", "0.5"], DataType::Float64, "9007199254740992.0 0.5"),
            (&["9007199254740993", "0.5"], DataType::Utf8, "9007199254740993 0.5"),
            (&["9007199254740993.0"], DataType::Utf8, "9007199254740993.0"),
            (&["1e999", "1"], DataType::Utf8, "1e999 1"),
            (
                &["0.1", "1e-7", "-0.0", "1.7976931348623157e308"],
                DataType::Float64,
                "0.1 1e-7 -0.0 1.7976931348623157e308",
            ),
            // printf("%.17g") and printf("%.30f") write these digits for 0.1.
            (&["0.10000000000000001", "0.100000000000000005551115123126"], DataType::Float64, "0.1 0.1"),
            (&["12345678901234567.89"], DataType::Utf8, "12345678901234567.89"),
            (&["NaN", "1", "-Infinity"], DataType::Float64, "NaN 1.0 -inf"),
            (&["null", "NaN", "\"NaN\""], DataType::Utf8, "- - \"NaN\""),
            (&["null", "null"], DataType::Utf8, "- -"),
            (&["true", "null"], DataType::Boolean, "true -"),
            (&["[NaN,{\"a\":-Infinity}]"], DataType::Utf8, "[null,{\"a\":null}]"),
            (&["[1.10,  {}]", "1.10"], DataType::Utf8, "[1.10,  {}] 1.10"),
        ] {
            assert_eq!(column(values), (kind, expected.to_owned()), "{values:?}");
        }
    }

    #[test]
    fn a_later_record_fits_or_is_named() {
        let first = [
            record(r#"{"id": 1, "x": 1, "tags": ["a"], "ok": null, "u": 18446744073709551615}"#),
            record(r#"{"id": 2, "x": 1.5, "tags": "b", "text": "t", "id": 3}"#),
        ];
        let columns = columns(&first);
        let misfit = |json: &str| columns.misfit(&record(json).1);
        assert_eq!(misfit(r#"{"id": 3, "x": 2, "tags": 7, "text": null, "ok": 5, "u": 0}"#), None);
        assert_eq!(
            misfit(r#"{"id": "x"}"#).unwrap().to_string(),
            r#"has "x" in "id", which is an integer of 64 bits in the first records"#
        );
        for json in [
            r#"{"id": 1.5}"#,
            r#"{"id": 9223372036854775808}"#,
            r#"{"u": -1}"#,
            r#"{"x": 9007199254740993}"#,
            r#"{"id": NaN}"#,
            r#"{"text": 5}"#,
            r#"{"new": 1}"#,
        ] {
            assert!(misfit(json).is_some(), "{json}");
        }
        let (_, cells) = first.into_iter().next_back().unwrap();
        let batch = columns.batch(&[cells]).unwrap();
        let names: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["id", "x", "tags", "ok", "u", "text"]);
    }
}
