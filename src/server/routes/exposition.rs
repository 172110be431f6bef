//! The two text formats of /metrics. The metrics are encoded as OpenMetrics; the older Prometheus text format is
//! derived from that text.

use std::borrow::Cow;
use std::fmt::Write;

use crate::server::request::accept::Accept;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4, which every metrics reader knows.
    Text,
    OpenMetrics,
}

impl Format {
    pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Returns OpenMetrics if the client prefers it or does not accept the text format, and otherwise the text format.
    pub fn negotiate(accept: &Accept<'_>) -> Self {
        let openmetrics = accept.preference("application", "openmetrics-text", Some("1.0.0"));
        let text = accept.preference("text", "plain", Some("0.0.4"));
        // If the client names both with the same quality, the richer format is used.
        let wins = openmetrics > text || (openmetrics == text && openmetrics.is_named());
        if wins { Self::OpenMetrics } else { Self::Text }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => Self::TEXT,
            Self::OpenMetrics => Self::OPENMETRICS,
        }
    }

    /// Converts `openmetrics` into this format.
    pub fn write(self, openmetrics: String) -> String {
        match self {
            Self::Text => text_format(&openmetrics),
            Self::OpenMetrics => openmetrics,
        }
    }
}

/// Converts OpenMetrics to the text format, in which HELP and TYPE use the sample names with their suffixes, and which
/// has fewer metric types.
fn text_format(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            let (name, kind) = match kind {
                "counter" => (Cow::from(format!("{name}_total")), kind),
                "info" => (Cow::from(format!("{name}_info")), "gauge"),
                "unknown" => (Cow::from(name), "untyped"),
                _ => (Cow::from(name), kind),
            };
            if let Some((_, help)) = help.take() {
                // Writing to a string does not fail.
                let _ = writeln!(text, "# HELP {name} {help}");
            }
            let _ = writeln!(text, "# TYPE {name} {kind}");
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::http::header::ACCEPT;
    use axum::http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn openmetrics_is_chosen_if_the_client_prefers_it() {
        const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (PROMETHEUS, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0, */*", Format::OpenMetrics),
            ("application/openmetrics-text, text/plain", Format::OpenMetrics),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.4", Format::OpenMetrics),
            ("application/*", Format::OpenMetrics),
            ("text/plain;q=0, */*", Format::OpenMetrics),
            ("*/*", Format::Text),
            ("text/plain;version=0.0.4", Format::Text),
            ("text/plain;version=0.0.4;q=0.5, application/openmetrics-text;q=0.4", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=0, */*;q=0.1", Format::Text),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("application/openmetrics-text;q=0.5, */*", Format::Text),
            ("application/json", Format::Text),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Format::Text),
            ("", Format::Text),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(Format::negotiate(&Accept::new(&headers)), format, "{accept:?}");
        }
        assert_eq!(Format::negotiate(&Accept::new(&HeaderMap::new())), Format::Text);
    }

    #[test]
    fn the_text_format_uses_sample_names_in_type_lines() {
        let openmetrics = "# HELP a Requests.\n# TYPE a counter\n# UNIT a seconds\na_total{b=\"# TYPE\"} 1\n\
                           # HELP c What runs.\n# TYPE c info\nc_info{d=\"e\"} 1\n# TYPE f unknown\nf 2\n\
                           # HELP g Open.\n# TYPE g gauge\ng -1\n# EOF\n";
        let text = "# HELP a_total Requests.\n# TYPE a_total counter\na_total{b=\"# TYPE\"} 1\n\
                    # HELP c_info What runs.\n# TYPE c_info gauge\nc_info{d=\"e\"} 1\n# TYPE f untyped\nf 2\n\
                    # HELP g Open.\n# TYPE g gauge\ng -1\n";
        assert_eq!(text_format(openmetrics), text);
    }
}
