//! Reads the texts, or the token IDs, that Python passes.

use layer0::Input;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

/// An input in memory that belongs to Python.
pub enum Text<'a> {
    Text(&'a str),
    TokenIds(Vec<u32>),
}

impl Text<'_> {
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::TokenIds(ids) => size_of_val(ids.as_slice()),
        }
    }

    pub fn to_input(&self) -> Input {
        match self {
            Self::Text(text) => Input::Text((*text).to_owned()),
            Self::TokenIds(ids) => Input::TokenIds(ids.clone()),
        }
    }

    /// Returns the text, which is empty for token IDs.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::TokenIds(_) => "",
        }
    }
}

/// Returns the items of a sequence. They keep the texts alive, even if another thread changes the sequence.
///
/// # Errors
/// Returns a `TypeError` if the object cannot be iterated.
pub fn items<'py>(texts: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyAny>>> {
    texts.try_iter()?.collect()
}

/// Returns the texts of `items`, without copying them.
///
/// # Errors
/// Returns a `TypeError` if an item is neither a `str` nor a sequence of token IDs, and a `ValueError` if a `str` has lone surrogates, which
/// UTF-8 cannot express.
pub fn texts<'a>(items: &'a [Bound<'_, PyAny>]) -> PyResult<Vec<Text<'a>>> {
    let text = |(index, item): (usize, &'a Bound<'_, PyAny>)| {
        if let Ok(text) = item.cast::<PyString>() {
            let invalid =
                |_| PyValueError::new_err(format!("input {index} contains a lone surrogate, which is no Unicode text"));
            return text.to_str().map(Text::Text).map_err(invalid);
        }
        item.extract().map(Text::TokenIds).map_err(|_| {
            let found = item.get_type().name().map_or_else(|_| "another type".to_owned(), |name| name.to_string());
            PyTypeError::new_err(format!("input {index} must be a str or a list of token IDs, not {found}"))
        })
    };
    items.iter().enumerate().map(text).collect()
}
