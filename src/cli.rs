//! The command line: serve, check, health, inspect, extract, fetch, embed, refine, fit, eval, completions, man. Turns flags
//! into a layer of configuration, and errors into exit codes.

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
mod output;
mod progress;
mod recipe;
#[cfg(feature = "refine")]
mod refine;
mod serve;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::checkpoint::BUILTIN;
use crate::config::layers::{self, ConfigError, Effective, Flags};
use crate::config::{LogFormat, Model};
use crate::location::Location;
use output::{Failure, end, print, warn};

/// An OpenAI-compatible embeddings server over LLMs' own token embeddings.
#[derive(Parser)]
#[command(version, arg_required_else_help = false, args_conflicts_with_subcommands = true)]
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
    /// Validate the configuration and print it with the origin of each value.
    Check(ServeArgs),
    /// Ask the running server with this configuration whether it can take requests; the exit code says it.
    Health(HealthArgs),
    /// Print what a checkpoint is, without serving it.
    Inspect(InspectArgs),
    /// Make a layer-0 checkpoint of a model: a directory, a Hub id, or a mergekit recipe.
    Extract(ExtractArgs),
    /// Fetch the layer 0 of a model of the Hub into its cache, and print where it is.
    Fetch(FetchArgs),
    /// Embed files: the same vectors as the server's, without one.
    #[cfg(feature = "bulk")]
    Embed(embed::EmbedArgs),
    /// Write a checkpoint with better rows, made from another's table and text: no training, no other model.
    #[cfg(feature = "refine")]
    Refine(refine::RefineArgs),
    /// Write a table that stands in for a teacher: rows fitted to another model's vectors of your own texts.
    #[cfg(feature = "refine")]
    Fit(fit::FitArgs),
    /// Measure how good models' vectors are, on files of your own or public ones.
    #[cfg(feature = "refine")]
    Eval(eval::EvalArgs),
    /// Print what makes a shell complete this command line.
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, in roff: `embedding-server man | man -l -`.
    Man,
}

#[derive(Args, Clone, Default)]
struct ServeArgs {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to listen on.
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// The port to listen on; 0 takes a free one.
    #[arg(long, short)]
    port: Option<u16>,
    /// A model to serve: a directory or a Hub id (org/name); PATH alone is served as text-embedding-3-small. Repeatable.
    #[arg(long = "model", short, value_name = "NAME=PATH")]
    models: Vec<String>,
    /// Where models run that the configuration file gives no device of their own: auto, cpu, cuda[:N] or metal[:N].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// How to write the log.
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Args)]
struct HealthArgs {
    /// The server's configuration file.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address that it listens on.
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Its port.
    #[arg(long, short)]
    port: Option<u16>,
    /// Ask only whether the process lives; it may be loading models or shutting down.
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
        Some(Command::Man) => end(manual()),
    }
}

/// The help and the version, which are results, and what is wrong with the command line, which is not.
fn not_parsed(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // Where it cannot be written nobody can be told.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.render();
    end(Ok::<_, Failure>(if std::io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() }))
}

impl ServeArgs {
    /// The configuration that these flags give on top of the other layers, as the file and the environment are now.
    fn effective(&self) -> Result<Effective, ConfigError> {
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
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        layers::effective(&flags, environment)
    }
}

/// The manual: the command, then each of its subcommands.
fn manual() -> Result<String, Box<dyn std::error::Error>> {
    let mut command = Cli::command();
    command.build();
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let man = clap_mangen::Man::new(subcommand.clone());
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_options_section(&mut text)?;
    }
    Ok(String::from_utf8(text)?)
}

fn check(args: &ServeArgs) -> Result<String, Failure> {
    let effective = args.effective().map_err(Failure::configuration)?;
    for warning in &effective.warnings {
        warn(warning);
    }
    print(&effective.to_string())?;
    match missing_path(&effective.config.models) {
        Some(missing) => Err(Failure::Configuration(missing)),
        None => Ok(String::new()),
    }
}

/// What can be known of the models before a port is bound.
fn missing_path(models: &[Model]) -> Option<String> {
    let missing = |model: &&Model| {
        let builtin = model.path == Path::new(BUILTIN) && cfg!(feature = "default-model");
        !builtin && matches!(Location::of(&model.path), Location::Local(path) if !path.exists())
    };
    let model = models.iter().find(missing)?;
    Some(format!(
        "the model {:?} is configured at {}, which does not exist: give --model NAME=PATH, or set path in [[models]]; \
         `embedding-server extract SOURCE OUT` makes a checkpoint of any model",
        model.id,
        model.path.display()
    ))
}
