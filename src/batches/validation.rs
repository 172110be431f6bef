//! Checks the lines of an input file before any of them is answered.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::lines::InputLine;
use crate::openai::BatchError;
use crate::openai::batch_line::{BatchLine, BatchLineError};

/// The largest number of errors that a batch reports.
const MAX_ERRORS: usize = 100;

/// The longest name of a model or ID that a message repeats, in characters.
const LONGEST: usize = 64;

/// What is known of a line without the other lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedLine {
    number: u64,
    request: Result<CheckedRequest, BatchError>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct CheckedRequest {
    custom_id: String,
    /// The beginning of the digest of the ID, which takes less memory than a long ID.
    digest: [u8; 16],
    model: Option<String>,
}

impl CheckedLine {
    /// Parses a line. `longest` is the limit on its length, for the error of a longer line.
    pub fn new(line: &InputLine, longest: usize) -> Self {
        let error = |code: &str, param: Option<&str>, message: String| BatchError {
            code: code.to_owned(),
            message,
            param: param.map(str::to_owned),
            line: Some(line.number),
        };
        let request = match line.content.as_deref().map(BatchLine::parse) {
            None => {
                let message =
                    format!("This line is longer than {longest} bytes, the limit of this server on one request.");
                Err(error("line_too_long", None, message))
            }
            Some(Err(problem)) => {
                let (code, param) = problem.code_and_field();
                let message = match &problem {
                    BatchLineError::NotARequest(_) => format!("This line {problem}."),
                    _ => format!("The request on this line {problem}."),
                };
                Err(error(code, param, message))
            }
            Some(Ok(request)) => {
                let digest = Sha256::digest(&request.custom_id);
                let digest = digest.first_chunk().copied().unwrap_or_default();
                let model = request.model();
                Ok(CheckedRequest { custom_id: shortened(&request.custom_id), digest, model })
            }
        };
        Self { number: line.number, request }
    }
}

/// The result of checking the lines of one file, in order.
#[derive(Debug, Default)]
pub struct Validation {
    ids: HashSet<[u8; 16]>,
    /// The model of the first request.
    model: Option<Option<String>>,
    count: u64,
    errors: Vec<BatchError>,
}

impl Validation {
    /// Adds the next line.
    pub fn add(&mut self, line: CheckedLine) {
        self.count += 1;
        let CheckedLine { number, request } = line;
        let request = match request {
            Ok(request) => request,
            Err(error) => return self.fail(error),
        };
        let error = |code: &str, param: &str, message: String| BatchError {
            code: code.to_owned(),
            message,
            param: Some(param.to_owned()),
            line: Some(number),
        };
        if !self.ids.insert(request.digest) {
            let message = format!("The custom_id {:?} of this line is that of an earlier line.", request.custom_id);
            self.fail(error("duplicate_custom_id", "custom_id", message));
        }
        let first = self.model.get_or_insert_with(|| request.model.clone());
        if *first != request.model {
            let named = |model: &Option<String>| match model {
                Some(model) => format!("the model {:?}", shortened(model)),
                None => "no model".to_owned(),
            };
            let message =
                format!("This line names {}, but the first line names {}.", named(&request.model), named(first));
            self.fail(error("mismatched_model", "body.model", message));
        }
    }

    /// Adds an error. Of many errors, the first are kept.
    pub fn fail(&mut self, error: BatchError) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    /// Returns the number of lines so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the model that all lines name, or `None` for the default model.
    pub fn model(&self) -> Option<&str> {
        self.model.as_ref().and_then(Option::as_deref)
    }

    /// Returns the errors that were found.
    pub fn into_errors(self) -> Vec<BatchError> {
        self.errors
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validate(lines: &[&str]) -> (Option<String>, Vec<(String, Option<u64>)>) {
        let mut validation = Validation::default();
        for (number, line) in (1..).zip(lines) {
            let content = (line.len() < 1000).then(|| line.as_bytes().to_vec());
            validation.add(CheckedLine::new(&InputLine { number, end: 0, content }, 999));
        }
        let model = validation.model().map(str::to_owned);
        (model, validation.into_errors().into_iter().map(|error| (error.code, error.line)).collect())
    }

    fn line(id: &str, model: &str) -> String {
        format!(r#"{{"custom_id": "{id}", "method": "POST", "url": "/v1/embeddings", "body": {{"model": "{model}"}}}}"#)
    }

    #[test]
    fn every_bad_line_is_named_with_its_number() {
        let (good, other, again) = (line("a", "m"), line("b", "other"), line("a", "m"));
        let (get, url) = (line("c", "m").replace("POST", "GET"), line("d", "m").replace("embeddings", "responses"));
        let (same, long) = (line("e", "m"), line(&"f".repeat(1000), "m"));
        let (model, errors) = validate(&[&good, &other, &again, "{", &get, &url, &same, &long]);
        assert_eq!(model.as_deref(), Some("m"));
        let expected = [
            ("mismatched_model", 2),
            ("duplicate_custom_id", 3),
            ("invalid_json_line", 4),
            ("invalid_method", 5),
            ("invalid_url", 6),
            ("line_too_long", 8),
        ];
        assert_eq!(errors, expected.map(|(code, line)| (code.to_owned(), Some(line))));
        assert_eq!(validate(&[&line("a", ""), &line("b", "")]), (None, vec![]));
        assert_eq!(validate(&["["; 1000]).1.len(), MAX_ERRORS);
    }
}
