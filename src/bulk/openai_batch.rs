//! Answers the lines of a batch file of OpenAI's API, each of which is a request for embeddings.
//!
//! A request that the API would refuse has the status and the body of the refusal in its answer, and does not end the run.

use crate::openai::batch_line::{BatchLine, MAX_INPUTS, write_answer};
use crate::server::offline::{self, OfflineLimits};
use layer0::embedder::Embedder;
use layer0::yield_point::Undisturbed;
use layer0_records::BadRecord;

/// The limits of OpenAI's API on a request. There is no limit on its text.
const LIMITS: OfflineLimits = OfflineLimits { max_inputs: MAX_INPUTS, max_text: u64::MAX };

/// Appends the answer to the line at `position`, with a line break. Returns the number of tokens.
///
/// # Errors
/// Fails if the line is not a request for embeddings.
pub fn answer(embedder: &Embedder, line: &[u8], position: u64, out: &mut Vec<u8>) -> Result<usize, BadRecord> {
    let request = BatchLine::parse(line).map_err(|error| BadRecord::new(error.to_string()))?;
    let answer = offline::embeddings(embedder, request.body(), "", LIMITS, &Undisturbed);
    write_answer(out, &format!("batch_req_{position}"), &request.custom_id, answer.status, &answer.body);
    Ok(answer.tokens)
}
