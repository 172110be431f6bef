//! Another configuration in the place of the one that is served, without a request that fails: at SIGHUP, or when the
//! files that it names have changed.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use super::metrics::{REFUSED, RELOADED};
use super::{Searches, State, systemd};
use crate::config::Config;
use crate::config::layers::ConfigError;
use crate::registry;
use crate::stamp::Stamp;

/// A signal that the configuration is to be read again.
pub trait Hangup {
    fn recv(&mut self) -> impl Future<Output = ()> + Send;
}

/// SIGHUP. Where there is none, never.
///
/// # Errors
/// When the system refuses the signal handler.
pub fn hangup() -> std::io::Result<impl Hangup> {
    #[cfg(unix)]
    {
        struct Signal(tokio::signal::unix::Signal);
        impl Hangup for Signal {
            async fn recv(&mut self) {
                if self.0.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
            }
        }
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).map(Signal)
    }
    #[cfg(not(unix))]
    {
        struct Never;
        impl Hangup for Never {
            async fn recv(&mut self) {
                std::future::pending::<()>().await;
            }
        }
        Ok(Never)
    }
}

/// Reads the configuration again by `read` at each `hangup`, and, every `server.reload_interval`, when `file` or a file
/// that it names is another than before; for ever. What cannot be served is refused, and the log says why.
pub async fn watch<R>(mut state: Arc<State>, mut hangup: impl Hangup, file: Option<&Path>, read: R)
where
    R: Fn() -> Result<Config, ConfigError> + Clone + Send + 'static,
{
    let mut seen = stamp(&state.config, file);
    let mut settling = None;
    loop {
        let interval = state.config.server.reload_interval.0;
        let tick = async {
            if interval.is_zero() { std::future::pending().await } else { tokio::time::sleep(interval).await }
        };
        tokio::select! {
            () = hangup.recv() => {}
            () = tick => {
                let now = stamp(&state.config, file);
                // What still changes is looked at again: a file that is being written is not read.
                if now == seen || settling.replace(now.clone()).as_ref() != Some(&now) {
                    continue;
                }
            }
        }
        settling = None;
        seen = stamp(&state.config, file);
        systemd::reloading();
        let reloaded = reload(&state, read.clone()).await;
        systemd::ready();
        match reloaded {
            Ok((next, searches)) => {
                next.metrics.reloaded(RELOADED);
                state = next;
                seen = stamp(&state.config, file);
                let quickening = Arc::clone(&state);
                tokio::spawn(async move { quickening.quicken(searches).await });
            }
            Err(error) => {
                state.metrics.reloaded(REFUSED);
                tracing::error!("the new configuration is refused; the old one stays in use: {error}");
                state.check_files();
            }
        }
    }
}

async fn reload(
    state: &State,
    read: impl Fn() -> Result<Config, ConfigError> + Send + 'static,
) -> Result<(Arc<State>, Searches), Box<dyn std::error::Error + Send + Sync>> {
    // Files and their headers are read, on a disk that may be slow: this thread accepts connections meanwhile.
    let config = tokio::task::spawn_blocking(read).await??;
    for (setting, fixed) in [
        ("server.host", config.server.host == state.config.server.host),
        ("server.port", config.server.port == state.config.server.port),
        ("server.threads", config.server.threads == state.config.server.threads),
        ("server.max_connections", config.server.max_connections == state.config.server.max_connections),
        ("log.level", config.log.level == state.config.log.level),
        ("log.format", config.log.format == state.config.log.format),
    ] {
        if !fixed {
            tracing::warn!("{setting} has changed, which takes a restart to take effect");
        }
    }
    let next = Arc::new(state.next(config)?);
    let to_load = next.registry.loading().len();
    let searches = next.load().await?;
    next.take_over();
    tracing::info!(models = next.registry.models().len(), loaded = to_load, "configuration reloaded");
    Ok((next, searches))
}

impl State {
    /// Finds the models whose files were overwritten in place. They are served from those files and not from what was
    /// loaded, so they answer with an error until a reload succeeds.
    fn check_files(&self) {
        for entry in self.registry.models() {
            if let Some(damage) = entry.embedder().and_then(|embedder| embedder.check_file()) {
                tracing::error!(
                    model = entry.id(),
                    "{damage}; its requests are answered with 503 until the model can be loaded again. \
                     Write a new checkpoint beside it and rename it into place"
                );
            }
        }
    }
}

/// Of all files that a configuration comes from and names.
fn stamp(config: &Config, file: Option<&Path>) -> Stamp {
    let server = &config.server;
    let named = [&server.api_key_file, &server.tls_cert, &server.tls_key].into_iter().filter_map(Option::as_deref);
    Stamp::of(file.into_iter().chain(named).chain(config.models.iter().flat_map(registry::files)))
}
