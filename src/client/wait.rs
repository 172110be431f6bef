//! Reads the time that a server asks a client to wait.

use std::time::{Duration, SystemTime};

use ureq::http::HeaderMap;

/// Returns the wait that the headers ask for: `retry-after-ms` as OpenAI's SDKs read it, or `retry-after` in seconds or
/// as a date (RFC 9110, section 10.2.3).
pub fn asked_for(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1e3).or_else(|| number("retry-after"));
    if let Some(wait) = seconds {
        return Duration::try_from_secs_f64(wait).ok();
    }
    let date = httpdate::parse_http_date(text("retry-after")?).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_every_form() {
        let waited = |pairs: &[(&'static str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            asked_for(&pairs.collect::<HeaderMap>())
        };
        assert_eq!(waited(&[("retry-after", "3")]), Some(Duration::from_secs(3)));
        assert_eq!(waited(&[("retry-after", "0.25")]), Some(Duration::from_millis(250)));
        assert_eq!(waited(&[("retry-after", "3"), ("retry-after-ms", "20")]), Some(Duration::from_millis(20)));
        assert_eq!(waited(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), Some(Duration::ZERO));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(waited(&[("retry-after", &later)]).is_some_and(|wait| (95..=100).contains(&wait.as_secs())));
        for nothing in ["", "soon", "-1", "NaN", "1e99"] {
            assert_eq!(waited(&[("retry-after", nothing)]), None, "{nothing:?}");
        }
    }
}
