//! What ARCHITECTURE.md promises of the sources, held against them.

use std::path::{Path, PathBuf};

/// Returns the path and the text of every source file of the workspace, without the tests at its end.
pub fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    walk(&root.join("src"), &mut files);
    for package in std::fs::read_dir(root.join("crates")).unwrap() {
        walk(&package.unwrap().path().join("src"), &mut files);
    }
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            let text = std::fs::read_to_string(&path).unwrap();
            // Tests at the end of a file may know more than the module.
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
            (name, code)
        })
        .collect()
}

/// Asserts that `word` stands in the code of no file but `allowed`.
pub fn only_in(word: &str, allowed: &[&str], within: &str) {
    for (name, text) in sources() {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let found = code.filter(|line| line.contains(word)).count() > 0;
        if name.starts_with(within) && !allowed.iter().any(|a| name == *a || (a.ends_with('/') && name.starts_with(a)))
        {
            assert!(!found, "{name} knows {word}, which only {allowed:?} may");
        }
    }
}

/// Modules that serve others and are not worth a place on the map.
const SMALL_MODULES: [&str; 17] = [
    "added",
    "decimal",
    "diagnostic",
    "error",
    "large_pages",
    "lib",
    "line_queue",
    "logged_progress",
    "main",
    "max_skipped",
    "model_error",
    "panics",
    "prefetch",
    "progress",
    "stamp",
    "text_file",
    "yield_point",
];

#[test]
fn unsafe_code_is_in_its_files_alone() {
    let allowed = [
        "crates/layer0/src/checkpoint/map.rs",
        "crates/layer0/src/checkpoint/map/guard.rs",
        "crates/layer0/src/pooling/cuda.rs",
        "crates/layer0/src/pooling/kernel/avx2.rs",
        "crates/layer0/src/pooling/kernel/neon.rs",
        "crates/layer0/src/pooling/kernel/vnni.rs",
        "crates/layer0/src/pooling/kernel/x86.rs",
        "crates/tokenizers/src/prefetch.rs",
        "crates/tokenizers/src/bytebpe/split/breaks/classes.rs",
        "src/decimal/x86.rs",
    ];
    only_in("unsafe ", &allowed, "");
    only_in("allow(unsafe_code)", &allowed, "");
}

#[test]
fn status_codes_are_in_one_file() {
    only_in("StatusCode", &["src/server/error.rs"], "");
}

#[test]
fn no_tensor_type_reaches_the_handlers() {
    for word in ["candle", "EmbeddingTable", "tokenizers::", "safetensors"] {
        only_in(word, &[], "src/server/");
    }
}

/// What a library crate can know is what its Cargo.toml lists, so the compiler checks the rest.
#[test]
fn the_library_crates_depend_on_no_http_server_no_async_runtime_and_no_command_line() {
    for package in ["files", "tokenizers", "layer0", "records", "tuning"] {
        let manifest = format!("{}/crates/{package}/Cargo.toml", env!("CARGO_MANIFEST_DIR"));
        let manifest = std::fs::read_to_string(manifest).unwrap();
        for dependency in ["axum", "clap", "embedding-server", "hyper", "tokio", "toml"] {
            let found = manifest.lines().any(|line| line.split([' ', '.', '=']).next() == Some(dependency));
            assert!(!found, "{package} depends on {dependency}");
        }
    }
}

#[test]
fn the_command_line_is_all_that_knows_clap() {
    only_in("clap::", &["src/cli.rs", "src/cli/"], "");
}

#[test]
fn the_hub_is_all_that_knows_the_network_and_one_file_leads_to_it() {
    // `client.rs` asks the endpoint that the user of `eval` or `fit` names, `cli/health.rs` the server on this machine.
    only_in(
        "ureq",
        &[
            "crates/layer0/src/hub/address.rs",
            "crates/layer0/src/hub/client.rs",
            "src/client.rs",
            "src/client/",
            "src/cli/health.rs",
        ],
        "",
    );
    only_in("hf_hub", &["crates/layer0/src/hub/cache.rs"], "");
    only_in("crate::hub", &["crates/layer0/src/location.rs"], "crates/layer0/src/");
    only_in("layer0::hub", &["src/cli/extract.rs", "src/cli/fetch.rs"], "src/");
}

