//! Configurations that `check` and `serve` refuse, with the same message, before a port is bound.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::common::{broken, checkpoint, copy_of, fixtures};
use crate::process::{Server, command, model};

fn error(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{text}")).to_owned()
}

/// Runs `check` and `serve` with a configuration that both must refuse, and returns their common message.
fn refusal(dir: &Path, config: &str) -> String {
    let file = dir.join("c.toml");
    std::fs::write(&file, config).unwrap();
    let file = file.to_str().unwrap();
    let check = command(&["check", "--config", file]).output().unwrap();
    let serve = command(&["serve", "--config", file, "--port", "0"]).output().unwrap();
    for (name, output) in [("check", &check), ("serve", &serve)] {
        assert_eq!(output.status.code(), Some(78), "{name}: {config}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(serve.stdout.is_empty(), "{config}\n{}", String::from_utf8_lossy(&serve.stdout));
    assert_eq!(error(&check), error(&serve), "{config}");
    error(&serve)
}

#[test]
fn check_refuses_what_serve_refuses_before_a_port_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |path: &Path, settings: &str| format!("[[models]]\nid = \"m\"\npath = {path:?}\n{settings}");
    let llama = checkpoint("llama");
    let llama = |settings: &str| entry(&llama, settings);
    let server = |settings: &str| format!("[server]\n{settings}\n{}", llama(""));
    let garbage = dir.path().join("garbage.pem");
    std::fs::write(&garbage, "no certificate").unwrap();
    let mut cases = vec![
        (server("api_key_file = \"/nowhere/keys\""), "/nowhere/keys"),
        (server("api_keys = [\"\"]"), "api_keys"),
        (server("api_keys = [\"sk-one other\"]"), "\"other\""),
        (server("tls_cert = \"/nowhere/c.pem\"\ntls_key = \"/nowhere/k.pem\""), "tls_cert"),
        (server(&format!("tls_cert = {garbage:?}\ntls_key = {garbage:?}")), "tls_"),
        (llama("dimensions = 1000"), "dimensions = 1000"),
        (llama("embedding_tensor = \"none\""), "embedding_tensor"),
        (llama("norm_tensor = \"none\""), "norm_tensor"),
        (llama("config = \"/nowhere/config.json\""), "/nowhere/config.json"),
        (llama("tokenizer = \"/nowhere/tokenizer.json\""), "/nowhere/tokenizer.json"),
        (entry(Path::new("/nowhere"), ""), "/nowhere: does not exist"),
        (entry(Path::new("/dev/null/x"), ""), "/dev/null/x: does not exist"),
        (entry(&dir.path().join("c.toml"), ""), "not a GGUF file"),
        (entry(&fixtures("static").join("model2vec"), "norm_eps = 1.0"), "norm_eps"),
    ];
    for (name, part) in [
        ("no-config", "config.json"),
        ("bad-config", "config.json"),
        ("no-weights", "holds no weights"),
        ("no-table", "embedding_tensor"),
        ("no-tokenizer", "tokenizer.json"),
        ("truncated", "model.safetensors"),
        ("quantized", "quantized"),
        ("unknown-model-type", "norm"),
        ("missing-shard", "safetensors"),
    ] {
        cases.push((entry(&broken(name), ""), part));
    }
    if cfg!(not(feature = "cuda")) {
        cases.push((llama("device = \"cuda\""), "--features cuda"));
        cases.push((server("device = \"cuda:1\""), "--features cuda"));
    }
    if cfg!(feature = "default-model") {
        cases.push((entry(Path::new("builtin:default"), "dimensions = 385"), "between 1 and 384"));
    }
    for (config, part) in cases {
        let error = refusal(dir.path(), &config);
        assert!(error.contains(part), "{config}\nsays: {error}\nbut not: {part}");
    }
}

#[test]
fn check_accepts_every_fixture_that_can_be_served() {
    let directories = ["checkpoints", "static", "gguf", "refined"].map(fixtures);
    let mut passed = 0;
    for path in directories.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap()).map(|entry| entry.unwrap().path()) {
        let opens = layer0::checkpoint::Checkpoint::open(&path, &Default::default());
        let previewed = layer0::checkpoint::Checkpoint::preview(&path, &Default::default());
        match opens {
            Ok(opened) => {
                let preview = previewed.unwrap_or_else(|e| panic!("{e}")).unwrap();
                assert_eq!(preview.dimensions, opened.table.dimensions(), "{}", path.display());
                passed += 1;
            }
            // The tokenizer is not read before the model is loaded.
            Err(error) => assert!(previewed.is_ok() || previewed == Err(error), "{}", path.display()),
        }
    }
    assert!(passed > 10);
}

