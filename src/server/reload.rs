//! Reloading the configuration without failing a request: at SIGHUP, or when the configuration file or a file that it
//! names has changed.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use crate::config::error::ConfigError;
use crate::config::{Config, settings};
use crate::registry;
use crate::server::observe::metrics::{REFUSED, RELOADED};
use crate::server::router::active::ActiveRoutes;
use crate::server::socket::systemd;
use crate::server::state::ServerState;
use crate::stamp::Stamp;

/// The signal to reload the configuration.
pub trait Hangup {
    fn recv(&mut self) -> impl Future<Output = ()> + Send;
}

/// Listens for SIGHUP. On systems without SIGHUP the signal never arrives.
///
/// # Errors
/// If the system refuses the signal handler.
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

/// Reloads the configuration with `read` at each `hangup`. If `server.reload_interval` is set, also checks at that
/// interval whether `file` or a file that it names has changed. Never returns. A configuration that cannot be served is
/// refused, and the log says why.
pub async fn watch<R>(active: ActiveRoutes, mut hangup: impl Hangup, file: Option<&Path>, read: R)
where
    R: Fn() -> Result<Config, ConfigError> + Clone + Send + 'static,
{
    let mut state = active.state();
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
                                // A file that is still being written is not read: a change counts only once two checks
                                // find the same files.
                if now == seen || settling.replace(now.clone()).as_ref() != Some(&now) {
                    continue;
                }
            }
        }
        settling = None;
        seen = stamp(&state.config, file);
        systemd::reloading();
        let reloaded = reload(&active, &state, read.clone()).await;
        systemd::ready();
        match reloaded {
            Ok(next) => {
                next.process.metrics.reloaded(RELOADED);
                state = next;
                seen = stamp(&state.config, file);
            }
            Err(error) => {
                state.process.metrics.reloaded(REFUSED);
                tracing::error!("the new configuration is refused, and the old one stays in use: {error}");
                check_files(&state);
            }
        }
    }
}

async fn reload(
    active: &ActiveRoutes,
    state: &ServerState,
    read: impl Fn() -> Result<Config, ConfigError> + Send + 'static,
) -> Result<Arc<ServerState>, Box<dyn std::error::Error + Send + Sync>> {
    // Reading files and their headers can be slow, and this thread also accepts connections.
    let config = tokio::task::spawn_blocking(read).await??;
    for setting in settings::needing_restart(&state.config, &config) {
        tracing::warn!("{setting} has changed; restart the server for the change to take effect");
    }
    let next = Arc::new(state.with_config(config)?);
    let to_load = next.registry.loading().len();
    next.load().await?;
    active.activate(&next);
    tracing::info!(models = next.registry.models().len(), loaded = to_load, "configuration reloaded");
    Ok(next)
}

/// Finds models whose files were overwritten in place. The models read these files directly, so their requests are
/// answered with an error until a reload succeeds.
fn check_files(state: &ServerState) {
    for entry in state.registry.models() {
        if let Some(damage) = entry.embedder().and_then(|embedder| embedder.check_file()) {
            tracing::error!(
                model = entry.id(),
                "{damage}; requests for it are answered with 503 until the model can be loaded again. \
                 Write a new checkpoint to another path and rename it into place"
            );
        }
    }
}

/// Returns the stamp of the configuration file and all files that the configuration names.
fn stamp(config: &Config, file: Option<&Path>) -> Stamp {
    let server = &config.server;
    let named = [&server.api_key_file, &server.tls_cert, &server.tls_key].into_iter().filter_map(Option::as_deref);
    Stamp::new(file.into_iter().chain(named).chain(config.models.iter().flat_map(registry::files)))
}
