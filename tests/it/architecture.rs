//! What ARCHITECTURE.md promises of the sources, held against them.

use std::path::{Path, PathBuf};

fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            let text = std::fs::read_to_string(&path).unwrap();
            // Tests at the end of a file may know more than the module.
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
            (name, code)
        })
        .collect()
}

/// Asserts that `word` stands in the code of no file but `allowed`.
fn only_in(word: &str, allowed: &[&str], within: &str) {
    for (name, text) in sources() {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let found = code.filter(|line| line.contains(word)).count() > 0;
        if name.starts_with(within) && !allowed.iter().any(|a| name == *a || (a.ends_with('/') && name.starts_with(a)))
        {
            assert!(!found, "src/{name} knows {word}, which only {allowed:?} may");
        }
    }
}

/// Modules that serve others and are not worth a place on the map.
const SMALL_MODULES: [&str; 10] = [
    "decimal",
    "large_pages",
    "lib",
    "line_queue",
    "main",
    "prefetch",
    "progress",
    "stamp",
    "text_file",
    "yield_point",
];

const CORE: [&str; 26] = [
    "checkpoint.rs",
    "checkpoint/",
    "cl100k.rs",
    "corpus.rs",
    "embedder.rs",
    "error.rs",
    "eval.rs",
    "eval/",
    "extract.rs",
    "extract/",
    "files.rs",
    "fit.rs",
    "fit/",
    "large_pages.rs",
    "norm.rs",
    "pooling.rs",
    "pooling/",
    "prefetch.rs",
    "progress.rs",
    "refine.rs",
    "retrieval.rs",
    "retrieval/",
    "refine/",
    "table.rs",
    "tokenize.rs",
    "tokenize/",
];

#[test]
fn unsafe_code_is_in_its_files_alone() {
    let allowed = [
        "checkpoint/map.rs",
        "checkpoint/map/guard.rs",
        "decimal/x86.rs",
        "pooling/cuda.rs",
        "pooling/kernel/x86.rs",
        "pooling/kernel/neon.rs",
        "pooling/kernel/vnni.rs",
        "prefetch.rs",
    ];
    only_in("unsafe ", &allowed, "");
    only_in("allow(unsafe_code)", &allowed, "");
}

#[test]
fn status_codes_are_in_one_file() {
    only_in("StatusCode", &["server/error.rs"], "");
}

#[test]
fn no_tensor_type_reaches_the_handlers() {
    for word in ["candle", "EmbeddingTable", "tokenizers::", "safetensors"] {
        only_in(word, &[], "server/");
    }
}

#[test]
fn the_core_knows_no_http_and_no_configuration() {
    for (name, text) in sources() {
        if CORE.iter().any(|core| name == *core || (core.ends_with('/') && name.starts_with(core))) {
            for word in ["axum", "hyper::", "tokio::", "ureq", "crate::config", "crate::server", "clap::"] {
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                assert!(code.filter(|line| line.contains(word)).count() == 0, "src/{name} knows {word}");
            }
        }
    }
}

#[test]
fn the_command_line_is_all_that_knows_clap() {
    only_in("clap::", &["cli.rs", "cli/"], "");
}

#[test]
fn the_hub_is_all_that_knows_the_network_and_one_file_leads_to_it() {
    // `client.rs` asks the endpoint that the user of `eval` or `fit` names, `cli/health.rs` the server on this machine.
    only_in("ureq", &["hub/address.rs", "hub/client.rs", "client.rs", "client/", "cli/health.rs"], "");
    only_in("hf_hub", &["hub/cache.rs"], "");
    only_in("crate::hub", &["location.rs", "cli/extract.rs", "cli/fetch.rs"], "");
}

#[test]
fn no_file_needs_a_table_of_contents() {
    for (name, text) in sources() {
        assert!(text.lines().count() <= 600, "src/{name} has {} lines", text.lines().count());
    }
}

#[test]
fn every_file_says_in_its_first_line_what_it_is_responsible_for() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "src/{name} does not begin with a line of module documentation");
    }
}

#[test]
fn the_map_names_every_module_of_the_library_and_no_file_that_is_gone() {
    let map = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md")).unwrap();
    for (name, _) in sources() {
        let module = name.strip_suffix(".rs").unwrap();
        if !module.contains('/') && !SMALL_MODULES.contains(&module) {
            assert!(map.contains(&format!("`{module}`")), "ARCHITECTURE.md does not mention the module {module}");
        }
    }
    let source = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists();
    for path in map.split('`').filter(|word| word.ends_with(".rs") && !word.contains(' ')) {
        let path =
            if path.starts_with("src/") || path.starts_with("tests/") { path.into() } else { format!("src/{path}") };
        assert!(source(&path), "ARCHITECTURE.md mentions {path}, which does not exist");
    }
}
