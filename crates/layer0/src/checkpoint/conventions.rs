//! How the tokens of a text become its vector, as the checkpoint or the library that saves its kind of checkpoint says.

use std::path::Path;

use super::Overrides;
use crate::error::LoadError;

/// How the checkpoint, or the library that saves this kind of checkpoint, treats a text. The user's settings take precedence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conventions {
    /// Whether the special tokens of the tokenizer's template are pooled.
    pub special_tokens: bool,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// A token that is never pooled. Model2Vec leaves out the unknown token.
    pub left_out: Option<u32>,
    /// The exponent of token counts, from 0 to 1. A token that occurs `n` times in a text weighs `n` to this power in the mean of the text's
    /// tokens. 1 is the plain mean.
    pub token_count_exponent: f64,
    /// The number of columns of the lexical tail, which follow the columns of the table. 0 means that there is no tail.
    pub lexical_dimensions: usize,
    /// The length of a token's tail, as a multiple of the length of the token's vector.
    pub lexical_weight: f64,
}

impl Conventions {
    /// The conventions of LLM checkpoints: the tokens are those of the transformers library, and vectors have length 1
    /// as OpenAI's have.
    pub const TRANSFORMERS: Self = Self {
        special_tokens: true,
        normalize: true,
        left_out: None,
        token_count_exponent: 1.0,
        lexical_dimensions: 0,
        lexical_weight: 0.8,
    };
    /// The largest number of columns of the lexical tail.
    pub const MAX_LEXICAL_DIMENSIONS: usize = 65_536;
    /// The largest length of a token's tail.
    pub const MAX_LEXICAL_WEIGHT: f64 = 10.0;

    /// Returns the conventions with the values that the user sets. `path` is the path of the checkpoint for errors.
    ///
    /// # Errors
    /// Returns an error if a value is out of range.
    pub fn overridden(self, path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        let conventions = Self {
            token_count_exponent: overrides.token_count_exponent.unwrap_or(self.token_count_exponent),
            lexical_dimensions: overrides.lexical_dimensions.unwrap_or(self.lexical_dimensions),
            lexical_weight: overrides.lexical_weight.unwrap_or(self.lexical_weight),
            ..self
        };
        conventions.check(path)?;
        Ok(conventions)
    }

    /// Checks the numbers. `path` is the path of the file that holds them, or of the checkpoint.
    ///
    /// # Errors
    /// Returns an error if a number is out of range.
    pub(super) fn check(&self, path: &Path) -> Result<(), LoadError> {
        let Self { token_count_exponent: exponent, lexical_dimensions: columns, lexical_weight: weight, .. } = self;
        let wrong = |problem: String, expected: String| Err(LoadError::setting(path, problem).expected(expected));
        if !(0.0..=1.0).contains(exponent) {
            return wrong(
                format!("cannot have token_count_exponent = {exponent}"),
                "between 0 (every distinct token counts once) and 1 (every occurrence counts)".to_owned(),
            );
        }
        if *columns > Self::MAX_LEXICAL_DIMENSIONS {
            return wrong(
                format!("cannot have lexical_dimensions = {columns}"),
                format!("between 0 (no lexical tail) and {}", Self::MAX_LEXICAL_DIMENSIONS),
            );
        }
        if !(0.0..=Self::MAX_LEXICAL_WEIGHT).contains(weight) {
            return wrong(
                format!("cannot have lexical_weight = {weight}"),
                format!("between 0 and {}, such as 0.8", Self::MAX_LEXICAL_WEIGHT),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_named_with_their_range() {
        let path = Path::new("model");
        let none = Overrides::default();
        assert_eq!(Conventions::TRANSFORMERS.overridden(path, &none), Ok(Conventions::TRANSFORMERS));
        let of = |overrides: Overrides| {
            Conventions::TRANSFORMERS.overridden(path, &overrides).err().map_or_else(String::new, |e| e.to_string())
        };
        for exponent in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let error = of(Overrides { token_count_exponent: Some(exponent), ..none.clone() });
            assert!(error.contains("token_count_exponent") && error.contains("between 0"), "{error}");
        }
        for weight in [-0.1, 10.1, f64::NAN] {
            let error = of(Overrides { lexical_weight: Some(weight), ..none.clone() });
            assert!(error.contains("lexical_weight") && error.contains("between 0 and 10"), "{error}");
        }
        let error = of(Overrides { lexical_dimensions: Some(65_537), ..none.clone() });
        assert!(error.contains("lexical_dimensions = 65537") && error.contains("65536"), "{error}");
        let widest = Overrides { lexical_dimensions: Some(65_536), lexical_weight: Some(10.0), ..none };
        assert_eq!(of(widest), "");
    }
}
