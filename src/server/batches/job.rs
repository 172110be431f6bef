//! The work on one batch: checks its input file, answers its requests, and completes its output files.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::answers::{Answers, RequestGroup};
use crate::batches::{
    BatchOutput, BatchRecord, BatchStore, CheckedLine, InputLine, LineReader, Progress, StorageError, Validation, now,
};
use crate::openai::{BatchError, BatchStatus};
use crate::registry::RegisteredModel;
use crate::server::observe::metrics::KeyMetrics;
use crate::server::response::offline::OfflineLimits;
use crate::server::router::active::ActiveRoutes;
use crate::server::state::ServerState;
use crate::workers::Panicked;
use layer0::embedder::Embedder;

/// The bytes of lines that are checked together.
const CHECKED_BYTES: u64 = 256 << 10;

/// The longest time for which answers are not on disk. After a power failure, they are made again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// The pause between two looks at a model that is still loading, and before a batch whose record cannot be written is tried again.
const LOADING_INTERVAL: Duration = Duration::from_millis(100);
const DISK_INTERVAL: Duration = Duration::from_secs(5);

/// The work on one batch.
pub struct BatchJob {
    active: ActiveRoutes,
    store: Arc<BatchStore>,
    id: String,
    stop: watch::Receiver<bool>,
}

/// Why the work on a batch ends before the batch has ended.
enum Interruption {
    /// The server stops. The next process continues.
    Stopped,
    /// The batch fails with this error.
    Failed(BatchError),
}

impl From<StorageError> for Interruption {
    fn from(error: StorageError) -> Self {
        tracing::error!(%error, "a batch cannot be continued");
        failure("server_error", "The server could not read or write the files of this batch. Its log has the details.")
    }
}

impl From<Panicked> for Interruption {
    fn from(Panicked(message): Panicked) -> Self {
        tracing::error!(message, "the processing of a batch panicked");
        failure("server_error", "The server had an error while it processed the batch. Its log has the details.")
    }
}

fn failure(code: &str, message: impl Into<String>) -> Interruption {
    Interruption::Failed(BatchError { code: code.to_owned(), message: message.into(), param: None, line: None })
}

/// Ends a batch with an error.
pub async fn fail(store: &Arc<BatchStore>, id: &str, code: &str, message: &str) {
    if let Interruption::Failed(error) = failure(code, message) {
        end(store, id, BatchStatus::Failed, vec![error]).await;
    }
}

/// Ends a batch. If the disk does not take its record, the batch is tried again later.
async fn end(store: &Arc<BatchStore>, id: &str, status: BatchStatus, errors: Vec<BatchError>) {
    let (store, batch) = (Arc::clone(store), id.to_owned());
    let ended = blocking(move || {
        store.end_batch(&batch, |record| {
            record.set_status(status);
            record.errors = errors;
        })
    });
    match ended.await {
        Ok(record) => {
            let counts = record.counts;
            tracing::info!(
                batch = id,
                status = status.name(),
                completed = counts.completed,
                failed = counts.failed,
                "batch ended"
            );
        }
        Err(_) => tokio::time::sleep(DISK_INTERVAL).await,
    }
}

/// Resolves when the server stops.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the server no longer exists.
    drop(stop.wait_for(|stop| *stop).await);
}

/// Runs `work`, which may wait for the disk, on a thread that serves no connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Interruption> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(failure("server_error", "The server had an error while it processed the batch.")),
    }
}

/// The model of a batch, as the configuration of this moment serves it.
struct ServedModel {
    state: Arc<ServerState>,
    entry: Arc<RegisteredModel>,
    embedder: Arc<Embedder>,
    key: Option<KeyMetrics>,
}

impl BatchJob {
    pub fn new(active: ActiveRoutes, store: Arc<BatchStore>, id: String, stop: watch::Receiver<bool>) -> Self {
        Self { active, store, id, stop }
    }

    /// Works on the batch until it has ended, or the server stops.
    pub async fn run(mut self) {
        while let Some(record) = self.store.record(&self.id) {
            let result = match record.status {
                BatchStatus::Validating => self.validate(record).await,
                BatchStatus::InProgress => self.answer(record).await,
                BatchStatus::Finalizing => {
                    let status = if record.has_expired { BatchStatus::Expired } else { BatchStatus::Completed };
                    return end(&self.store, &self.id, status, Vec::new()).await;
                }
                BatchStatus::Cancelling => {
                    return end(&self.store, &self.id, BatchStatus::Cancelled, Vec::new()).await;
                }
                _ => return,
            };
            match result {
                Ok(()) => {}
                Err(Interruption::Stopped) => return,
                Err(Interruption::Failed(error)) => {
                    return end(&self.store, &self.id, BatchStatus::Failed, vec![error]).await;
                }
            }
        }
    }

    fn check_stop(&self) -> Result<(), Interruption> {
        if *self.stop.borrow() { Err(Interruption::Stopped) } else { Ok(()) }
    }

    fn is_cancelled(&self) -> bool {
        self.store.record(&self.id).is_none_or(|record| record.status == BatchStatus::Cancelling)
    }

