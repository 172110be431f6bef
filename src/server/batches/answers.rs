//! Answers a group of requests of a batch on the worker threads, as a background job.

use std::ops::Range;
use std::sync::Arc;

use crate::batches::InputLine;
use crate::openai::EncodingFormat;
use crate::openai::batch_line::{BatchLine, write_answer, write_unprocessed};
use crate::server::error::ApiError;
use crate::server::response::form::ResponseForm;
use crate::server::response::offline::{self, OfflineAnswer, OfflineLimits};
use crate::server::response::slices::split_by_size;
use crate::workers::{self, Slices, Workers};
use layer0::OutputDtype;
use layer0::embedder::Embedder;
use layer0::yield_point::YieldPoint;

/// The size of a slice in bytes of lines: a few milliseconds, or 1 MiB of answers.
const SLICE: usize = 16 << 10;

/// The cost of a byte of text, in time, beside that of a byte of memory.
const TEXT_COST: u64 = 64;

/// What is the same for all requests of a group.
pub struct RequestGroup {
    pub embedder: Arc<Embedder>,
    /// The name of the model in the answers to requests that name none.
    pub default_model: String,
    pub limits: OfflineLimits,
    /// The ID of the batch.
    pub batch: String,
    /// Whether the completion window is over, so that the requests are not processed.
    pub expired: bool,
}

/// The answers to consecutive requests.
#[derive(Debug, Default)]
pub struct Answers {
    pub output: Vec<u8>,
    pub errors: Vec<u8>,
    pub completed: u64,
    pub failed: u64,
    pub inputs: usize,
    pub tokens: usize,
    /// The place after the last request, if there is one.
    pub end: Option<Place>,
}

/// A place in an input file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of bytes before the place.
    pub position: u64,
    /// The number of lines before the place.
    pub lines: u64,
}

impl Answers {
    /// Appends the answers to the requests that follow.
    pub fn add(&mut self, mut next: Self) {
        self.output.append(&mut next.output);
        self.errors.append(&mut next.errors);
        self.completed += next.completed;
        self.failed += next.failed;
        self.inputs += next.inputs;
        self.tokens += next.tokens;
        self.end = next.end.or(self.end);
    }
}

impl RequestGroup {
    /// The largest cost of a group, unless it has a single request: 16 MiB of memory, or 256 KiB of text, which takes a fraction
    /// of a second. A batch is cancelled, and its progress is counted, after a group.
    pub const BUDGET: u64 = 16 << 20;

    /// Returns a function that estimates what a line and its answer take: their memory in bytes, or the time of the text. The number of inputs of a request is at most
    /// one more than its commas.
    pub fn cost(&self) -> impl Fn(&InputLine) -> u64 + Send + Sync + 'static + use<> {
        let form = ResponseForm::OpenAi { format: EncodingFormat::Float, dtype: OutputDtype::Float };
        let size = form.size_of_vector(self.embedder.max_dimensions()) as u64;
        let max_inputs = self.limits.max_inputs;
        move |line| {
            let commas = line.content.as_deref().map_or(0, |line| memchr::memchr_iter(b',', line).count());
            let inputs = (commas + 1).min(max_inputs) as u64;
            line.size().saturating_mul(TEXT_COST).max(line.size().saturating_add(inputs.saturating_mul(size)))
        }
    }

    /// Begins to answer the requests on these lines. Each slice has the answers to a part of them.
    pub fn start(self, workers: &Workers, lines: Vec<InputLine>) -> Slices<Answers> {
        let cost = self.cost();
        let share = |line: &InputLine| (cost(line) / TEXT_COST) as usize;
        let slices: Vec<Range<usize>> = split_by_size(lines.iter().map(share), SLICE);
        workers.run_background(slices.len(), move |slice, at| {
            let range = slices.get(slice).cloned().unwrap_or_default();
            let mut answers = Answers::default();
            for line in lines.get(range).unwrap_or_default() {
                self.answer(line, at, &mut answers);
            }
            answers
        })
    }

    fn answer(&self, line: &InputLine, at: &dyn YieldPoint, out: &mut Answers) {
        out.end = Some(Place { position: line.end, lines: line.number });
        let id = format!("batch_req_{}_{}", self.batch.trim_start_matches("batch_"), line.number);
        let request = line.content.as_deref().and_then(|line| BatchLine::parse(line).ok());
        let unprocessed = match &request {
            Some(_) if self.expired => {
                Some(("batch_expired", "This request could not be executed before the completion window expired."))
            }
            // All lines were valid when the batch was checked, so a limit of the server was lowered since then.
            None => Some(("line_too_long", "This line is longer than this server now accepts.")),
            Some(_) => None,
        };
        let custom_id = request.as_ref().map_or("", |request| request.custom_id.as_str());
        if let Some((code, message)) = unprocessed {
            out.failed += 1;
            return write_unprocessed(&mut out.errors, &id, custom_id, code, message);
        }
        let Some(request) = &request else { return };
        let answer = || offline::embeddings(&self.embedder, request.body(), &self.default_model, self.limits, at);
        let answer =
            workers::run_inline(answer).unwrap_or_else(|panicked| OfflineAnswer::from(ApiError::from(panicked)));
        let file = if answer.is_success() { &mut out.output } else { &mut out.errors };
        write_answer(file, &id, custom_id, answer.status, &answer.body);
        out.completed += u64::from(answer.is_success());
        out.failed += u64::from(!answer.is_success());
        out.inputs += answer.inputs;
        out.tokens += answer.tokens;
    }
}
