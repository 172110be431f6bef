//! Tests what commands may delete, replace and read: they leave other files alone, and no file makes them wait.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{broken, checkpoint, copy_of};

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embedding-server"));
    command.current_dir(dir).args(args).env("HF_HUB_OFFLINE", "1").stdin(Stdio::null());
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().unwrap()
}

/// Runs a command and checks that the exit code is 1 and that standard error contains `part`.
#[track_caller]
fn refused(dir: &Path, args: &[&str], part: &str) {
    let output = run(dir, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(said.contains(part), "{args:?}: {part:?} is not in {said}");
}

#[track_caller]
fn succeeds(dir: &Path, args: &[&str]) {
    let output = run(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Returns every file below `dir` with its content, and every link with its target.
fn everything(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        match fs::symlink_metadata(&path).unwrap() {
            m if m.is_symlink() => {
                found.push((name, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()));
            }
            m if m.is_dir() => found.extend(everything(&path)),
            m if m.is_file() => found.push((name, fs::read(&path).unwrap())),
            _ => found.push((name, Vec::new())),
        }
    }
    found.sort();
    found
}

const CORPUS: &str = "hello world\nthe quick brown fox\nanother text of words\n안녕하세요\nfour and five\nsix\n";

/// Creates a directory with a model `m`, a corpus, and an output that each command would write.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    succeeds(dir.path(), &["refine", checkpoint("llama").to_str().unwrap(), "m", "--dtype", "f32"]);
    fs::write(dir.path().join("corpus.txt"), CORPUS).unwrap();
    let vectors: String = (0..6).map(|i| format!("[{}.5, 1.0, {i}.25, 2.0]\n", i + 1)).collect();
    fs::write(dir.path().join("vectors.jsonl"), vectors).unwrap();
    dir
}

/// Returns the three commands that write a checkpoint from `source` to `out`.
fn writers<'a>(source: &'a str, out: &'a str) -> [Vec<&'a str>; 3] {
    let llama: &'static str = Box::leak(checkpoint("llama").display().to_string().into_boxed_str());
    [
        vec!["extract", if source == "m" { llama } else { source }, out, "--force"],
        vec!["refine", source, out, "--corpus", "corpus.txt", "--force"],
        vec![
            "fit",
            source,
            out,
            "--corpus",
            "corpus.txt",
            "--teacher-vectors",
            "vectors.jsonl",
            "--held-out",
            "0",
            "--lambda",
            "0.1",
            "--force",
        ],
    ]
}

#[test]
fn force_replaces_checkpoints_and_nothing_else() {
    let dir = workplace();
    let at = |name: &str| dir.path().join(name);
    for foreign in ["project/thesis.docx", "project/sub/y", "project/.env", "project/model.gguf"] {
        let _ = fs::remove_dir_all(at("project"));
        fs::create_dir_all(at(foreign).parent().unwrap()).unwrap();
        fs::write(at("project/config.json"), r#"{"model_type": "llama"}"#).unwrap();
        fs::write(at("project/model.safetensors"), "weights").unwrap();
        fs::write(at(foreign), "precious").unwrap();
        let before = everything(&at("project"));
        let first = foreign.split('/').nth(1).unwrap();
        for command in writers("m", "project") {
            refused(dir.path(), &command, &format!("project: holds {first}"));
            assert_eq!(everything(&at("project")), before);
        }
    }
    // A config.json alone does not make a directory a checkpoint, because other programs have files of that name.
    fs::remove_dir_all(at("project")).unwrap();
    fs::create_dir(at("project")).unwrap();
    for content in ["", "{\"port\": 80}"] {
        fs::write(at("project/config.json"), content).unwrap();
        for command in writers("m", "project") {
            refused(dir.path(), &command, "exists and is no checkpoint");
            assert_eq!(fs::read_to_string(at("project/config.json")).unwrap(), content);
        }
    }
    for command in writers("m", "out") {
        succeeds(dir.path(), &command);
        succeeds(dir.path(), &command);
    }
    let left = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.starts_with('.')).collect::<Vec<_>>(), [""; 0]);
}