/// Returns the signatures of the functions in `code` that other modules can call, each with its line breaks replaced by
/// spaces, and the types of public fields.
fn public_signatures(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines: Vec<&str> = code.lines().map(str::trim).filter(|line| !line.starts_with("//")).collect();
    for (at, line) in lines.iter().enumerate() {
        let is_public = line.starts_with("pub ") || line.starts_with("pub(");
        if is_public && line.contains("fn ") {
            let signature = lines[at..].iter().take_while(|line| !line.contains("where"));
            let mut text = String::new();
            for part in signature {
                text += part;
                text.push(' ');
                if part.ends_with('{') || part.ends_with(';') {
                    break;
                }
            }
            found.push(text);
        } else if is_public || line.starts_with("type Err ") || line.starts_with("type Error ") {
            found.push((*line).to_owned());
        }
    }
    found
}

#[test]
fn an_error_that_another_module_sees_has_a_type() {
    // The implementations of tokenizers are private, and `choose` shows their reasons as text.
    let inner = |name: &str| {
        let public = ["lib.rs", "choose.rs", "error.rs", "reference.rs", "yield_point.rs"];
        name.strip_prefix("crates/tokenizers/src/").is_some_and(|file| !public.contains(&file))
    };
    for (name, code) in sources().into_iter().filter(|(name, _)| !inner(name)) {
        for signature in public_signatures(&code) {
            // The error of a result follows its last comma.
            let untyped = signature.contains("Result<") && signature.contains(", String>") && !is_map(&signature);
            let associated = signature.starts_with("type Err") && signature.contains("= String;");
            assert!(!untyped && !associated, "{name}: {signature}");
        }
    }
}

/// Returns whether every `, String>` of a signature ends a map or a pair and not a result.
fn is_map(signature: &str) -> bool {
    signature.match_indices(", String>").all(|(at, _)| {
        let before = &signature[..at];
        let opened = before.rfind('<').map_or("", |open| &before[..open]);
        opened.ends_with("HashMap") || opened.ends_with("BTreeMap")
    })
}

/// The flags of other programs, in remedies.
const FLAGS_OF_OTHERS: [&str; 4] = ["`cargo build ", "`--gpus all`", "`nvidia-smi ", "`llama-gguf-split "];

#[test]
fn no_text_of_a_library_names_a_flag() {
    for (name, code) in sources().into_iter().filter(|(name, _)| name.starts_with("crates/")) {
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let names_flag = line.match_indices("--").any(|(at, _)| {
                let word = line[at + 2..].starts_with(|c: char| c.is_ascii_lowercase());
                word && !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric())
            });
            let of_others = FLAGS_OF_OTHERS.iter().any(|command| line.contains(command));
            assert!(!names_flag || of_others, "{name} names a flag: {line}");
        }
    }
}

#[test]
fn no_file_needs_a_table_of_contents() {
    for (name, text) in sources() {
        assert!(text.lines().count() <= 600, "{name} has {} lines", text.lines().count());
    }
}

#[test]
fn every_file_says_in_its_first_line_what_it_is_responsible_for() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name} does not begin with a line of module documentation");
    }
}

#[test]
fn the_map_names_every_module_of_the_library_and_no_file_that_is_gone() {
    let map = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md")).unwrap();
    for (name, _) in sources() {
        let module = name.rsplit_once("src/").unwrap().1.strip_suffix(".rs").unwrap();
        if !module.contains('/') && !SMALL_MODULES.contains(&module) {
            assert!(map.contains(&format!("`{module}`")), "ARCHITECTURE.md does not mention {name}");
        }
    }
    let source = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists();
    for path in map.split('`').filter(|word| word.ends_with(".rs") && !word.contains(' ')) {
        assert!(source(path), "ARCHITECTURE.md mentions {path}, which does not exist");
    }
}
