//! Reads the settings of a model from keyword arguments.

use std::path::PathBuf;

use embedding_server::config::ModelConfig;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::de::DeserializeOwned;
use serde::de::value::{Error as WordError, StringDeserializer};

/// The settings of a model, as keyword arguments that are given and not `None`.
pub struct Arguments<'a, 'py>(pub &'a Bound<'py, PyDict>);

impl<'py> Arguments<'_, 'py> {
    fn value<T: for<'a> FromPyObject<'a, 'py>>(&self, name: &str) -> PyResult<Option<T>> {
        let Some(value) = self.0.get_item(name)?.filter(|value| !value.is_none()) else { return Ok(None) };
        value.extract().map(Some).map_err(|_| {
            let found = value.repr().map_or_else(|_| "the value".to_owned(), |text| text.to_string());
            PyValueError::new_err(format!("{name} cannot be {found}"))
        })
    }

    /// Returns a number that must not be 0.
    pub fn count(&self, name: &str) -> PyResult<Option<usize>> {
        match self.value(name)? {
            Some(0) => Err(PyValueError::new_err(format!("{name} cannot be 0"))),
            count => Ok(count),
        }
    }

    /// Returns a setting that is written as a string, such as one of several words.
    fn word<T: DeserializeOwned>(&self, name: &str) -> PyResult<Option<T>> {
        let word = self.value::<String>(name)?;
        let parsed = word.map(|word| T::deserialize(StringDeserializer::<WordError>::new(word))).transpose();
        parsed.map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
    }

    pub fn config(&self, path: PathBuf) -> PyResult<ModelConfig> {
        Ok(ModelConfig {
            dimensions: self.count("dimensions")?,
            normalize: self.value("normalize")?,
            special_tokens: self.value("special_tokens")?,
            token_input: self.word("token_input")?.unwrap_or_default(),
            empty_input: self.word("empty_input")?.unwrap_or_default(),
            max_input_tokens: self.count("max_input_tokens")?,
            expect_fingerprint: self.word("expect_fingerprint")?,
            device: self.word("device")?,
            device_min_tokens: self.value("device_min_tokens")?,
            memory: self.word("memory")?.unwrap_or_default(),
            tokenizer: self.value("tokenizer")?,
            config: self.value("config")?,
            norm: self.word("norm")?,
            norm_eps: self.value("norm_eps")?,
            embedding_scale: self.value("embedding_scale")?,
            token_count_exponent: self.value("token_count_exponent")?,
            lexical_dimensions: self.value("lexical_dimensions")?,
            lexical_weight: self.value("lexical_weight")?,
            embedding_tensor: self.value("embedding_tensor")?,
            norm_tensor: self.value("norm_tensor")?,
            ..ModelConfig::new(path.display().to_string(), path)
        })
    }
}
