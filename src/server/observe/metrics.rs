//! The counters, gauges and histograms that /metrics shows to Prometheus.
//!
//! Every series that a request can touch is created at the start, so counting a request only adds to atomic numbers.
//! Label values are the router's routes, configured model IDs and key names, and the server's own error codes. Nothing
//! that a client sends becomes a label value.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry as Series;

use super::histogram::Histogram;
use crate::keys::UNNAMED;
use crate::openai::BatchStatus;
use crate::registry::RegisteredModel;
use crate::{line_queue, workers};

/// The results that a reload can have, as label values.
pub const RELOADED: &str = "reloaded";
pub const REFUSED: &str = "refused";

/// The results that the request of a batch can have, as label values.
const COMPLETED: &str = "completed";
const FAILED: &str = "failed";

/// A stage of the work on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The wait for a worker thread.
    Queue,
    Tokenize,
    Pool,
    Serialize,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::Queue, Self::Tokenize, Self::Pool, Self::Serialize];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Tokenize => "tokenize",
            Self::Pool => "pool",
            Self::Serialize => "serialize",
        }
    }
}

/// The classes of status codes that are label values. The few 3xx responses count as 2xx.
const CLASSES: [&str; 3] = ["2xx", "4xx", "5xx"];

type Labels = Vec<(&'static str, String)>;

/// The counters of one route.
#[derive(Debug, Clone)]
pub struct RouteMetrics {
    /// The counters, in the order of [`CLASSES`].
    requests: [Counter; CLASSES.len()],
    duration: Histogram,
}

impl RouteMetrics {
    /// Counts a response that began `duration` after the headers of its request had arrived.
    pub fn answered(&self, status: u16, duration: Duration) {
        let [fine, client, server] = &self.requests;
        match status {
            ..400 => fine.inc(),
            400..500 => client.inc(),
            _ => server.inc(),
        };
        self.duration.observe(duration);
    }
}

/// The counters of one model.
#[derive(Debug)]
pub struct ModelMetrics {
    inputs: Counter,
    tokens: Counter,
}

impl ModelMetrics {
    pub fn pooled(&self, inputs: usize, tokens: usize) {
        self.inputs.inc_by(inputs as u64);
        self.tokens.inc_by(tokens as u64);
    }
}

/// The counters of one API key, or of all keys without a name together.
#[derive(Debug)]
pub struct KeyMetrics {
    /// The name that the configuration gives the key.
    name: Option<String>,
    requests: Counter,
    inputs: Counter,
    tokens: Counter,
}

impl KeyMetrics {
    /// Returns the name that the configuration gives the key.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Counts inputs of a batch that the key has created.
    pub fn embedded(&self, inputs: usize, tokens: usize) {
        self.inputs.inc_by(inputs as u64);
        self.tokens.inc_by(tokens as u64);
    }

    /// Counts a response to a request with this key, with its inputs and tokens.
    pub fn answered(&self, inputs: usize, tokens: usize) {
        self.requests.inc();
        self.inputs.inc_by(inputs as u64);
        self.tokens.inc_by(tokens as u64);
    }
}

/// The values that are read when the metrics are requested, because nothing counts them as they change.
pub struct Gauges<'a> {
    /// The jobs that wait for a worker thread.
    pub waiting_jobs: usize,
    /// The bytes that the requests in flight have reserved.
    pub bytes_in_flight: u64,
    /// The models of the configuration.
    pub models: &'a [Arc<RegisteredModel>],
    /// The number of batches with each status, in the order of [`BatchStatus::ALL`].
    pub batches: [usize; BatchStatus::ALL.len()],
    /// The number of files, and their size in bytes.
    pub stored_files: (usize, u64),
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    series: Series,
    requests: Family<Labels, Counter>,
    durations: Family<Labels, Histogram>,
    errors: Family<[(&'static str, &'static str); 1], Counter>,
    stages: [Histogram; Stage::ALL.len()],
    inputs: Family<Labels, Counter>,
    tokens: Family<Labels, Counter>,
    key_requests: Family<Labels, Counter>,
    key_inputs: Family<Labels, Counter>,
    key_tokens: Family<Labels, Counter>,
    in_flight: Gauge,
    bytes_in_flight: Gauge,
    waiting: Gauge,
    connections: Gauge,
    reloads: Family<[(&'static str, &'static str); 1], Counter>,
    batches: Family<[(&'static str, &'static str); 1], Gauge>,
    batch_requests: Family<[(&'static str, &'static str); 1], Counter>,
    stored_files: Gauge,
    stored_bytes: Gauge,
    panics: Counter,
    dropped_lines: Counter,
    table_bytes: Family<Labels, Gauge>,
    loaded: Family<Labels, Gauge>,
    resident: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut series = Series::default();
        let metric_name = |name: &str| format!("embedding_server_{name}");
        let requests = Family::default();
        series.register(metric_name("requests"), "Responses, by route and class of status", requests.clone());
        let durations = Family::default();
        let text = "Time from the headers of a request to the first byte of its response, in seconds, by route";
        series.register(metric_name("request_duration_seconds"), text, durations.clone());
        let errors = Family::default();
        series.register(metric_name("errors"), "Error responses, by error code", errors.clone());
        let in_flight = Gauge::default();
        series.register(
            metric_name("requests_in_flight"),
            "Requests whose response has not been sent completely",
            in_flight.clone(),
        );

        let bytes_in_flight = Gauge::default();
        let text = "Bytes reserved by the requests in flight; the limit is server.max_in_flight";
        series.register(metric_name("bytes_in_flight"), text, bytes_in_flight.clone());
        let connections = Gauge::default();
        series.register(metric_name("connections"), "Open connections", connections.clone());

        let by_stage: Family<[(&'static str, &'static str); 1], Histogram> = Family::default();
        let text = "Time that a request spent in a stage, in seconds, summed over all threads; queue is the wait for \
                    the first worker thread";
        series.register(metric_name("stage_duration_seconds"), text, by_stage.clone());
        let stages = Stage::ALL.map(|stage| by_stage.get_or_create_owned(&[("stage", stage.name())]));
        let waiting = Gauge::default();
        series.register(metric_name("queue_depth"), "Jobs that are waiting for a worker thread", waiting.clone());

        let inputs: Family<Labels, Counter> = Family::default();
        series.register(metric_name("inputs"), "Embedded, tokenized or compared inputs, by model", inputs.clone());
        let tokens: Family<Labels, Counter> = Family::default();
        series.register(metric_name("tokens"), "Tokens reported in usage, by model", tokens.clone());
        let of_keys = [
            ("key_requests", "Responses to requests that need an API key, by name of the key"),
            ("key_inputs", "Embedded, tokenized or compared inputs, by name of the API key"),
            ("key_tokens", "Tokens reported in usage, by name of the API key"),
        ];
        let [key_requests, key_inputs, key_tokens] = of_keys.map(|(name, text)| {
            let family: Family<Labels, Counter> = Family::default();
            series.register(metric_name(name), text, family.clone());
            family
        });
        let table_bytes = Family::default();
        series.register(
            metric_name("table_bytes"),
            "Size of a loaded model's embedding table as stored, in bytes",
            table_bytes.clone(),
        );
        let loaded = Family::default();
        series.register(
            metric_name("model_loaded"),
            "Whether a model is loaded: 1, or 0 while it is loading",
            loaded.clone(),
        );

        let reloads: Family<[(&'static str, &'static str); 1], Counter> = Family::default();
        series.register(metric_name("reloads"), "Reloads of the configuration, by result", reloads.clone());
        for result in [RELOADED, REFUSED] {
            drop(reloads.get_or_create(&[("result", result)]));
        }
        let batches = Family::default();
        series.register(metric_name("batches"), "Batches in the directory of batches, by status", batches.clone());
        let batch_requests: Family<[(&'static str, &'static str); 1], Counter> = Family::default();
        let text = "Requests of batches, by whether they were completed or failed";
        series.register(metric_name("batch_requests"), text, batch_requests.clone());
        for result in [COMPLETED, FAILED] {
            drop(batch_requests.get_or_create(&[("result", result)]));
        }
        let stored_files = Gauge::default();
        series.register(metric_name("stored_files"), "Files in the directory of batches", stored_files.clone());
        let stored_bytes = Gauge::default();
        let text = "Size of the files in the directory of batches, in bytes; the limit is server.max_stored_bytes";
        series.register(metric_name("stored_bytes"), text, stored_bytes.clone());
        let panics = Counter::default();
        series.register(
            metric_name("panics"),
            "Panics while processing a request, each of which failed its request",
            panics.clone(),
        );
        let dropped_lines = Counter::default();
        let text = "Log lines that were dropped because standard error was not read or could not be written";
        series.register(metric_name("log_lines_dropped"), text, dropped_lines.clone());

        let build = Info::new([
            ("version", env!("CARGO_PKG_VERSION")),
            ("os", std::env::consts::OS),
            ("arch", std::env::consts::ARCH),
        ]);
        series.register(metric_name("build"), "Version and platform of the server", build);
        let resident = Gauge::default();
        series.register(
            "process_resident_memory_bytes",
            "Resident memory in bytes, including the mapped pages of tables",
            resident.clone(),
        );
        let started: Gauge<f64, AtomicU64> = Gauge::default();
        started.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        series.register("process_start_time_seconds", "Time at which the server started, in Unix seconds", started);
        Self {
            series,
            requests,
            durations,
            errors,
            stages,
            inputs,
            tokens,
            key_requests,
            key_inputs,
            key_tokens,
            in_flight,
            bytes_in_flight,
            waiting,
            connections,
            reloads,
            batches,
            batch_requests,
            stored_files,
            stored_bytes,
            panics,
            dropped_lines,
            table_bytes,
            loaded,
            resident,
        }
    }
}

