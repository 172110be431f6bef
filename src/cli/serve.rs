//! `embedding-server serve`

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{ServeArgs, config_error, log, missing_path};
use crate::config::Config;
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
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let code = runtime.block_on(serve(effective.config)).unwrap_or_else(|error| failed(&error));
    // What is still open was cut at the drain deadline: nothing to wait for.
    runtime.shutdown_background();
    code
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    tracing::error!("{error}");
    ExitCode::FAILURE
}

async fn serve(config: Config) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let stop = server::stop_signal()?;
    let listener = server::bind(&config).await?;
    let address = listener.local_addr()?;
    let state = Arc::new(State::new(config)?);
    // For people and scripts, whatever the log's format; a closed stdout is no reason to stop.
    let _ = writeln!(std::io::stdout(), "listening on http://{address}");

    let (load_failed, failure) = oneshot::channel();
    let loading = Arc::clone(&state);
    tokio::spawn(async move {
        match loading.load().await {
            Ok(searches) => {
                tracing::info!("ready");
                loading.quicken(searches).await;
            }
            Err(error) => {
                let _ = load_failed.send(error);
            }
        }
    });
    let mut error = None;
    let shutdown = async {
        tokio::select! {
            () = stop => {}
            Ok(failed) = failure => error = Some(failed),
        }
    };
    let cut = server::serve(listener, state, shutdown).await;
    match error {
        Some(error) => Err(error.into()),
        None if cut > 0 => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}
