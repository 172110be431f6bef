//! The log on stderr, and with the feature `otlp` the spans beside it.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::LogFormat;
use crate::config::layers::Effective;
#[cfg(feature = "otlp")]
use crate::server::trace::otlp;

/// What sends spans; when dropped, the last ones are sent.
pub struct Spans {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// Starts the log, and the sending of spans where the environment asks for it.
///
/// # Errors
/// When the environment asks for what cannot be.
pub fn start(effective: &Effective) -> Result<Spans, String> {
    let log = &effective.config.log;
    let filter = EnvFilter::builder().parse_lossy(&log.level);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
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