    async fn update(&self, change: impl FnOnce(&mut BatchRecord) + Send + 'static) -> Result<(), Interruption> {
        let (store, id) = (Arc::clone(&self.store), self.id.clone());
        blocking(move || store.update(&id, change)).await.map(drop)
    }

    /// Checks all lines of the input file. The batch is then in progress, or has failed.
    async fn validate(&mut self, record: BatchRecord) -> Result<(), Interruption> {
        let state = self.active.state();
        let server = &state.config.server;
        let (max_requests, longest) = (server.max_batch_requests, line_limit(&state));
        let (store, file) = (Arc::clone(&self.store), record.input_file_id.clone());
        let mut reader = blocking(move || store.open_input(&file, &Progress::default(), longest)).await?;
        let mut validation = Validation::default();
        loop {
            self.check_stop()?;
            if self.is_cancelled() {
                return Ok(());
            }
            let (next, lines) = read_group(reader, CHECKED_BYTES, InputLine::size).await?;
            reader = next;
            if lines.is_empty() {
                break;
            }
            let check = move |_, _: &dyn layer0::yield_point::YieldPoint| {
                lines.iter().map(|line| CheckedLine::new(line, longest)).collect::<Vec<_>>()
            };
            let checked =
                state.process.workers.run_background(1, check).next().await.unwrap_or_else(|| Ok(Vec::new()))?;
            checked.into_iter().for_each(|line| validation.add(line));
            if validation.count() > max_requests {
                let message = format!(
                    "The file has more than {max_requests} requests, the limit of this server on one batch (the setting \
                     server.max_batch_requests). Split it into several files."
                );
                return Err(failure("too_many_requests", message));
            }
        }
        let (count, model) = (validation.count(), validation.model().map(str::to_owned));
        if count == 0 {
            return Err(failure("empty_file", "The input file has no requests."));
        }
        let errors = validation.into_errors();
        if !errors.is_empty() {
            end(&self.store, &self.id, BatchStatus::Failed, errors).await;
            return Ok(());
        }
        find_model(&self.active.state(), &record, model.as_deref())?;
        self.update(move |record| {
            record.model = model;
            record.counts.total = count;
            if record.status == BatchStatus::Validating {
                record.set_status(BatchStatus::InProgress);
            }
        })
        .await
    }