#[cfg(unix)]
#[test]
fn what_lies_beside_an_output_is_not_followed_or_emptied() {
    use std::os::unix::fs::symlink;
    let dir = workplace();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("victim")).unwrap();
    fs::write(at("victim/thesis"), "precious").unwrap();
    fs::write(at("victim/model.safetensors"), "precious").unwrap();
    for name in [".out.incomplete", ".out.replaced"] {
        for command in writers("m", "out") {
            symlink("victim", at(name)).unwrap();
            let output = run(dir.path(), &command);
            assert_eq!(fs::read_to_string(at("victim/thesis")).unwrap(), "precious", "{command:?}");
            assert_eq!(everything(&at("victim")).len(), 2, "{command:?}");
            if name == ".out.incomplete" {
                assert_eq!(output.status.code(), Some(1), "{command:?}");
                assert!(String::from_utf8_lossy(&output.stderr).contains("is a symbolic link"));
                fs::remove_file(at(name)).unwrap();
            }
            let _ = fs::remove_dir_all(at("out"));
        }
    }
    // The first case is a directory of that name with other files in it, and the second is a hard link to another file.
    fs::create_dir_all(at(".out.incomplete")).unwrap();
    fs::write(at(".out.incomplete/notes.txt"), "precious").unwrap();
    for command in writers("m", "out") {
        refused(dir.path(), &command, "holds notes.txt");
    }
    fs::remove_file(at(".out.incomplete/notes.txt")).unwrap();
    for command in writers("m", "out") {
        fs::create_dir_all(at(".out.incomplete")).unwrap();
        fs::hard_link(at("victim/thesis"), at(".out.incomplete/model.safetensors")).unwrap();
        symlink("../victim/thesis", at(".out.incomplete/config.json")).unwrap();
        succeeds(dir.path(), &command);
        assert_eq!(fs::read_to_string(at("victim/thesis")).unwrap(), "precious");
    }
    // The lock file does not follow a link to another file either.
    symlink("victim/new", at(".other.lock")).unwrap();
    for command in writers("m", "other") {
        assert_eq!(run(dir.path(), &command).status.code(), Some(1));
        assert!(!at("victim/new").exists());
    }
}

