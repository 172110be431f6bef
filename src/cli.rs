//! The command line: parses flags, runs the commands, and turns errors into exit codes.

mod choice;
#[cfg(feature = "bulk")]
mod embed;
#[cfg(feature = "refine")]
mod eval;
mod extract;
mod failure;
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
mod setting_flags;
mod welcome;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::error::ConfigError;
use crate::config::layers::{self, EffectiveConfig, Flags};
use crate::registry::Registry;
use crate::server::preflight;
use choice::choice;
use layer0::table::TableDtype;
use output::{Failure, end, print, warn};
use setting_flags::SettingFlags;

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
    Check(CheckArgs),
    /// Check that the server is ready, which is exit code 0.
    Health(HealthArgs),
    /// Print what is known about a checkpoint, without serving it.
    Inspect(InspectArgs),
    /// Extract a layer-0 checkpoint from a model: a directory, a GGUF file, a Hub ID, or a mergekit recipe.
    Extract(ExtractArgs),
    /// Download layer 0 of a Hub model into the cache, and print its directory.
    Fetch(FetchArgs),
    /// Embed whole files, with the same vectors as the server.
    #[cfg(feature = "bulk")]
    Embed(embed::EmbedArgs),
    /// Improve the table of a checkpoint with your text, without training.
    #[cfg(feature = "refine")]
    Refine(refine::RefineArgs),
    /// Fit the table of a checkpoint to another model's vectors of your texts.
    #[cfg(feature = "refine")]
    Fit(Box<fit::FitArgs>),
    /// Measure the quality of models' vectors on your own or on public data sets.
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
    /// A model to serve: a directory, a GGUF file or a Hub ID (org/name). PATH alone is served as
    /// text-embedding-3-small. Can be given several times [default: the built-in model] [env:
    /// EMBEDDING_SERVER_MODELS]
    #[arg(long = "model", short, value_name = "NAME=PATH")]
    models: Vec<String>,
    #[command(flatten)]
    settings: SettingFlags,
}

#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Also load each model, as a start does, and print its fingerprint.
    #[arg(long)]
    load: bool,
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
    /// The checkpoint: a directory, a GGUF file, or a Hub ID.
    path: PathBuf,
    /// A configuration file. The settings of its model with this path or ID apply.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct ExtractArgs {
    /// The model: a directory, a GGUF file, a Hub ID (org/name or org/name@revision), or a mergekit recipe (.yaml,
    /// .yml).
    source: String,
    /// The directory to write.
    out: PathBuf,
    /// The type to which the tensors are converted [default: the type in the source]
    #[arg(long, value_parser = choice(&extract::DTYPES, TableDtype::name))]
    dtype: Option<TableDtype>,
    /// Replace OUT if it is a checkpoint.
    #[arg(long)]
    force: bool,
    /// The branch, the tag or the commit of a Hub ID
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    #[command(flatten)]
    overrides: setting_flags::OverrideFlags,
}

#[derive(Args)]
struct FetchArgs {
    /// The Hub ID: org/name or org/name@revision.
    id: String,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    run(std::env::args_os()).into()
}

/// Runs a command line, whose first argument is the name of the program, and returns the exit code. The Python package calls this function:
/// the arguments of its process are those of the interpreter.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
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
fn not_parsed(error: &clap::Error) -> u8 {
    if error.use_stderr() {
        // If standard error cannot be written, the error cannot be reported anywhere else.
        let _ = error.print();
        return u8::try_from(error.exit_code()).unwrap_or(2);
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
        let flags = Flags { config: self.config.clone(), settings: self.settings.given(), models: self.models.clone() };
        layers::effective(&flags, environment.into_iter())
    }
}

fn check(args: &CheckArgs) -> Result<String, Failure> {
    let effective = args.serve.effective().map_err(Failure::configuration)?;
    for warning in &effective.warnings {
        warn(warning);
    }
    print(&effective.to_string())?;
    preflight::check(&effective.config).map_err(Failure::configuration)?;
    if args.load {
        for model in Registry::new(&effective.config).models() {
            let embedder = model.load().map_err(|error| match error.is_at_run_time() {
                true => Failure::Run(error.to_string()),
                false => Failure::configuration(error),
            })?;
            print(&format!("# fingerprint of the model {:?}: {}\n", model.id(), embedder.fingerprint()))?;
        }
    }
    Ok(String::new())
}

#[cfg(all(test, feature = "bulk", feature = "refine"))]
mod tests {
    use super::*;

    /// Splits a command line into words as a shell does. Everything after a comment, a pipe, a redirection or a
    /// substitution is left out.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in line.split("$(").next().unwrap_or_default().chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (Some(_), c) => word.get_or_insert_default().push(c),
                (None, '\'' | '"') => {
                    word.get_or_insert_default();
                    quote = Some(c);
                }
                (None, '#') if word.is_none() => break,
                (None, '|' | '>' | ';' | '&') => break,
                (None, c) if c.is_whitespace() => words.extend(word.take()),
                (None, c) => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words
    }

    fn assert_parses(line: &str, origin: &str) {
        // clap returns help as an error as well, but does not print it to standard error.
        let error = Cli::try_parse_from(words(line)).err().filter(clap::Error::use_stderr);
        assert!(error.is_none(), "{origin}: {line}\n{}", error.map_or_else(String::new, |error| error.to_string()));
    }

    /// Returns the commands of this program in a text. Lines that end in a backslash are joined.
    fn commands(text: &str) -> Vec<String> {
        let joined = text.replace("\\\n", " ");
        let lines = joined.lines().map(|line| line.trim().trim_start_matches("$ "));
        // A synopsis contains brackets and is not meant for a shell.
        lines.filter(|line| line.starts_with("embedding-server ") && !line.contains(" [-")).map(str::to_owned).collect()
    }

    #[test]
    fn every_command_in_the_documents_parses() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = vec![root.join("README.md")];
        files.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
        let mut found = 0;
        for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "md")) {
            let text = std::fs::read_to_string(file).unwrap();
            for (n, block) in text.split("```").enumerate() {
                // A command stands in a fenced block, or in a block that is indented by four spaces.
                let block: String = if n % 2 == 1 {
                    block.to_owned()
                } else {
                    let indented = |line: &&str| line.starts_with("    ");
                    block.lines().filter(indented).map(|line| format!("{line}\n")).collect()
                };
                for line in commands(&block) {
                    assert_parses(&line, &file.display().to_string());
                    found += 1;
                }
            }
        }
        assert!(found > 15, "{found} commands");
    }

    #[test]
    fn every_example_of_a_manual_page_parses() {
        for (_, examples) in man::EXAMPLES {
            for (_, line) in *examples {
                for line in commands(line) {
                    assert_parses(&line, "man");
                }
            }
        }
    }

    #[test]
    fn every_usage_line_parses_as_it_is_printed() {
        let mut program = Cli::command();
        program.build();
        let mut found = 0;
        for command in program.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let usage = command.render_usage().to_string();
            for line in usage.lines().map(|line| line.trim().trim_start_matches("Usage: ")) {
                let line = line.replace("[OPTIONS]", "").replace("...", "").replace("<SHELL>", "bash");
                let line = line.replace("<NAME=PATH>", "a=b").replace("<URL>", "http://127.0.0.1/v1");
                let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with('[')).collect();
                let line = words.join(" ").replace(['<', '>'], "");
                assert_parses(&line, "usage");
                found += 1;
            }
        }
        assert!(found >= 14, "{found} lines");
    }
}
