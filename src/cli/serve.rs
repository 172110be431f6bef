//! The command `embedding-server serve`.

use std::io::Write;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::output::{self, Failure, end};
use super::{ServeArgs, log, welcome};
use crate::config::error::ConfigError;
use crate::config::{Config, LogFormat};
use crate::line_queue::LineQueue;
use crate::model_error::ModelError;
use crate::server::reload::{self, Hangup};
use crate::server::{self, ActiveRoutes, ServerState, StopSignals, preflight, systemd};

pub fn run(args: &ServeArgs) -> u8 {
    // The queues are dropped last, so that all output is written.
    let queues = LineQueue::start("log", std::io::stderr(), log::report_dropped)
        .and_then(|log| Ok((log, LineQueue::start("stdout", std::io::stdout(), |_| {})?)));
    let ((stderr, _flush_stderr), (stdout, _flush_stdout)) = match queues {
        Ok(queues) => queues,
        Err(error) => return end(Err(Failure::Run(format!("cannot start the thread that writes the log: {error}")))),
    };
    match start(args, &stderr, stdout) {
        Ok(code) => code,
        Err(failure) => {
            log::fatal(&failure, stderr);
            failure.exit_code()
        }
    }
}

fn start(args: &ServeArgs, stderr: &LineQueue, stdout: LineQueue) -> Result<u8, Failure> {
    let cannot_start = |error: std::io::Error| Failure::Run(format!("cannot start the server: {error}"));
    // This runtime accepts connections and loads models. Connections are served on threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    // The handlers are installed before anything that takes time, because until then a SIGHUP ends the process.
    let signals = runtime.block_on(async { Ok((StopSignals::listen()?, reload::hangup()?)) }).map_err(cannot_start)?;
    let effective = args.effective().map_err(Failure::configuration)?;
    let dimensions = preflight::check(&effective.config).map_err(Failure::configuration)?;
    let _spans = log::start(&effective, stderr.clone()).map_err(Failure::configuration)?;
    // Each connection needs a descriptor, and the usual soft limit is 1024.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let state = ServerState::new(effective.config).map(Arc::new).map_err(Failure::configuration)?;
    let result = runtime.block_on(serve(state, signals, args.clone(), stdout, &dimensions));
    // All connections are closed, so there is nothing to wait for.
    runtime.shutdown_background();
    result
}

async fn serve(
    state: Arc<ServerState>,
    (mut signals, hangup): (StopSignals, impl Hangup + Send + 'static),
    args: ServeArgs,
    mut stdout: LineQueue,
    dimensions: &[Option<usize>],
) -> Result<u8, Failure> {
    let failed = |error: std::io::Error| Failure::Run(format!("cannot start the server: {error}"));
    let passed = systemd::passed_sockets()
        .map_err(|error| Failure::Run(format!("cannot listen on a socket that was passed to this process: {error}")))?;
    let listeners = match passed {
        Some(passed) => passed,
        None => server::bind(&state.config).await.map_err(Failure::run)?,
    };
    let scheme = if state.config.server.tls_cert.is_some() { "https" } else { "http" };
    // The addresses are printed for people and scripts, whatever the format of the log. A closed standard output is
    // not an error.
    let places = listeners.places(scheme, &state.config.server.path_prefix);
    for place in &places {
        let _ = stdout.write_all(format!("listening on {place}\n").as_bytes());
    }
    if state.config.log.format == LogFormat::Text
        && let Some(place) = places.first()
    {
        let text = welcome::text(&state.config, place, listeners.address(), dimensions);
        let _ = stdout.write_all(text.as_bytes());
    }

    let (load_failed, mut failure) = oneshot::channel();
    let active = ActiveRoutes::new(&state);
    tokio::spawn(load(state, active.clone(), hangup, args, load_failed));
    // `stops` counts the requests to stop, by a signal or by a model that fails to load. On the first one, the server
    // drains. On the second one, it aborts the requests in flight.
    let stops = watch::Sender::new(0u32);
    let (mut first, mut second) = (stops.subscribe(), stops.subscribe());
    let count = async {
        let mut error = None;
        loop {
            tokio::select! {
                () = signals.next() => {}
                Ok(failed) = &mut failure, if !failure.is_terminated() => error = Some(failed),
                () = stops.closed() => return error,
            }
            stops.send_modify(|stops| *stops += 1);
        }
    };
    let reached = async |stops: &mut watch::Receiver<u32>, times| drop(stops.wait_for(|stops| *stops >= times).await);
    let serve = async {
        let cut = server::serve(listeners, active, reached(&mut first, 1), reached(&mut second, 2)).await;
        drop((first, second));
        cut
    };
    let (cut, error) = tokio::join!(serve, count);
    match error {
        Some(error) if error.is_at_run_time() => Err(Failure::Run(error.to_string())),
        Some(error) => Err(Failure::configuration(error)),
        None => Ok(if cut.map_err(failed)? > 0 { output::FAILURE } else { output::SUCCESS }),
    }
}

/// Loads the models, then waits for reloads.
async fn load(
    state: Arc<ServerState>,
    active: ActiveRoutes,
    hangup: impl Hangup,
    args: ServeArgs,
    failed: oneshot::Sender<ModelError>,
) {
    if let Err(error) = state.load().await {
        let _ = failed.send(error);
        return;
    }
    tracing::info!("ready");
    systemd::ready();
    // A reload frees the models that it replaces once nothing refers to this state any more.
    drop(state);
    let file = args.effective().ok().and_then(|effective| effective.file);
    reload::watch(active, hangup, file.as_deref(), move || read(&args)).await;
}

fn read(args: &ServeArgs) -> Result<Config, ConfigError> {
    let config = args.effective()?.config;
    preflight::check(&config)?;
    Ok(config)
}
