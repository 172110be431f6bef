//! The command `embedding-server man`: a manual page for the program, and one for each command.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_mangen::Man;

use super::Cli;
use super::output::Failure;

#[derive(Args)]
pub struct ManArgs {
    /// The command whose page is printed, such as serve; without it, the page of the program itself.
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
    /// Write all pages into this directory instead, as embedding-server.1, embedding-server-serve.1 and so on
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

/// The parts of a page that do not follow from the flags: the name of the command and its examples.
pub(super) const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "",
        &[
            ("Serve the built-in model on port 5000:", "embedding-server"),
            (
                "Serve two models on all addresses:",
                "embedding-server --host 0.0.0.0 --model small=/models/a --model big=/models/b",
            ),
            (
                "Ask for a vector:",
                "curl -H 'Content-Type: application/json' -d '{\"input\": \"hello\"}' \
                 http://localhost:5000/v1/embeddings",
            ),
        ],
    ),
    (
        "serve",
        &[
            (
                "Serve a directory under the name text-embedding-3-small:",
                "embedding-server serve --model /models/Meta-Llama-3-8B",
            ),
            (
                "Serve with a configuration file, on another port:",
                "embedding-server serve --config server.toml --port 8080",
            ),
            (
                "Reload the configuration and the models' files, without failing a request:",
                "kill -HUP $(pidof embedding-server)",
            ),
        ],
    ),
    ("check", &[("See every setting and where its value comes from:", "embedding-server check --config server.toml")]),
    (
        "health",
        &[
            ("In a container, ask its server whether it is ready:", "embedding-server health"),
            (
                "Ask a server elsewhere whether it is alive:",
                "embedding-server health --live --host 10.0.0.7 --port 8080",
            ),
        ],
    ),
    (
        "inspect",
        &[
            ("Inspect a checkpoint on this machine:", "embedding-server inspect /models/gemma-2b"),
            (
                "Inspect a model with its settings from a configuration file:",
                "embedding-server inspect small --config server.toml",
            ),
        ],
    ),
    (
        "extract",
        &[
            (
                "From the Hub, of which only the table, the norm and the tokenizer are fetched:",
                "embedding-server extract Qwen/Qwen3-8B ./qwen3",
            ),
            ("From a GGUF file:", "embedding-server extract model.gguf ./layer0"),
            ("By a mergekit recipe:", "embedding-server extract recipe.yml ./layer0"),
        ],
    ),
    ("fetch", &[("Fill the cache before a machine goes offline:", "embedding-server fetch google/gemma-3-270m")]),
    (
        "embed",
        &[
            ("JSON lines to Parquet:", "embedding-server embed corpus.jsonl --field body -o corpus.parquet"),
            ("The second of four machines:", "embedding-server embed 'texts/*.jsonl.zst' --shard 1/4 -o part1.parquet"),
        ],
    ),
    ("refine", &[("With texts of your own:", "embedding-server refine ./layer0 ./refined --corpus my-texts.txt")]),
    (
        "fit",
        &[(
            "Follow a teacher on texts of your own:",
            "embedding-server fit ./refined ./fitted --corpus my-texts.txt --teacher http://localhost:8080/v1 \
             --teacher-model NAME",
        )],
    ),
    (
        "eval",
        &[(
            "Compare two tables:",
            "embedding-server eval --model raw=./layer0 --model refined=./refined --sts pairs.tsv",
        )],
    ),
    ("completions", &[("For bash:", "embedding-server completions bash > /etc/bash_completion.d/embedding-server")]),
    (
        "man",
        &[
            ("Read a page:", "embedding-server man serve | man -l -"),
            ("Install all of them:", "embedding-server man --dir /usr/local/share/man/man1"),
        ],
    ),
];

/// The environment variables, with the commands that read them; an empty list stands for all commands.
const VARIABLES: &[(&str, &[&str], &str)] = &[
    ("EMBEDDING_SERVER_CONFIG", SERVING, "The configuration file, if --config does not name one."),
    (
        "EMBEDDING_SERVER_*",
        SERVING,
        "Every key of [server] and [log] in capitals: EMBEDDING_SERVER_HOST, EMBEDDING_SERVER_PORT, \
         EMBEDDING_SERVER_API_KEYS, EMBEDDING_SERVER_LOG_LEVEL. Flags override variables, and variables override the file.",
    ),
    ("EMBEDDING_SERVER_MODELS", SERVING, "Models as for --model: NAME=PATH, separated by commas."),
    ("HF_HOME, HF_HUB_CACHE", WITH_HUB, "The directories of the Hub's cache."),
    ("HF_TOKEN", WITH_HUB, "The token for gated and private models."),
    ("HF_ENDPOINT", WITH_HUB, "A mirror to use instead of https://huggingface.co."),
    ("HF_HUB_OFFLINE", WITH_HUB, "If 1, use only models that are in the cache."),
    ("EMBEDDING_TEACHER_API_KEY, OPENAI_API_KEY", &["fit"], "The key for --teacher; the first that is set is taken."),
    ("OPENAI_API_KEY", &["eval"], "The key for --url."),
    ("RUST_BACKTRACE", &["serve"], "If 1, panics are logged with a backtrace."),
];

const SERVING: &[&str] = &["", "serve", "check", "health"];
const WITH_HUB: &[&str] = &["", "serve", "inspect", "extract", "fetch", "embed"];

const FILES: &[(&str, &[&str], &str)] = &[
    (
        "/etc/embedding-server/config.toml",
        SERVING,
        "The configuration file of the service that the Linux packages install. Other servers read the file that \
         --config names.",
    ),
    ("~/.cache/huggingface/hub", WITH_HUB, "Models of the Hub, shared with the huggingface_hub library of Python."),
    ("~/.cache/embedding-server/teachers", &["fit"], "The answers of teachers, so that no text is sent twice."),
];

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT",
        "Finish the requests in flight, for at most server.drain_timeout, and exit. A second signal exits at once.",
    ),
    (
        "SIGHUP",
        "Reload the configuration and the files that it names. If they are invalid, the log says why, and the old \
         configuration stays in use.",
    ),
];

