//! Rate limits of API keys: a token bucket of requests and one of tokens, per minute.
//!
//! A bucket starts full, holds what one minute allows, and refills at a constant rate. It is stored as the time at
//! which it will be full again. Taking from the bucket moves that time later; if it is more than a minute away, the
//! level is below zero. Because times are stored and not levels, a reload that changes a rate keeps the used share of
//! the minute.
//!
//! For example, with 60 requests per minute a request costs 1 s. Ten requests at once move the time at which the bucket
//! is full to 10 s from now, which leaves 50 requests; after 4 s it holds 54.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::keys::{KeyRates, Keys};
use crate::server::error::ApiError;

/// One minute in nanoseconds.
const MINUTE: u64 = 60_000_000_000;

/// What a rate limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitedResource {
    Requests,
    Tokens,
}

impl LimitedResource {
    /// Returns the `type` that OpenAI's errors have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// A key has reached a rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateExceeded {
    pub resource: LimitedResource,
    limit: u64,
    /// What the key has used of the limit; more than the limit if the bucket's level is below zero.
    used: u64,
    pub wait: Duration,
}

impl fmt::Display for RateExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, used, .. } = self;
        let (unit, requested) = match self.resource {
            LimitedResource::Requests => ("requests per min (RPM)", "1"),
            // The body has not been read, so the number of tokens is not known.
            LimitedResource::Tokens => ("tokens per min (TPM)", "1 or more"),
        };
        let wait = format_duration(self.wait);
        write!(
            f,
            "Rate limit reached for this API key on {unit}: Limit {limit}, Used {used}, Requested {requested}. Please try \
             again in {wait}."
        )
    }
}

impl From<RateExceeded> for ApiError {
    fn from(exceeded: RateExceeded) -> Self {
        Self::key_rate_limit(exceeded.resource.name(), exceeded.to_string(), exceeded.wait)
    }
}

/// One request has more tokens than its key may use in a whole minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyTokens {
    limit: u64,
    requested: u64,
}

impl fmt::Display for TooManyTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, requested } = self;
        write!(
            f,
            "Request too large for this API key on tokens per min (TPM): Limit {limit}, Requested {requested}. Retrying does \
             not help: send fewer or shorter inputs in one request."
        )
    }
}

impl From<TooManyTokens> for ApiError {
    fn from(error: TooManyTokens) -> Self {
        Self::too_many_tokens_for_key(error.to_string())
    }
}

/// One token bucket of one key.
#[derive(Debug, Default)]
struct TokenBucket {
    /// The time at which the bucket is full again, in nanoseconds since its [`KeyBuckets`] began.
    full_at: AtomicU64,
}

impl TokenBucket {
    /// Takes `count` if the level stays at or above zero. Otherwise returns how long it takes until that is possible.
    fn take(&self, count: u64, limit: NonZeroU64, now: u64) -> Result<(), Duration> {
        let cost = cost(count, limit);
        let take = |full_at: u64| {
            let next = full_at.max(now).saturating_add(cost);
            (next <= now.saturating_add(MINUTE)).then_some(next)
        };
        match self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(full_at) => Err(wait(full_at, cost, now)),
        }
    }

    /// Like [`TokenBucket::take`], without taking anything.
    fn check(&self, count: u64, limit: NonZeroU64, now: u64) -> Result<(), Duration> {
        let wait = wait(self.full_at.load(Ordering::Relaxed), cost(count, limit), now);
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Takes `count` even if the level falls below zero.
    fn charge(&self, count: u64, limit: NonZeroU64, now: u64) {
        let charge = |full_at: u64| Some(full_at.max(now).saturating_add(cost(count, limit)));
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge);
    }

    /// Returns the time until the bucket is full, in nanoseconds.
    fn reset(&self, now: u64) -> u64 {
        self.full_at.load(Ordering::Relaxed).saturating_sub(now)
    }

    /// Returns how many can be taken now.
    fn remaining(&self, limit: NonZeroU64, now: u64) -> u64 {
        refilled(MINUTE.saturating_sub(self.reset(now)), limit)
    }

    /// Returns how many have been taken and not refilled, rounded up.
    fn used(&self, limit: NonZeroU64, now: u64) -> u64 {
        let reset = self.reset(now);
        if reset <= MINUTE {
            return limit.get().saturating_sub(self.remaining(limit, now));
        }
        limit.get().saturating_add(refilled(reset.saturating_sub(MINUTE), limit))
    }
}

