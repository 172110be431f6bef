//! The log on standard error, and with the feature `otlp` the spans beside it. No thread waits for the log's reader.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::output::Failure;
use crate::config::LogFormat;
use crate::config::layers::Effective;
use crate::line_queue::LineQueue;
#[cfg(feature = "otlp")]
use crate::server::trace::otlp;

/// Whether the log is JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// What sends spans; when dropped, the last ones are sent.
pub struct Spans {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// Starts the log, whose lines go to `stderr`, and the sending of spans where the environment asks for it.
///
/// # Errors
/// When the environment asks for what cannot be.
pub fn start(effective: &Effective, stderr: LineQueue) -> Result<Spans, String> {
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
        // The span says what the log's line does.
        let off = format!("{}=off", otlp::TARGET).parse().map_err(|e| format!("{e}"))?;
        subscriber.with(lines.with_filter(filter.add_directive(off))).with(otlp::layer(provider)).init();
        warn(effective);
        return Ok(spans);
    }
    subscriber.with(lines).with(filter).init();
    warn(effective);
    Ok(spans)
}

/// Tells the readers of a log that lines are missing from it.
pub fn report_dropped(lines: u64) {
    tracing::warn!(lines, "log lines were dropped, because standard error was not read");
}

/// A panic becomes a line of the log. The standard library's own report is written by the thread that panics, which would
/// wait for the log's reader.
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

/// Says why the server ends: as a line of the log where programs read it, else in the words of all commands. No level of
/// the log hides it.
pub fn fatal(failure: &Failure, mut stderr: LineQueue) {
    let Some(message) = failure.message() else { return };
    if JSON.load(Ordering::Relaxed) && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{message}");
    } else {
        let _ = stderr.write_all(format!("error: {message}\n").as_bytes());
    }
}

fn warn(effective: &Effective) {
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