#[cfg(unix)]
#[test]
fn an_output_never_replaces_its_own_source() {
    use std::os::unix::fs::symlink;
    let dir = workplace();
    let at = |name: &str| dir.path().join(name);
    symlink("m", at("link")).unwrap();
    // The files of one source are links into the output, and the other output consists of hard links to the source.
    fs::create_dir(at("links")).unwrap();
    fs::create_dir(at("hard")).unwrap();
    for entry in fs::read_dir(at("m")).unwrap() {
        let name = entry.unwrap().file_name();
        symlink(Path::new("../m").join(&name), at("links").join(&name)).unwrap();
        fs::hard_link(at("m").join(&name), at("hard").join(&name)).unwrap();
    }
    let before = everything(&at("m"));
    for (source, out) in
        [("m", "m"), ("m", "link"), ("link", "m"), ("./m", "m/"), ("links", "m"), ("m", "hard"), ("hard", "m")]
    {
        let [_, refine, fit] = writers(source, out);
        for command in [refine, fit] {
            let output = run(dir.path(), &command);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
            assert!(said.contains("source") || said.contains("holds"), "{said}");
            assert_eq!(everything(&at("m")), before, "{command:?}");
        }
    }
    let source = copy_of("llama");
    fs::create_dir(at("linked")).unwrap();
    for entry in fs::read_dir(source.path()).unwrap() {
        let path = entry.unwrap().path();
        symlink(&path, at("linked").join(path.file_name().unwrap())).unwrap();
    }
    let kept = everything(source.path());
    let out = source.path().to_str().unwrap();
    for from in [out, "linked"] {
        let output = run(dir.path(), &["extract", from, out, "--force"]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(everything(source.path()), kept);
    }
    // Corpora are protected as well.
    fs::copy(at("corpus.txt"), at("m/README.md")).unwrap();
    let llama = checkpoint("llama").display().to_string();
    refused(dir.path(), &["refine", &llama, "m", "--corpus", "m/README.md", "--force"], "is, or holds, the source");
}

#[cfg(unix)]
#[test]
fn embed_never_replaces_its_own_input() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let content = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
    fs::write(at("d.jsonl"), content).unwrap();
    symlink("d.jsonl", at("link.jsonl")).unwrap();
    fs::hard_link(at("d.jsonl"), at("hard.jsonl")).unwrap();
    for (input, out) in [
        ("d.jsonl", "d.jsonl"),
        ("d.jsonl", "./d.jsonl"),
        ("d.jsonl", "link.jsonl"),
        ("link.jsonl", "d.jsonl"),
        ("d.jsonl", "hard.jsonl"),
        ("*.jsonl", "d.jsonl"),
    ] {
        refused(dir.path(), &["embed", input, "-o", out, "--force"], "is the same file as the input");
        assert_eq!(fs::read_to_string(at("d.jsonl")).unwrap(), content);
    }
    let mut piped = command(dir.path(), &["embed", "-", "--input-format", "jsonl", "-o", "d.jsonl", "--force"]);
    let output = piped.stdin(fs::File::open(at("d.jsonl")).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let appended = fs::OpenOptions::new().append(true).open(at("d.jsonl")).unwrap();
    assert_eq!(command(dir.path(), &["embed", "d.jsonl"]).stdout(appended).status().unwrap().code(), Some(1));
    assert_eq!(fs::read_to_string(at("d.jsonl")).unwrap(), content);
    // An output that is not a regular file is refused, and nothing is written through a link that somebody else placed.
    refused(dir.path(), &["embed", "d.jsonl", "-o", "/dev/null", "--format", "jsonl", "--force"], "is no regular file");
    fs::write(at("victim"), "precious").unwrap();
    symlink("victim", at(".out.jsonl.incomplete")).unwrap();
    succeeds(dir.path(), &["embed", "d.jsonl", "-o", "out.jsonl"]);
    assert_eq!(fs::read_to_string(at("victim")).unwrap(), "precious");
}

#[test]
fn a_mistyped_field_does_not_block_the_corrected_command() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("d.jsonl"), "{\"text\": \"a\"}\n").unwrap();
    refused(dir.path(), &["embed", "d.jsonl", "--field", "body", "-o", "z.parquet"], "has no field \"body\"");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    succeeds(dir.path(), &["embed", "d.jsonl", "-o", "z.parquet"]);
}

#[test]
fn usage_lines_work_as_they_are_printed() {
    let dir = workplace();
    succeeds(dir.path(), &["refine", "--corpus", "corpus.txt", "--corpus", "corpus.txt", "m", "out"]);
    let fit = [
        "fit",
        "--held-out",
        "0",
        "--lambda",
        "0.1",
        "--teacher-vectors",
        "vectors.jsonl",
        "--corpus",
        "corpus.txt",
        "m",
        "f",
    ];
    succeeds(dir.path(), &fit);
}