/// Returns the nanoseconds in which a bucket refills by `count`, rounded down, so that a full bucket always holds its
/// limit.
fn cost(count: u64, limit: NonZeroU64) -> u64 {
    let nanoseconds = u128::from(count) * u128::from(MINUTE) / u128::from(limit.get());
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
}

/// Returns by how many a bucket refills in that many nanoseconds.
fn refilled(nanoseconds: u64, limit: NonZeroU64) -> u64 {
    let count = u128::from(nanoseconds) * u128::from(limit.get()) / u128::from(MINUTE);
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn wait(full_at: u64, cost: u64, now: u64) -> Duration {
    let full_at = full_at.max(now).saturating_add(cost);
    Duration::from_nanos(full_at.saturating_sub(now.saturating_add(MINUTE)))
}

/// The buckets of one key.
#[derive(Debug)]
struct KeyBuckets {
    began: Instant,
    requests: TokenBucket,
    tokens: TokenBucket,
}

/// The buckets of all keys that have a rate limit, by the digest of the key.
#[derive(Clone, Default)]
pub struct KeyUsage(Arc<HashMap<[u8; 32], Arc<KeyBuckets>>>);

impl KeyUsage {
    /// Returns the buckets for `keys`, the keys of a new configuration. Keys that were there before keep their buckets;
    /// keys that are gone, or no longer have a limit, are forgotten.
    #[must_use]
    pub fn for_keys(&self, keys: &Keys, now: Instant) -> Self {
        let usage = keys.iter().filter(|key| key.rates().is_limited()).map(|key| {
            let new = || {
                Arc::new(KeyBuckets { began: now, requests: TokenBucket::default(), tokens: TokenBucket::default() })
            };
            (*key.digest(), self.0.get(key.digest()).map_or_else(new, Arc::clone))
        });
        Self(Arc::new(usage.collect()))
    }

    /// Returns the limiter of a key, if the key has rate limits.
    pub fn limiter(&self, digest: &[u8; 32], rates: KeyRates) -> Option<KeyLimiter> {
        self.0.get(digest).map(|usage| KeyLimiter { rates, usage: Arc::clone(usage) })
    }
}

/// Enforces the rate limits of one key.
#[derive(Debug)]
pub struct KeyLimiter {
    rates: KeyRates,
    usage: Arc<KeyBuckets>,
}

impl KeyLimiter {
    /// Returns whether the key's tokens are limited.
    pub fn limits_tokens(&self) -> bool {
        self.rates.tokens.is_some()
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.usage.began).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes one request. Its number of tokens is known only after tokenizing, so here at least one token must be left.
    /// A refused request takes nothing.
    ///
    /// # Errors
    /// If the key has to wait.
    pub fn take_request(&self, now: Instant) -> Result<(), RateExceeded> {
        let now = self.at(now);
        let exceeded = |resource, bucket: &TokenBucket, limit: NonZeroU64, wait| RateExceeded {
            resource,
            limit: limit.get(),
            used: bucket.used(limit, now),
            wait,
        };
        let KeyBuckets { requests, tokens, .. } = &*self.usage;
        if let Some(limit) = self.rates.tokens {
            tokens.check(1, limit, now).map_err(|wait| exceeded(LimitedResource::Tokens, tokens, limit, wait))?;
        }
        if let Some(limit) = self.rates.requests {
            requests.take(1, limit, now).map_err(|wait| exceeded(LimitedResource::Requests, requests, limit, wait))?;
        }
        Ok(())
    }

    /// Charges the tokens of an accepted request, even if the bucket's level falls below zero.
    ///
    /// # Errors
    /// If they are more than a whole minute allows. Nothing is charged then.
    pub fn charge_tokens(&self, count: u64, now: Instant) -> Result<(), TooManyTokens> {
        let Some(limit) = self.rates.tokens else { return Ok(()) };
        if count > limit.get() {
            return Err(TooManyTokens { limit: limit.get(), requested: count });
        }
        self.usage.tokens.charge(count, limit, self.at(now));
        Ok(())
    }

    /// Adds the key's limits, and what is left of them, to a response, in the headers of OpenAI's API.
    pub fn describe(&self, headers: &mut HeaderMap, now: Instant) {
        let now = self.at(now);
        let of =
            [(self.rates.requests, &self.usage.requests, REQUESTS), (self.rates.tokens, &self.usage.tokens, TOKENS)];
        for (limit, bucket, [limit_name, remaining, reset]) in of {
            let Some(limit) = limit else { continue };
            headers.insert(limit_name, HeaderValue::from(limit.get()));
            headers.insert(remaining, HeaderValue::from(bucket.remaining(limit, now)));
            if let Ok(value) = HeaderValue::try_from(format_duration(Duration::from_nanos(bucket.reset(now)))) {
                headers.insert(reset, value);
            }
        }
    }
}

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Formats a time as OpenAI does: `20ms`, `8.64s`, `6m0s`. It is rounded up, so that a client does not come back too
/// early.
fn format_duration(time: Duration) -> String {
    let milliseconds = time.as_nanos().div_ceil(1_000_000);
    if (1..1000).contains(&milliseconds) {
        return format!("{milliseconds}ms");
    }
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ApiKeys;

    fn keys(entry: &str) -> Keys {
        Keys::read(&ApiKeys::new([entry]), None).unwrap()
    }

    fn limiter(usage: &KeyUsage, keys: &Keys) -> KeyLimiter {
        let key = keys.iter().next().unwrap();
        usage.limiter(key.digest(), key.rates()).unwrap()
    }

    /// Returns the limiter of a key with these options, created at `start`.
    fn of(options: &str, start: Instant) -> KeyLimiter {
        let keys = keys(&format!("k {options}"));
        limiter(&KeyUsage::default().for_keys(&keys, start), &keys)
    }

    fn headers(limiter: &KeyLimiter, now: Instant) -> Vec<String> {
        let mut headers = HeaderMap::new();
        limiter.describe(&mut headers, now);
        let names = REQUESTS.into_iter().chain(TOKENS);
        names.map(|name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned()).collect()
    }

    #[test]
    fn a_full_bucket_can_be_used_at_once_and_refills_evenly() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let limiter = of("requests_per_minute=60", start);
        assert_eq!(headers(&limiter, start), ["60", "60", "0s", "", "", ""]);
        for _ in 0..60 {
            assert_eq!(limiter.take_request(start), Ok(()));
        }
        assert_eq!(headers(&limiter, start), ["60", "0", "1m0s", "", "", ""]);
        let refused = limiter.take_request(at(250)).unwrap_err();
        assert_eq!((refused.resource, refused.wait.as_millis()), (LimitedResource::Requests, 750));
        assert_eq!(
            refused.to_string(),
            "Rate limit reached for this API key on requests per min (RPM): Limit 60, Used 60, Requested 1. Please try again \
             in 750ms."
        );
        assert_eq!(limiter.take_request(at(1000)), Ok(()), "what is refused takes nothing");
        assert!(limiter.take_request(at(1999)).is_err());
        assert_eq!(limiter.take_request(at(2000)), Ok(()));
        assert!(limiter.take_request(at(1000)).is_err(), "a clock that goes backwards gives nothing");
        assert_eq!(headers(&limiter, at(32_000)), ["60", "30", "30s", "", "", ""]);
        let later = at(3_600_000);
        assert_eq!(
            (0..100).filter(|_| limiter.take_request(later).is_ok()).count(),
            60,
            "never more than a minute's worth"
        );
    }

    #[test]
    fn a_full_bucket_holds_exactly_its_limit() {
        let start = Instant::now();
        for limit in [1, 2, 3, 7, 11, 997, 59_999] {
            let limiter = of(&format!("requests_per_minute={limit} tokens_per_minute={limit}"), start);
            let taken = (0..limit + 2).filter(|_| limiter.take_request(start).is_ok()).count();
            assert_eq!(taken, limit);
            assert_eq!(limiter.charge_tokens(limit as u64 - 1, start), Ok(()));
            assert_eq!(headers(&limiter, start)[4], "1", "{limit}");
        }
    }

    #[test]
    fn tokens_are_charged_below_zero_and_the_next_request_waits() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let limiter = of("tokens_per_minute=600 requests_per_minute=10", start);
        assert_eq!((limiter.take_request(start), limiter.charge_tokens(550, start)), (Ok(()), Ok(())));
        assert_eq!(headers(&limiter, start), ["10", "9", "6s", "600", "50", "55s"]);
        assert_eq!((limiter.take_request(start), limiter.charge_tokens(100, start)), (Ok(()), Ok(())));
        assert_eq!(headers(&limiter, start), ["10", "8", "12s", "600", "0", "1m5s"]);
        let refused = limiter.take_request(start).unwrap_err();
        assert_eq!((refused.resource, refused.wait), (LimitedResource::Tokens, Duration::from_millis(5100)));
        assert_eq!(
            refused.to_string(),
            "Rate limit reached for this API key on tokens per min (TPM): Limit 600, Used 650, Requested 1 or more. Please \
             try again in 5.1s."
        );
        assert!(limiter.take_request(at(5099)).is_err());
        assert_eq!(headers(&limiter, at(5099))[1], "8", "what is refused takes no request");
        assert_eq!(limiter.take_request(at(5100)), Ok(()));
    }

    #[test]
    fn more_tokens_than_the_limit_are_refused_and_not_charged() {
        let start = Instant::now();
        let limiter = of("tokens_per_minute=600", start);
        let error = limiter.charge_tokens(601, start).unwrap_err().to_string();
        assert!(error.contains("Limit 600, Requested 601") && error.contains("Retrying does not help"), "{error}");
        assert_eq!(headers(&limiter, start), ["", "", "", "600", "600", "0s"]);
        assert_eq!(limiter.charge_tokens(600, start), Ok(()));
        assert_eq!(of("requests_per_minute=1", start).charge_tokens(u64::MAX, start), Ok(()), "no limit of tokens");
    }

    #[test]
    fn a_reload_keeps_the_usage_of_keys_that_still_have_a_limit() {
        let start = Instant::now();
        let (before, other) = (keys("k requests_per_minute=10"), keys("other requests_per_minute=10"));
        let usage = KeyUsage::default().for_keys(&before, start);
        for _ in 0..5 {
            assert_eq!(limiter(&usage, &before).take_request(start), Ok(()));
        }
        let digest = "sha256:8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a";
        for (entry, remaining) in [
            ("k name=renamed m requests_per_minute=10", "5"),
            (&format!("{digest} requests_per_minute=10"), "5"),
            // The used share of the minute stays the same.
            ("k requests_per_minute=100", "50"),
            ("k requests_per_minute=2", "1"),
            ("other requests_per_minute=10", "10"),
        ] {
            let after = keys(entry);
            let later = start + Duration::from_nanos(1);
            assert_eq!(headers(&limiter(&usage.for_keys(&after, later), &after), start)[1], remaining, "{entry}");
        }
        assert_eq!(usage.for_keys(&keys("k name=n"), start).0.len(), 0);
        let back = usage.for_keys(&other, start).for_keys(&before, start);
        assert_eq!(headers(&limiter(&back, &before), start)[1], "10");
        assert_eq!(back.0.len(), 1, "as many as there are keys with rates");
    }

    #[test]
    fn durations_are_formatted_as_by_openai() {
        for (milliseconds, text) in [
            (0, "0s"),
            (1, "1ms"),
            (20, "20ms"),
            (999, "999ms"),
            (1000, "1s"),
            (8640, "8.64s"),
            (10_000, "10s"),
            (59_999, "59.999s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (430_500, "7m10.5s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!(format_duration(Duration::from_micros(1)), "1ms");
    }
}