impl Metrics {
    /// Returns the counters of the route with this path.
    pub fn route(&self, path: &str) -> RouteMetrics {
        let label = |name, value: &str| (name, value.to_owned());
        let requests =
            CLASSES.map(|class| self.requests.get_or_create_owned(&vec![label("route", path), label("status", class)]));
        RouteMetrics { requests, duration: self.durations.get_or_create_owned(&vec![label("route", path)]) }
    }

    /// Counts an error response.
    pub fn failed(&self, code: &'static str) {
        self.errors.get_or_create(&[("code", code)]).inc();
    }

    /// Returns the counters of the model with this ID.
    pub fn model(&self, id: &str) -> ModelMetrics {
        let label = model_label(id);
        ModelMetrics {
            inputs: self.inputs.get_or_create_owned(&label),
            tokens: self.tokens.get_or_create_owned(&label),
        }
    }

    /// Returns the counters of the key with this name. All keys without a name share their counters.
    pub fn key(&self, name: Option<&str>) -> KeyMetrics {
        let label = vec![("key", name.unwrap_or(UNNAMED).to_owned())];
        KeyMetrics {
            name: name.map(str::to_owned),
            requests: self.key_requests.get_or_create_owned(&label),
            inputs: self.key_inputs.get_or_create_owned(&label),
            tokens: self.key_tokens.get_or_create_owned(&label),
        }
    }