/// The libraries name no flags, so the command line must add them to the remedies.
#[test]
fn a_remedy_names_the_flag_of_the_command() {
    let dir = workplace();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("t.csv"), "a,b\n1,2\n").unwrap();
    fs::write(at("two.csv"), "text,text\n1,2\n").unwrap();
    fs::write(at("t.jsonl"), "{\"other\": \"x\"}\n").unwrap();
    fs::write(at("taken.jsonl"), "{\"text\": \"x\", \"embedding\": 1}\n").unwrap();
    fs::write(at("bad.txt"), b"one\n\xff\n").unwrap();
    fs::write(at("there.jsonl"), "").unwrap();
    let lacks = |name: &str| broken(name).display().to_string();
    let (no_tokenizer, no_table) = (lacks("no-tokenizer"), lacks("no-table"));
    for (line, part) in [
        ("embed t.csv --model m", "expected one of its columns: a, b (name the column of the texts with --field)"),
        ("embed two.csv --model m", "(rename one of them, or name another column with --field)"),
        (
            "embed t.jsonl --model m",
            "t.jsonl:1: has no field \"text\" (name the field of the texts with --field, or leave bad records out with \
             --on-error skip)",
        ),
        ("embed taken.jsonl --model m", "has a field \"embedding\" already (name another with --embedding-field"),
        ("embed corpus.txt --model m -o there.jsonl", "exists already (give --force to replace it, or another name)"),
        ("refine m out --corpus bad.txt", "(mend the file, or allow a larger share with --max-skipped)"),
        ("refine m out --corpus t.jsonl --max-skipped 1", "(name the field of the texts with --field)"),
        ("refine m m2 --corpus corpus.txt", "m2: exists (give --force to replace it)"),
        (&format!("extract {} m2", checkpoint("llama").display()), "m2: exists (give --force to replace it)"),
        (&format!("extract {no_tokenizer} out"), "then give --tokenizer FILE)"),
        (
            &format!("extract {no_table} out"),
            "(if the model has another name for it, give --embedding-tensor (in a configuration file: embedding_tensor))",
        ),
        (
            "fit m out --corpus corpus.txt --teacher-vectors vectors.jsonl",
            "(give --lambda 0.02, more text, or a larger --held-out)",
        ),
    ] {
        if !at("m2").exists() {
            succeeds(dir.path(), &["refine", "m", "m2"]);
        }
        refused(dir.path(), &line.split(' ').collect::<Vec<_>>(), part);
    }
}

/// A FIFO without a writer is put in each place where a path is read. The result must be an immediate error that names
/// the FIFO.
#[cfg(unix)]
#[test]
fn a_fifo_in_the_place_of_a_file_is_an_error_and_no_wait() {
    let dir = workplace();
    let at = |name: &str| dir.path().join(name);
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    let fifo_at = |path: &Path| {
        fs::remove_file(path).unwrap();
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let mut commands: Vec<Vec<String>> = Vec::new();
    for (model, files) in [
        ("llama", &["config.json", "tokenizer.json", "model.safetensors"][..]),
        ("llama-sharded", &["model.safetensors.index.json", "model-00002-of-00003.safetensors"]),
    ] {
        for file in files {
            let copy = copy_of(model).keep();
            fifo_at(&copy.join(file));
            commands.push(vec!["inspect".into(), copy.display().to_string()]);
        }
    }
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    commands.extend([
        words("inspect fifo"),
        words("inspect m --tokenizer fifo"),
        words("embed fifo --model m"),
        words("embed fifo --model m --input-format csv"),
        words("embed fifo --model m --input-format parquet"),
        words("refine m out --corpus fifo"),
        words("fit m out --corpus corpus.txt --teacher-vectors fifo --lambda 1"),
        words("extract m out --config fifo"),
        words("eval --model m --sts fifo"),
    ]);
    fs::write(at("keys.toml"), "[server]\nport = 0\napi_key_file = \"fifo\"\n").unwrap();
    commands.push(words("--config keys.toml"));
    for args in commands {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = command(dir.path(), &args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("{args:?} waits");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !said.contains("panicked"), "{args:?}: {said}");
        // The reader of configurations and keys accepts pipes, which another test covers. In this test the command only
        // has to end.
        let may_be_pipe =
            args.iter().any(|arg| ["--config", "keys.toml"].contains(arg)) && args.first() != Some(&"extract");
        let known = ["a named pipe (FIFO)", "not a GGUF file", "unexpected argument"];
        assert!(may_be_pipe || known.iter().any(|part| said.contains(part)), "{args:?}: {said}");
    }
}

/// Tokenizers with absurd requirements give an error that names the file, within seconds.
#[test]
fn tokenizers_that_ask_for_too_much_are_refused_by_inspect() {
    let model = copy_of("llama");
    let path = model.path().join("tokenizer.json");
    let whole: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let replace = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    for (part, bomb) in [
        ("normalizer", serde_json::json!({"type": "Sequence", "normalizers": vec![replace; 40]})),
        ("normalizer", serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="})),
    ] {
        let mut changed = whole.clone();
        changed[part] = bomb;
        fs::write(&path, changed.to_string()).unwrap();
        refused(model.path(), &["inspect", "."], "tokenizer.json: has a");
    }
}