    /// Answers the requests from the last checkpoint on, until all are answered, the batch is cancelled, or the server stops.
    async fn answer(&mut self, record: BatchRecord) -> Result<(), Interruption> {
        let (store, opened) = (Arc::clone(&self.store), record.clone());
        let longest = line_limit(&self.active.state());
        let opened = blocking(move || {
            Ok((store.open_input(&opened.input_file_id, &opened.progress, longest)?, store.open_output(&opened)?))
        });
        let (mut reader, output) = opened.await?;
        let mut written = Written { record, output: Some(output), since: Instant::now() };
        let result = loop {
            if *self.stop.borrow() {
                break Err(Interruption::Stopped);
            }
            if self.is_cancelled() {
                break Ok(false);
            }
            match self.answer_group(reader, &mut written).await {
                Ok(Some(next)) => reader = next,
                Ok(None) => break Ok(true),
                Err(interruption) => break Err(interruption),
            }
        };
        // The answers so far are kept, however the work ends.
        written.checkpoint(&self.store).await?;
        if result? {
            self.update(|record| {
                if record.status == BatchStatus::InProgress {
                    record.set_status(BatchStatus::Finalizing);
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Answers the next requests. Returns the reader, or `None` if there are no more requests.
    async fn answer_group(
        &mut self,
        reader: LineReader,
        written: &mut Written,
    ) -> Result<Option<LineReader>, Interruption> {
        let model = self.model(&written.record).await?;
        let fingerprint = model.embedder.fingerprint().to_string();
        if written.record.fingerprint.get_or_insert_with(|| fingerprint.clone()) != &fingerprint {
            let message = "The model was replaced by one with other vectors while the batch was in progress. Create the batch again.";
            return Err(failure("model_changed", message));
        }
        let limits = OfflineLimits {
            max_inputs: model.state.config.server.max_inputs,
            max_text: model.state.config.server.max_body.0,
        };
        let expired = written.record.expires_at() <= now();
        let group = RequestGroup {
            embedder: Arc::clone(&model.embedder),
            default_model: model.entry.id().to_owned(),
            limits,
            batch: self.id.clone(),
            expired,
        };
        let cost = group.cost();
        let (reader, lines) = read_group(reader, RequestGroup::BUDGET, cost).await?;
        if lines.is_empty() {
            return Ok(None);
        }
        written.record.has_expired |= expired;
        let mut slices = group.start(&model.state.process.workers, lines);
        let mut answers = Answers::default();
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                slice = slices.next() => match slice {
                    Some(slice) => answers.add(slice?),
                    None => break,
                },
            }
        }
        let metrics = &model.state.process.metrics;
        metrics.answered_batch_requests(answers.completed, answers.failed);
        metrics.model(model.entry.id()).pooled(answers.inputs, answers.tokens);
        if let Some(key) = &model.key {
            key.embedded(answers.inputs, answers.tokens);
        }
        written.append(&self.store, &model.state, answers).await?;
        Ok(Some(reader))
    }

    /// Returns the model of the batch. Waits while the model is loading.
    async fn model(&mut self, record: &BatchRecord) -> Result<ServedModel, Interruption> {
        loop {
            let state = self.active.state();
            let (entry, key) = find_model(&state, record, record.model.as_deref())?;
            if let Some(embedder) = entry.embedder() {
                return Ok(ServedModel { state, embedder: Arc::clone(embedder), entry, key });
            }
            drop(state);
            tokio::select! {
                () = stopped(&mut self.stop) => return Err(Interruption::Stopped),
                () = tokio::time::sleep(LOADING_INTERVAL) => {}
            }
        }
    }
}

/// Returns the limit on the length of a line in bytes: that on the body of a request.
fn line_limit(state: &ServerState) -> usize {
    usize::try_from(state.config.server.max_body.0).unwrap_or(usize::MAX)
}

/// Returns the model that the owner of a batch names, and the counters of the owner's key.
fn find_model(
    state: &ServerState,
    record: &BatchRecord,
    model: Option<&str>,
) -> Result<(Arc<RegisteredModel>, Option<KeyMetrics>), Interruption> {
    let Some((registry, key)) = state.of_owner(&record.owner) else {
        return Err(failure("api_key_removed", "The API key that created the batch is no longer valid."));
    };
    match registry.get(model) {
        Some(entry) => Ok((Arc::clone(entry), key)),
        None => {
            let name: String = model.unwrap_or(state.config.default_model()).chars().take(100).collect();
            let message = format!("The model `{name}` does not exist or you do not have access to it.");
            Err(failure("model_not_found", message))
        }
    }
}

/// Reads the next lines on a thread that serves no connections.
async fn read_group(
    mut reader: LineReader,
    budget: u64,
    cost: impl Fn(&InputLine) -> u64 + Send + 'static,
) -> Result<(LineReader, Vec<InputLine>), Interruption> {
    let read = tokio::task::spawn_blocking(move || reader.next_lines(budget, cost).map(|lines| (reader, lines)));
    match read.await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => {
            tracing::error!(%error, "the input file of a batch cannot be read");
            Err(failure("server_error", "The server could not read the input file. Its log has the details."))
        }
        Err(_) => Err(failure("server_error", "The server had an error while it processed the batch.")),
    }
}

/// The answers of a batch that are written, with those after the last checkpoint.
struct Written {
    /// The record with the progress so far. Its status is not up to date.
    record: BatchRecord,
    output: Option<BatchOutput>,
    /// The time of the last checkpoint.
    since: Instant,
}

impl Written {
    /// Appends answers to the output files.
    async fn append(
        &mut self,
        store: &Arc<BatchStore>,
        state: &ServerState,
        answers: Answers,
    ) -> Result<(), Interruption> {
        let Some(end) = answers.end else { return Ok(()) };
        let (output, errors) = (answers.output.len() as u64, answers.errors.len() as u64);
        store
            .reserve(output + errors, state.config.server.storage_limits())
            .map_err(|error| failure("storage_limit_exceeded", error.to_string()))?;
        let Some(mut file) = self.output.take() else { return Ok(()) };
        let appended =
            tokio::task::spawn_blocking(move || file.append(&answers.output, &answers.errors).map(|()| file));
        match appended.await {
            Ok(Ok(file)) => self.output = Some(file),
            result => {
                store.give_back(output + errors);
                if let Ok(Err(error)) = result {
                    tracing::error!(%error, "the answers to a batch cannot be written");
                }
                return Err(failure(
                    "server_error",
                    "The server could not write the answers. Its log has the details.",
                ));
            }
        }
        let record = &mut self.record;
        record.progress = Progress {
            input: end.position,
            lines: end.lines,
            output: record.progress.output + output,
            errors: record.progress.errors + errors,
        };
        record.counts.completed += answers.completed;
        record.counts.failed += answers.failed;
        record.tokens += answers.tokens as u64;
        store.show_progress(&record.id, record.counts, record.tokens);
        if self.since.elapsed() >= CHECKPOINT_INTERVAL {
            self.checkpoint(store).await?;
        }
        Ok(())
    }

    /// Makes the progress survive the end of the process.
    async fn checkpoint(&mut self, store: &Arc<BatchStore>) -> Result<(), Interruption> {
        let Some(output) = self.output.take() else { return Ok(()) };
        let (store, reached) = (Arc::clone(store), self.record.clone());
        let saved = blocking(move || {
            output.synchronize()?;
            store.update(&reached.id.clone(), |record| {
                record.progress = reached.progress;
                record.counts = reached.counts;
                record.tokens = reached.tokens;
                record.fingerprint = reached.fingerprint;
                record.has_expired = reached.has_expired;
            })?;
            Ok(output)
        });
        self.output = Some(saved.await?);
        self.since = Instant::now();
        Ok(())
    }
}
