//! The command line: parses flags, runs the commands, and turns errors into exit codes.

#[cfg(feature = "bulk")]
mod embed;
#[cfg(feature = "refine")]
mod eval;
mod extract;
mod fetch;
#[cfg(feature = "refine")]
mod fit;
mod health;
mod inspect;
mod log;
mod man;
mod output;
mod progress;
mod recipe;
#[cfg(feature = "refine")]
mod refine;
mod running;
mod serve;
mod welcome;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::LogFormat;
use crate::config::layers::{self, ConfigError, EffectiveConfig, Flags};
use crate::server::preflight;
use output::{Failure, end, print, warn};

const AFTER_HELP: &str = "A setting is taken from its flag, else from its environment variable (EMBEDDING_SERVER_PORT for \
     server.port), else from the configuration file, else it has its default. `embedding-server check` prints each \
     setting with its origin. `embedding-server man COMMAND` has examples, variables, signals and exit codes.";

/// An OpenAI-compatible embeddings server built on LLMs' own token embeddings.
///
/// Without a command it serves. Without a model it serves the built-in model.
#[derive(Parser)]
#[command(version, arg_required_else_help = false, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the configured models (the default command).
    Serve(ServeArgs),
    /// Check the configuration as a start of the server would, and print each setting with its origin.
    Check(ServeArgs),
    /// Check that the server is ready, which is exit code 0.
    Health(HealthArgs),
    /// Print what is known of a checkpoint, without serving it.
    Inspect(InspectArgs),
    /// Make a layer-0 checkpoint from a model: a directory, a GGUF file, a Hub id, or a mergekit recipe.
    Extract(ExtractArgs),
    /// Download a Hub model's layer 0 into the cache, and print its directory.
    Fetch(FetchArgs),
    /// Embed whole files, with the same vectors as the server.
    #[cfg(feature = "bulk")]
    Embed(embed::EmbedArgs),
    /// Improve a checkpoint with your text, without training.
    #[cfg(feature = "refine")]
    Refine(refine::RefineArgs),
    /// Fit a table to another model's vectors of your texts.
    #[cfg(feature = "refine")]
    Fit(fit::FitArgs),
    /// Measure the quality of models' vectors, on your files or on public ones.
    #[cfg(feature = "refine")]
    Eval(eval::EvalArgs),
    /// Generate shell completions.
    Completions { shell: clap_complete::Shell },
    /// Print a manual page: `embedding-server man serve | man -l -`.
    Man(man::ManArgs),
}

#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
struct ServeArgs {
    /// The configuration file [env: EMBEDDING_SERVER_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to listen on, or unix:PATH for a Unix socket [default: 127.0.0.1] [env: EMBEDDING_SERVER_HOST]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// The port to listen on; 0 chooses a free port [default: 5000] [env: EMBEDDING_SERVER_PORT]
    #[arg(long, short)]
    port: Option<u16>,
    /// A model to serve: a directory, a GGUF file or a Hub ID (org/name). PATH alone is served as
    /// text-embedding-3-small. Can be given several times [default: the built-in model] [env:
    /// EMBEDDING_SERVER_MODELS]
    #[arg(long = "model", short, value_name = "NAME=PATH")]
    models: Vec<String>,
    /// The default device of models: auto, cpu, cuda[:N] or metal[:N] [default: cpu] [env: EMBEDDING_SERVER_DEVICE]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// The format of the log [default: text] [env: EMBEDDING_SERVER_LOG_FORMAT]
    #[arg(long, value_enum, ignore_case = true)]
    log_format: Option<LogFormat>,
}

#[derive(Args)]
struct HealthArgs {
    /// The server's configuration file. Without --config, --host and --port, the command uses the arguments of the
    /// container's first process.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's address, or unix:PATH for its Unix socket [default: 127.0.0.1] [env: EMBEDDING_SERVER_HOST]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// The server's port [default: 5000] [env: EMBEDDING_SERVER_PORT]
    #[arg(long, short)]
    port: Option<u16>,
    /// Check only that the process is alive, even if it is loading models or shutting down
    #[arg(long)]
    live: bool,
}

#[derive(Args)]
struct InspectArgs {
    /// The checkpoint's directory, a GGUF file, or a Hub id.
    path: PathBuf,
    /// Take the settings of the model with this path or id from a configuration file.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct ExtractArgs {
    /// A model's directory, a GGUF file, a Hub id (org/name or org/name@revision), or a mergekit recipe (.yaml, .yml).
    source: String,
    /// The directory to make.
    out: PathBuf,
    /// Convert the tensors; without it their bytes stay as they are.
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Replace OUT if it is a checkpoint.
    #[arg(long)]
    force: bool,
    /// A branch, a tag or a commit of a Hub id.
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// The tokenizer.json, or a directory with the tokenizer's files, if the source has none or another is meant.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The config.json, if the source has none or another is meant.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype {
    Bf16,
    F16,
    F32,
}

#[derive(Args)]
struct FetchArgs {
    /// org/name or org/name@revision.
    id: String,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    match cli.command {
        None => serve::run(&cli.serve),
        Some(Command::Serve(args)) => serve::run(&args),
        Some(Command::Check(args)) => end(check(&args)),
        Some(Command::Health(args)) => end(health::run(&args)),
        Some(Command::Inspect(args)) => end(inspect::run(&args)),
        Some(Command::Extract(args)) => end(extract::run(&args)),
        Some(Command::Fetch(args)) => end(fetch::run(&args)),
        #[cfg(feature = "bulk")]
        Some(Command::Embed(args)) => end(embed::run(&args)),
        #[cfg(feature = "refine")]
        Some(Command::Refine(args)) => end(refine::run(&args)),
        #[cfg(feature = "refine")]
        Some(Command::Fit(args)) => end(fit::run(&args)),
        #[cfg(feature = "refine")]
        Some(Command::Eval(args)) => end(eval::run(&args)),
        Some(Command::Completions { shell }) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &mut text);
            end(Ok::<_, Failure>(String::from_utf8_lossy(&text).into_owned()))
        }
        Some(Command::Man(args)) => end(man::run(&args)),
    }
}

/// Prints help and version to standard output, and mistakes on the command line to standard error.
fn not_parsed(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // If standard error cannot be written, there is nobody to tell.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.render();
    end(Ok::<_, Failure>(if std::io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() }))
}

impl ServeArgs {
    /// Merges these flags with the configuration file and the environment as they are now.
    fn effective(&self) -> Result<EffectiveConfig, ConfigError> {
        self.effective_with(std::env::vars_os())
    }

    /// Like [`ServeArgs::effective`], with another environment.
    fn effective_with(
        &self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<EffectiveConfig, ConfigError> {
        let flags = Flags {
            config: self.config.clone(),
            host: self.host.clone(),
            port: self.port,
            device: self.device.clone(),
            log_format: self.log_format.map(|format| match format {
                LogFormat::Text => "text".to_owned(),
                LogFormat::Json => "json".to_owned(),
            }),
            models: self.models.clone(),
        };
        layers::effective(&flags, environment.into_iter())
    }
}

fn check(args: &ServeArgs) -> Result<String, Failure> {
    let effective = args.effective().map_err(Failure::configuration)?;
    for warning in &effective.warnings {
        warn(warning);
    }
    print(&effective.to_string())?;
    preflight::check(&effective.config).map_err(Failure::configuration)?;
    Ok(String::new())
}
