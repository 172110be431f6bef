//! The settings of HTTP/1.1 and HTTP/2 that all connections share.

use std::time::Duration;

use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto;

use crate::server::state::clients::StreamExecutor;

/// Returns the builder of connections whose clients send the head of each request within `header_timeout`.
pub fn builder(header_timeout: Duration) -> auto::Builder<StreamExecutor> {
    let mut builder = auto::Builder::new(StreamExecutor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout);
    // This finds clients that disappeared without closing the connection while no request would notice it.
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(header_timeout);
    builder
}
