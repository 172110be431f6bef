//! `embedding-server serve`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{ServeArgs, config_error, log, missing_path};
use crate::config::Config;
use crate::config::layers::{self, ConfigError};
use crate::server::reload::{self, Hangup};
use crate::server::{self, State};

pub fn run(args: &ServeArgs) -> ExitCode {
    let effective = match args.effective() {
        Ok(effective) => effective,
        Err(code) => return code,
    };
    if let Some(missing) = missing_path(&effective.config.models) {
        return config_error(&missing);
    }
    let _spans = match log::start(&effective) {
        Ok(spans) => spans,
        Err(error) => return config_error(&error),
    };
    // A connection is a descriptor, and the usual soft limit is 1024.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let state = match State::new(effective.config) {
        Ok(state) => Arc::new(state),
        Err(error) => return config_error(&error),
    };
    // Accepts and loads; connections have threads of their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let code = runtime.block_on(serve(state, args.clone())).unwrap_or_else(|error| failed(&error));
    // What is still open was cut at the drain deadline: nothing to wait for.
    runtime.shutdown_background();
    code
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    tracing::error!("{error}");
    ExitCode::FAILURE
}

async fn serve(state: Arc<State>, args: ServeArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let stop = server::stop_signal()?;
    let hangup = reload::hangup()?;
    let listener = server::bind(&state.config).await?;
    let address = listener.local_addr()?;
    let scheme = if state.config.server.tls_cert.is_some() { "https" } else { "http" };
    // For people and scripts, whatever the log's format; a closed stdout is no reason to stop.
    let _ = writeln!(std::io::stdout(), "listening on {scheme}://{address}");

    let (load_failed, failure) = oneshot::channel();
    tokio::spawn(load(Arc::clone(&state), hangup, args, load_failed));
    let mut error = None;
    let shutdown = async {
        tokio::select! {
            () = stop => {}
            Ok(failed) = failure => error = Some(failed),
        }
    };
    let cut = server::serve(listener, state, shutdown).await?;
    match error {
        Some(error) => Err(error.into()),
        None if cut > 0 => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Loads the models, then waits for other configurations.
async fn load(state: Arc<State>, hangup: impl Hangup, args: ServeArgs, failed: oneshot::Sender<crate::LoadError>) {
    let searches = match state.load().await {
        Ok(searches) => searches,
        Err(error) => {
            let _ = failed.send(error);
            return;
        }
    };
    tracing::info!("ready");
    let quickening = Arc::clone(&state);
    tokio::spawn(async move { quickening.quicken(searches).await });
    let file = args.config.clone().or_else(|| std::env::var_os(layers::CONFIG_VARIABLE).map(PathBuf::from));
    reload::watch(state, hangup, file.as_deref(), || read(&args)).await;
}

fn read(args: &ServeArgs) -> Result<Config, ConfigError> {
    let config = args.layers()?.config;
    match missing_path(&config.models) {
        Some(missing) => Err(ConfigError(missing)),
        None => Ok(config),
    }
}
