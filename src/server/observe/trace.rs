//! W3C trace context: the trace of a request is logged and returned, and the feature `otlp` continues it with a span.

use axum::http::{HeaderMap, HeaderValue, Method};

/// The header `00-TRACE-PARENT-FLAGS` in hexadecimal (<https://www.w3.org/TR/trace-context/#traceparent-header>).
/// Responses have it too, so that a client without a trace of its own learns the trace of its request.
pub const TRACE_PARENT: &str = "traceparent";

/// The trace that a request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace(HeaderValue);

impl Trace {
    /// Returns the trace that the client sent. An invalid header counts as none.
    fn sent(headers: &HeaderMap) -> Option<Self> {
        let header = headers.get(TRACE_PARENT)?;
        let mut parts = header.to_str().ok()?.split('-');
        let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let mut part = |length: usize| parts.next().filter(|part| part.len() == length && part.bytes().all(is_hex));
        let version = part(2)?;
        for length in [32, 16] {
            part(length).filter(|id| id.bytes().any(|b| b != b'0'))?;
        }
        part(2)?;
        // Later versions may add parts, version 00 has none to add, and version ff is never valid.
        (version != "ff" && (version != "00" || parts.next().is_none())).then(|| Self(header.clone()))
    }

    /// Returns the ID of the trace: 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        self.0.to_str().ok().and_then(|text| text.get(3..35)).unwrap_or_default()
    }

    pub fn into_header(self) -> HeaderValue {
        self.0
    }
}

/// Returns the span around a request, and the trace that the request belongs to. Without the feature `otlp`, or without
/// an endpoint for spans, there is no span.
#[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "what a span is made of"))]
pub fn begin(headers: &HeaderMap, method: &Method, route: &str) -> (tracing::Span, Option<Trace>) {
    let sent = Trace::sent(headers);
    #[cfg(feature = "otlp")]
    {
        otlp::span(sent, method, route)
    }
    #[cfg(not(feature = "otlp"))]
    (tracing::Span::none(), sent)
}

#[cfg(feature = "otlp")]
pub mod otlp {
    //! Sends spans to an OpenTelemetry collector.

    use axum::http::{HeaderValue, Method};
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_otlp::SpanExporter;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::Subscriber;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::filter_fn;
    use tracing_subscriber::registry::LookupSpan;

    use super::Trace;
    use crate::config::error::ConfigError;

    /// The target of the spans, by which the log leaves them out.
    pub const TARGET: &str = "embedding_server::trace";

    /// The environment variables that enable spans. OpenTelemetry's other variables apply too.
    const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

    /// Returns the provider that sends spans, if the environment names an endpoint. Shutting it down sends the last
    /// spans.
    ///
    /// # Errors
    /// If the environment's settings do not make a valid exporter.
    pub fn provider() -> Result<Option<SdkTracerProvider>, ConfigError> {
        if !ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().build().map_err(|e| {
            ConfigError::value(format!("spans cannot be sent: {e}; check the OTEL_EXPORTER_OTLP_ variables"))
        })?;
        let resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => resource,
            None => resource.with_service_name("embedding-server"),
        };
        Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build()))
    }

    /// Returns the tracing layer that hands the spans of requests to the provider.
    pub fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let tracer = provider.tracer("embedding-server");
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_filter(filter_fn(|metadata| metadata.target() == TARGET))
    }

    /// Does what [`super::begin`] describes.
    pub fn span(sent: Option<Trace>, method: &Method, route: &str) -> (tracing::Span, Option<Trace>) {
        let span = tracing::info_span!(
            target: TARGET,
            "request",
            otel.name = format_args!("{method} {route}"),
            otel.kind = "server",
            http.request.method = %method,
            http.route = route,
            http.response.status_code = tracing::field::Empty,
            model = tracing::field::Empty,
            inputs = tracing::field::Empty,
            tokens = tracing::field::Empty,
            stages = tracing::field::Empty,
        );
        if span.is_disabled() {
            return (span, sent);
        }
        if let Some(parent) = sent.as_ref().and_then(remote) {
            // This fails only for a span that has already begun, or without the layer.
            let _ = span.set_parent(Context::new().with_remote_span_context(parent));
        }
        let context = span.context();
        let own = context.span().span_context().clone();
        let header = format!("00-{}-{}-{:02x}", own.trace_id(), own.span_id(), own.trace_flags().to_u8());
        let trace = HeaderValue::try_from(header).ok().filter(|_| own.is_valid()).map(Trace);
        (span, trace.or(sent))
    }

    fn remote(trace: &Trace) -> Option<SpanContext> {
        let mut parts = trace.0.to_str().ok()?.split('-').skip(1);
        let trace_id = TraceId::from_hex(parts.next()?).ok()?;
        let span_id = SpanId::from_hex(parts.next()?).ok()?;
        let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
        Some(SpanContext::new(trace_id, span_id, flags, true, TraceState::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(header: &str) -> Option<String> {
        let headers = HeaderMap::from_iter([(TRACE_PARENT.parse().unwrap(), HeaderValue::from_str(header).unwrap())]);
        Trace::sent(&headers).map(|trace| trace.id().to_owned())
    }

    /// The cases are the examples of the specification, and what it forbids.
    #[test]
    fn only_a_valid_traceparent_is_accepted() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(id(&format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(), Some(trace));
        assert_eq!(id(&format!("cc-{trace}-00f067aa0ba902b7-01-what-the-future-will-be-like")).as_deref(), Some(trace));
        for wrong in [
            format!("00-{trace}-00f067aa0ba902b7-01-more"),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            format!("00-{trace}-00f067aa0ba902b7"),
            format!("00-{trace}-00f067aa0ba902b-01"),
            String::new(),
        ] {
            assert_eq!(id(&wrong), None, "{wrong}");
        }
    }
}
