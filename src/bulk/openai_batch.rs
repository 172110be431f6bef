//! Answers the lines of a batch file of OpenAI's API, each of which is a request for embeddings.
//!
//! The format is described at <https://platform.openai.com/docs/guides/batch>. A line such as `{"custom_id": "a", "method": "POST", "url":
//! "/v1/embeddings", "body": {"model": "m", "input": "hello"}}` has the answer `{"id": "batch_req_1", "custom_id": "a", "response":
//! {"status_code": 200, "request_id": "batch_req_1", "body": {...}}, "error": null}`. A request that the API would refuse has the status and
//! the body of the refusal in its answer, and does not end the run.

use std::io::Write;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::server::offline;
use layer0::embedder::Embedder;
use layer0_records::BadRecord;

/// The largest number of inputs of a request, as in OpenAI's API.
const MAX_INPUTS: usize = 2048;

/// The path of the requests.
const URL: &str = "/v1/embeddings";

/// A line of a batch file. Other fields are ignored.
#[derive(Deserialize)]
struct BatchLine<'a> {
    custom_id: String,
    method: String,
    url: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Appends the answer to the line at `position`, with a line break. Returns the number of tokens.
///
/// # Errors
/// Fails if the line is not a request for embeddings.
pub fn answer(embedder: &Embedder, line: &[u8], position: u64, out: &mut Vec<u8>) -> Result<usize, BadRecord> {
    let request: BatchLine<'_> = serde_json::from_slice(line)
        .map_err(|e| BadRecord::new(format!("is not a request of OpenAI's batch format: {e}")))?;
    if request.method != "POST" || request.url != URL {
        let found = format!("asks for {} {}, but only POST {URL} is answered", request.method, request.url);
        return Err(BadRecord::new(found));
    }
    let answer = offline::embeddings(embedder, request.body.get().as_bytes(), MAX_INPUTS);
    // A Vec accepts every write, and a string always serializes.
    let _ = write!(out, r#"{{"id":"batch_req_{position}","custom_id":"#);
    let _ = serde_json::to_writer(&mut *out, &request.custom_id);
    let status = answer.status;
    let _ = write!(out, r#","response":{{"status_code":{status},"request_id":"batch_req_{position}","body":"#);
    out.extend_from_slice(&answer.body);
    out.extend_from_slice(b"},\"error\":null}\n");
    Ok(answer.tokens)
}
