//! What all requests share: the in-flight budget, the rate limits of API keys, and the certificate.

pub mod admission;
#[cfg(feature = "tls")]
pub mod certificate;
pub mod clients;
pub mod rates;