/// The file headers of these checkpoints are valid; the mistake is found while the model is loaded.
#[test]
fn a_model_that_cannot_be_loaded_as_configured_ends_the_server_with_78() {
    for name in ["bad-tokenizer", "vocabulary-past-table"] {
        let server = Server::start(&["serve", "--model", &model(&broken(name))]);
        let (code, log) = server.end();
        assert_eq!(code, Some(78), "{name}: {log}");
        assert!(log.lines().last().unwrap().starts_with("error: "), "{name}: {log}");
    }
}

/// The message must appear whatever the level of the log is.
#[test]
fn the_reason_for_the_exit_is_always_printed() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    std::fs::write(&config, "[log]\nlevel = \"off\"").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for format in ["text", "json"] {
        let args = ["serve", "--config", config.to_str().unwrap(), "--port", &port, "--log-format", format];
        let output = command(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(error(&output).contains("server.port"), "{}", error(&output));
    }
}

/// The test runs as a user who does not own the files, because root may read everything.
#[test]
fn an_inaccessible_directory_is_named() {
    let (dir, model) = (tempfile::tempdir().unwrap(), copy_of("llama"));
    let inner = dir.path().join("closed").join("model");
    std::fs::create_dir_all(&inner).unwrap();
    for file in std::fs::read_dir(model.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), inner.join(file.file_name())).unwrap();
    }
    let (program, closed) = (dir.path().join("embedding-server"), dir.path().join("closed"));
    std::fs::copy(env!("CARGO_BIN_EXE_embedding-server"), &program).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o600)).unwrap();
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let path = inner.to_str().unwrap();
    for (args, code) in [(["check", "--model", path], 78), (["serve", "--model", path], 78), (["inspect", path, ""], 1)]
    {
        let mut command = Command::new(&program);
        command.args(args.iter().filter(|arg| !arg.is_empty()));
        if is_root {
            command.uid(65534).gid(65534);
        }
        let output = command.output().unwrap();
        let error = error(&output);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains("may not enter") && error.contains(closed.to_str().unwrap()), "{error}");
        assert!(!error.contains("does not exist"), "{error}");
    }
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn the_banner_names_the_models_and_addresses() {
    use std::io::{BufRead, BufReader};
    let llama = model(&checkpoint("llama"));
    for format in ["text", "json"] {
        let mut command =
            command(&["serve", "--model", &llama, "--port", "0", "--host", "0.0.0.0", "--log-format", format]);
        let mut child =
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let port = lines.next().unwrap().strip_prefix("listening on http://0.0.0.0:").unwrap().to_owned();
        if format == "json" {
            child.kill().unwrap();
            assert_eq!(lines.next(), None);
        } else {
            let text: Vec<String> = lines.by_ref().take(7).collect();
            let text = text.join("\n");
            for part in [
                &format!("embedding-server {}", env!("CARGO_PKG_VERSION")),
                "m, 16 dimensions",
                &format!("http://127.0.0.1:{port}/\n"),
                &format!("http://127.0.0.1:{port}/docs"),
                &format!("http://127.0.0.1:{port}/v1"),
                "not needed",
            ] {
                assert!(text.contains(part), "{part} in {text}");
            }
            child.kill().unwrap();
        }
        child.wait().unwrap();
    }
}
