//! Writes the log to standard error, and, with the feature `otlp`, sends spans. No thread waits for the reader of the
//! log.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::output::Failure;
use crate::config::LogFormat;
use crate::config::error::ConfigError;
use crate::config::layers::EffectiveConfig;
use crate::line_queue::LineQueue;
#[cfg(feature = "otlp")]
use crate::server::trace::otlp;

/// Whether the log is written as JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// The exporter of spans. Dropping it sends the remaining spans.
pub struct Spans {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// Starts the log, whose lines are written to `stderr`, and sends spans if the environment asks for it.
///
/// # Errors
/// If the environment's settings for spans are invalid.
pub fn start(effective: &EffectiveConfig, stderr: LineQueue) -> Result<Spans, ConfigError> {
    log_panics();
    let log = &effective.config.log;
    JSON.store(log.format == LogFormat::Json, Ordering::Relaxed);
    let filter = EnvFilter::builder().parse_lossy(&log.level);
    let lines = tracing_subscriber::fmt::layer().with_writer(move || stderr.clone()).with_target(false);
    let lines: Box<dyn Layer<_> + Send + Sync> = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    #[cfg(feature = "otlp")]
    let spans = Spans { provider: otlp::provider()? };
    #[cfg(not(feature = "otlp"))]
    let spans = Spans {};
    let subscriber = tracing_subscriber::registry();
    #[cfg(feature = "otlp")]
    if let Some(provider) = &spans.provider {
        // The log line of a request contains the same information as its span, so spans are kept out of the log.
        let off = format!("{}=off", otlp::TARGET).parse().map_err(|e| ConfigError::value(format!("{e}")))?;
        subscriber.with(lines.with_filter(filter.add_directive(off))).with(otlp::layer(provider)).init();
        warn(effective);
        return Ok(spans);
    }
    subscriber.with(lines).with(filter).init();
    warn(effective);
    Ok(spans)
}

/// Logs that lines are missing from the log.
pub fn report_dropped(lines: u64) {
    tracing::warn!(lines, "log lines were dropped, because standard error was not read");
}

/// Logs panics. The standard library's own message would be written by the thread that panics, which would then wait
/// for the reader of the log.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.to_string().replace('\n', " ");
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => {
                tracing::error!(thread = thread.name(), %backtrace, "{message}");
            }
            _ => tracing::error!(thread = thread.name(), "{message}"),
        }
    }));
}

/// Prints why the server ends: as a log line if the log is JSON, and otherwise in the form of all commands. The level
/// of the log does not hide it.
pub fn fatal(failure: &Failure, mut stderr: LineQueue) {
    let Some(message) = failure.message() else { return };
    if JSON.load(Ordering::Relaxed) && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{message}");
    } else {
        let _ = stderr.write_all(format!("error: {message}\n").as_bytes());
    }
}

fn warn(effective: &EffectiveConfig) {
    for warning in &effective.warnings {
        tracing::warn!("{warning}");
    }
}

#[cfg(feature = "otlp")]
impl Drop for Spans {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.provider.as_ref().map(opentelemetry_sdk::trace::SdkTracerProvider::shutdown) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}
