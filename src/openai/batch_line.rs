//! The lines of the batch files of OpenAI's API: a request on each line of an input file, and its answer on a line of an output file.
//!
//! The format is described at <https://platform.openai.com/docs/guides/batch>. A line such as `{"custom_id": "a", "method": "POST", "url":
//! "/v1/embeddings", "body": {"model": "m", "input": "hello"}}` has the answer `{"id": "batch_req_1", "custom_id": "a", "response":
//! {"status_code": 200, "request_id": "batch_req_1", "body": {...}}, "error": null}`.

use std::borrow::Cow;
use std::io::Write;

use layer0_files::json::{self, NonFinite};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The only path of requests that is answered.
pub const URL: &str = "/v1/embeddings";

/// The largest number of inputs of one request, as in OpenAI's API.
pub const MAX_INPUTS: usize = 2048;

/// The longest text from a line that a message repeats, in characters.
const LONGEST: usize = 64;

/// A request of a batch file. Other fields are ignored.
#[derive(Debug, Deserialize)]
pub struct BatchLine<'a> {
    /// The name that the client gives the request, by which it finds the answer.
    pub custom_id: String,
    method: String,
    url: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Why a line is not a request for embeddings, as a phrase that continues a sentence about the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchLineError {
    #[error("is not a request of OpenAI's batch format: {0}")]
    NotARequest(String),
    #[error("asks for the method {0}, but only POST is answered")]
    Method(String),
    #[error("asks for the path {0}, but only {URL} is answered")]
    Url(String),
}

impl BatchLineError {
    /// Returns the code and the field that OpenAI's API names for the error.
    pub fn code_and_field(&self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::NotARequest(_) => ("invalid_json_line", None),
            Self::Method(_) => ("invalid_method", Some("method")),
            Self::Url(_) => ("invalid_url", Some("url")),
        }
    }
}

impl<'a> BatchLine<'a> {
    /// Parses a line.
    ///
    /// # Errors
    /// If the line is not a request for embeddings.
    pub fn parse(line: &'a [u8]) -> Result<Self, BatchLineError> {
        let request: Self =
            serde_json::from_slice(line).map_err(|error| BatchLineError::NotARequest(error.to_string()))?;
        if request.method != "POST" {
            return Err(BatchLineError::Method(beginning(&request.method)));
        }
        if request.url != URL {
            return Err(BatchLineError::Url(beginning(&request.url)));
        }
        Ok(request)
    }

    /// Returns the body of the request, in JSON.
    pub fn body(&self) -> &'a [u8] {
        self.body.get().as_bytes()
    }

    /// Returns the model that the body names, if the body is an object that names one. An empty name counts as none.
    pub fn model(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Body {
            model: Option<String>,
        }
        let body: Cow<'_, [u8]> = json::strict(self.body(), NonFinite::Refused);
        let body: Body = serde_json::from_slice(&body).ok()?;
        body.model.filter(|model| !model.is_empty())
    }
}

/// Appends the answer to a request, with a line break. `id` names the answer, and `body` is JSON.
pub fn write_answer(out: &mut Vec<u8>, id: &str, custom_id: &str, status: u16, body: &[u8]) {
    begin(out, id, custom_id);
    // A Vec accepts every write.
    let _ = write!(out, r#"{{"status_code":{status},"request_id":"{id}","body":"#);
    out.extend_from_slice(body);
    out.extend_from_slice(b"},\"error\":null}\n");
}

/// Appends the answer to a request that was not processed, with a line break.
pub fn write_unprocessed(out: &mut Vec<u8>, id: &str, custom_id: &str, code: &str, message: &str) {
    begin(out, id, custom_id);
    let error = serde_json::json!({"code": code, "message": message});
    let _ = writeln!(out, r#"null,"error":{error}}}"#);
}

fn begin(out: &mut Vec<u8>, id: &str, custom_id: &str) {
    let _ = write!(out, r#"{{"id":"{id}","custom_id":"#);
    // A string always serializes.
    let _ = serde_json::to_writer(&mut *out, custom_id);
    out.extend_from_slice(br#","response":"#);
}

fn beginning(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_line_is_a_request_or_an_error_with_its_code() {
        let good = br#"{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}, "x": 1}"#;
        let line = BatchLine::parse(good).unwrap();
        assert_eq!((line.custom_id.as_str(), line.model().as_deref()), ("a", Some("m")));
        assert_eq!(line.body(), br#"{"model": "m"}"#);
        let with = |from: &str, to: &str| String::from_utf8(good.to_vec()).unwrap().replace(from, to);
        for (line, code) in [
            (with("POST", "GET"), "invalid_method"),
            (with("/v1/embeddings", "/v1/chat/completions"), "invalid_url"),
            (with("custom_id", "id"), "invalid_json_line"),
            (with("}, \"x\"", ", \"x\""), "invalid_json_line"),
            (with("\"a\"", "1"), "invalid_json_line"),
            ("[]".to_owned(), "invalid_json_line"),
        ] {
            assert_eq!(BatchLine::parse(line.as_bytes()).unwrap_err().code_and_field().0, code, "{line}");
        }
        for (body, model) in
            [(r#"{"model": ""}"#, None), ("[1]", None), (r#"{"model": "m", "input": "\ud83d"}"#, Some("m"))]
        {
            let line = with(r#"{"model": "m"}"#, body);
            assert_eq!(BatchLine::parse(line.as_bytes()).unwrap().model().as_deref(), model, "{body}");
        }
    }

    #[test]
    fn answers_are_lines_of_json() {
        let mut out = Vec::new();
        write_answer(&mut out, "batch_req_1", "a \"b\"\n", 200, br#"{"object":"list"}"#);
        write_unprocessed(&mut out, "batch_req_2", "c", "batch_expired", "It is \"late\".");
        let lines: Vec<Value> =
            std::str::from_utf8(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let response = json!({"status_code": 200, "request_id": "batch_req_1", "body": {"object": "list"}});
        let error = json!({"code": "batch_expired", "message": "It is \"late\"."});
        assert_eq!(
            lines,
            [
                json!({"id": "batch_req_1", "custom_id": "a \"b\"\n", "response": response, "error": null}),
                json!({"id": "batch_req_2", "custom_id": "c", "response": null, "error": error}),
            ]
        );
    }
}
