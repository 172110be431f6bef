//! The loop that accepts connections, also when the process has no file descriptors left.

use std::future::Future;
use std::io::ErrorKind;
use std::time::Duration;

use super::connection::Connections;
use super::descriptors::SpareDescriptor;
use super::listen::Listeners;
use crate::server::observe::throttle::Throttle;

/// The delay before accepting connections again after the system refused to accept one.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Accepts connections until `until` resolves.
pub async fn accept(listeners: &Listeners, connections: &Connections<'_>, until: impl Future<Output = ()>) {
    let mut until = std::pin::pin!(until);
    let (mut spare, failures) = (SpareDescriptor::new(), Throttle::new(Duration::from_secs(1)));
    loop {
        let accepted = tokio::select! {
            accepted = listeners.accept() => accepted,
            () = &mut until => break,
        };
        let error = match accepted {
            Ok((socket, peer)) => {
                connections.serve(socket, peer).await;
                continue;
            }
            Err(error) => error,
        };
        // The client closed the connection before it was accepted, or a signal interrupted the call.
        if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted) {
            tracing::debug!(%error, "a connection was lost before it was accepted");
            continue;
        }
        if let Some(count) = failures.event() {
            tracing::error!(%error, count, "cannot accept connections");
        }
        // The process is most likely out of file descriptors. The spare one is used to accept a connection and to
        // answer it with an error.
        if spare.close()
            && let Ok(Ok((socket, _))) = tokio::time::timeout(ACCEPT_RETRY_DELAY, listeners.accept()).await
        {
            connections.refuse(socket).await;
        }
        // Connections that are already open need time to finish.
        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
        spare.reopen();
    }
}