    /// Counts a reload with the result [`RELOADED`] or [`REFUSED`].
    pub fn reloaded(&self, result: &'static str) {
        self.reloads.get_or_create(&[("result", result)]).inc();
    }

    /// Counts the requests of a batch that were answered with embeddings, and with errors.
    pub fn answered_batch_requests(&self, completed: u64, failed: u64) {
        for (result, count) in [(COMPLETED, completed), (FAILED, failed)] {
            self.batch_requests.get_or_create(&[("result", result)]).inc_by(count);
        }
    }

    /// Counts a connection as open until the returned guard is dropped.
    pub fn count_connection(&self) -> GaugeGuard {
        self.connections.inc();
        GaugeGuard(self.connections.clone())
    }

    pub fn stage(&self, stage: Stage, duration: Duration) {
        if let Some(histogram) = self.stages.get(stage as usize) {
            histogram.observe(duration);
        }
    }

    /// Counts a request as in flight until the returned guard is dropped.
    pub fn count_request(&self) -> GaugeGuard {
        self.in_flight.inc();
        GaugeGuard(self.in_flight.clone())
    }

    /// Returns all metrics in the OpenMetrics text format, with the current values of the gauges that are not counted.
    ///
    /// # Errors
    /// If a metric cannot be encoded.
    pub fn text(&self, gauges: &Gauges<'_>) -> Result<String, std::fmt::Error> {
        self.waiting.set(signed(gauges.waiting_jobs));
        self.bytes_in_flight.set(i64::try_from(gauges.bytes_in_flight).unwrap_or(i64::MAX));
        self.panics.inc_by(workers::panics().saturating_sub(self.panics.get()));
        self.dropped_lines.inc_by(line_queue::dropped().saturating_sub(self.dropped_lines.get()));
        for (status, count) in BatchStatus::ALL.iter().zip(gauges.batches) {
            self.batches.get_or_create(&[("status", status.name())]).set(signed(count));
        }
        let (files, bytes) = gauges.stored_files;
        self.stored_files.set(signed(files));
        self.stored_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        // The series of models that a reload has removed must go.
        self.loaded.clear();
        self.table_bytes.clear();
        for entry in gauges.models {
            let label = model_label(entry.id());
            let embedder = entry.embedder();
            self.loaded.get_or_create(&label).set(i64::from(embedder.is_some()));
            self.table_bytes.get_or_create(&label).set(embedder.map_or(0, |embedder| signed(embedder.table_bytes())));
        }
        if let Some(memory) = memory_stats::memory_stats() {
            self.resident.set(signed(memory.physical_mem));
        }
        let mut text = String::new();
        encode(&mut text, &self.series)?;
        Ok(text)
    }
}

/// Keeps a gauge raised by one until it is dropped: for a request that is not answered yet, or an open connection.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn model_label(id: &str) -> Labels {
    vec![("model", id.to_owned())]
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