const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Success. For serve: a stop that cut off no request."),
    (
        "1",
        "A failure at run time: a port in use, requests that were cut off by a stop, a failed network or disk, or a \
         server that is not ready.",
    ),
    ("2", "Wrong flags or arguments."),
    ("3", "For fit: the table was written, but it is worse than before on the held-out texts."),
    ("74", "The result could not be written to standard output."),
    (
        "78",
        "A configuration that must change: an unknown key, or a model that does not exist or does not load with its \
         settings.",
    ),
    ("130, 143", "Commands other than serve: ended by Ctrl-C or SIGTERM, as the shell reports it."),
];

/// Returns the requested page, or the names of the files that were written.
///
/// # Errors
/// If there is no such command, or a page cannot be written.
pub fn run(args: &ManArgs) -> Result<String, Failure> {
    let mut program = Cli::command();
    program.build();
    let Some(dir) = &args.dir else {
        let name = args.command.as_deref().unwrap_or_default();
        return page(&program, name).ok_or_else(|| {
            let commands: Vec<&str> = commands(&program).collect();
            Failure::Run(format!("no command is named {name:?}; the commands are {}", commands.join(", ")))
        });
    };
    let write = |file: &Path, text: String| {
        std::fs::write(file, text).map_err(|e| Failure::Run(format!("{}: {e}", file.display())))
    };
    let mut written = String::new();
    for name in std::iter::once("").chain(commands(&program)) {
        let file = dir.join(format!("{}.1", full_name(name)));
        write(&file, page(&program, name).unwrap_or_default())?;
        let _ = writeln!(written, "{}", file.display());
    }
    Ok(written)
}

fn commands(program: &clap::Command) -> impl Iterator<Item = &str> {
    program.get_subcommands().map(clap::Command::get_name).filter(|name| *name != "help")
}

fn full_name(command: &str) -> String {
    if command.is_empty() { "embedding-server".to_owned() } else { format!("embedding-server-{command}") }
}

/// Returns the manual page of a command. The name "" stands for the program itself.
fn page(program: &clap::Command, name: &str) -> Option<String> {
    let command = if name.is_empty() {
        program.clone()
    } else {
        program.get_subcommands().find(|command| command.get_name() == name && name != "help")?.clone()
    };
    let man = Man::new(command.version(env!("CARGO_PKG_VERSION"))).title(full_name(name));
    let mut text = Vec::new();
    man.render_title(&mut text).ok()?;
    man.render_name_section(&mut text).ok()?;
    man.render_synopsis_section(&mut text).ok()?;
    man.render_description_section(&mut text).ok()?;
    man.render_options_section(&mut text).ok()?;
    if name.is_empty() {
        man.render_subcommands_section(&mut text).ok()?;
    }
    let mut text = String::from_utf8(text).ok()?;
    if let Some((_, examples)) = EXAMPLES.iter().find(|(command, _)| *command == name) {
        text += ".SH EXAMPLES\n";
        for (purpose, line) in *examples {
            let _ = write!(text, "{}\n.PP\n.nf\n.RS\n{}\n.RE\n.fi\n.PP\n", escaped(purpose), escaped(line));
        }
    }
    let of_command = |rows: &[(&'static str, &[&str], &'static str)]| {
        rows.iter().filter(|row| row.1.contains(&name)).map(|row| (row.0, row.2)).collect::<Vec<_>>()
    };
    section(&mut text, "ENVIRONMENT", &of_command(VARIABLES));
    section(&mut text, "FILES", &of_command(FILES));
    if matches!(name, "" | "serve") {
        section(&mut text, "SIGNALS", SIGNALS);
    }
    section(&mut text, "EXIT STATUS", EXIT_STATUS);
    text += ".SH SEE ALSO\n";
    let others = std::iter::once("").chain(commands(program)).filter(|other| *other != name);
    let others: Vec<String> = others.map(|other| format!("\\fB{}\\fR(1)", escaped(&full_name(other)))).collect();
    text += &others.join(", ");
    text.push('\n');
    Some(text)
}

fn section(text: &mut String, title: &str, entries: &[(&str, &str)]) {
    if entries.is_empty() {
        return;
    }
    let _ = writeln!(text, ".SH \"{title}\"");
    for (name, meaning) in entries {
        let _ = write!(text, ".TP\n\\fB{}\\fR\n{}\n", escaped(name), escaped(meaning));
    }
}

/// Escapes text for roff. The hyphen of a flag must become a minus sign, and a line must not begin with a control
/// character.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_examples_and_exit_codes() {
        let mut program = Cli::command();
        program.build();
        for name in std::iter::once("").chain(commands(&program)) {
            let page = page(&program, name).unwrap();
            assert_eq!(page.matches(".SH NAME").count(), 1, "{name}");
            for title in ["SYNOPSIS", "DESCRIPTION", "EXAMPLES", "\"EXIT STATUS\"", "\"SEE ALSO\""] {
                assert!(
                    page.contains(&format!(".SH {title}\n"))
                        || page.contains(&format!(".SH {}\n", title.trim_matches('"'))),
                    "{name}: {title} in {page}"
                );
            }
        }
        for (name, _) in EXAMPLES {
            let built = name.is_empty() || commands(&program).any(|command| command == *name);
            assert!(built || cfg!(not(all(feature = "bulk", feature = "refine"))), "no command {name}");
        }
        assert!(page(&program, "help").is_none());
    }
}
