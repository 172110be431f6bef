//! Flags whose values are the names of the variants of a library's type.

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// Returns a parser for the values in `all`, which are written by their names. The help of the flag lists the names.
pub fn choice<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(all.iter().map(|&value| name(value)));
    names.try_map(move |text| all.iter().copied().find(|&value| name(value) == text).ok_or("this is not a known name"))
}
