//! Tests what `extract` writes: from every family's fixture, in every dtype, from mergekit's recipes, and over existing
//! outputs.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::Embedder;
use layer0::extract::card::Origin;
use layer0::extract::source::LocalSource;
use layer0::extract::staging::Existing;
use layer0::extract::{Options, extract};
use layer0::norm::NormKind;
use layer0::progress::Silent;
use layer0::table::TableDtype;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::common::{broken, checkpoint, copy_of, difference, settings};
use crate::models::sharded;

fn run(source: &Path, out: &Path, options: &Options) -> Result<(), String> {
    let source = LocalSource::open(source, Origin::local(source)).map_err(|e| e.to_string())?;
    extract(&source, out, options, &Silent).map(|_| ()).map_err(|e| e.to_string())
}

fn vectors(dir: &Path) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(dir, &Overrides::default()).unwrap();
    let settings = settings(|settings| settings.normalize = Some(false));
    let texts = ["hello world", "안녕하세요, 세계!", "  two spaces\n", "<s>the</s><|im_start|>"];
    Embedder::new(checkpoint, settings).unwrap().embed(&texts).unwrap()
}

/// Returns the dtype, the shape and the bytes of each tensor, by name, of all files of a directory.
fn tensors(dir: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = fs::read(&path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let of = |(name, t): (String, safetensors::tensor::TensorView<'_>)| {
                (name, (format!("{:?}", t.dtype()), t.shape().to_vec(), t.data().to_vec()))
            };
            found.extend(file.tensors().into_iter().map(of));
        }
    }
    found
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn every_family_extracts_to_the_same_vectors_and_bytes() {
    let work = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(checkpoint("")).unwrap() {
        let source = entry.unwrap().path();
        let name = source.file_name().unwrap().to_str().unwrap().to_owned();
        let out = work.path().join(&name);
        if let Err(error) = run(&source, &out, &Options::default()) {
            wrong.push(format!("{name}: {error}"));
            continue;
        }
        count += 1;
        if vectors(&out) != vectors(&source) {
            wrong.push(format!("{name}: other vectors"));
        }
        let (made, from) = (tensors(&out), tensors(&source));
        let expected = match name.as_str() {
            "bloom" => 5,
            "olmo" => 1,
            _ => 2 + usize::from(made.keys().any(|n| n.ends_with(".bias"))),
        };
        if made.len() != expected || made.values().any(|t| !from.values().any(|f| f == t)) {
            wrong.push(format!("{name}: {:?}", made.keys()));
        }
        if made.keys().any(|n| n.contains("language_model") || n.contains("lm_head")) {
            wrong.push(format!("{name}: {:?}", made.keys()));
        }
        let config = config(&out);
        let layers = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"].iter().find_map(|k| config.get(*k));
        if layers != Some(&Value::from(0))
            || config.get("text_config").is_some()
            || config.get("layer_types").is_some_and(|l| l != &Value::Array(vec![]))
        {
            wrong.push(format!("{name}: {config}"));
        }
        for file in fs::read_dir(&out).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o644, "{name}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 68);
}

#[test]
fn a_full_sharded_model_becomes_two_tensors() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("deep/er/out");
    run(sharded(), &out, &Options::default()).unwrap();
    assert_eq!(vectors(&out), vectors(sharded()));
    let (made, from) = (tensors(&out), tensors(sharded()));
    assert_eq!(made.keys().collect::<Vec<_>>(), ["model.embed_tokens.weight", "model.norm.weight"]);
    assert!(made.iter().all(|(name, tensor)| from[name] == *tensor));
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    let sha256 = <sha2::Sha256 as sha2::Digest>::digest(&made["model.embed_tokens.weight"].2);
    let hex: String = sha256.iter().map(|b| format!("{b:02x}")).collect();
    for part in [hex.as_str(), "license: mit", "bytes are the source's", sharded().to_str().unwrap()] {
        assert!(card.contains(part), "{card}");
    }
    let metadata = fs::read(out.join("model.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&metadata).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    // The length of the header is a multiple of 8, so that the numbers of the tensors are aligned.
    assert_eq!(u64::from_le_bytes(metadata[..8].try_into().unwrap()) % 8, 0);
}

#[test]
fn dtypes_convert_as_asked_and_the_config_says_so() {
    let work = tempfile::tempdir().unwrap();
    for (name, key) in
        [("gemma", "dtype"), ("llama-f16", "dtype"), ("llama-f32", "dtype"), ("llama-old-config", "torch_dtype")]
    {
        let source = checkpoint(name);
        let plain = vectors(&source);
        for (dtype, stored, said, off) in [
            (TableDtype::F32, "F32", "float32", 0.0),
            (TableDtype::F16, "F16", "float16", 0.01),
            (TableDtype::Bf16, "BF16", "bfloat16", 0.05),
        ] {
            let out = work.path().join(format!("{name}-{stored}"));
            run(&source, &out, &Options { dtype: Some(dtype), ..Options::default() }).unwrap();
            assert!(tensors(&out).values().all(|(dtype, ..)| dtype == stored), "{name}");
            assert_eq!(config(&out)[key], said, "{name}");
            for (a, b) in vectors(&out).iter().zip(&plain) {
                assert!(difference(a, b) <= off, "{name} {stored}: {}", difference(a, b));
            }
            let again = work.path().join(format!("{name}-{stored}-again"));
            run(&out, &again, &Options { dtype: Some(dtype), ..Options::default() }).unwrap();
            assert_eq!(tensors(&again), tensors(&out));
        }
    }
}

#[test]
fn broken_sources_leave_no_output() {
    let work = tempfile::tempdir().unwrap();
    for (name, part) in [
        ("no-config", "config.json"),
        ("no-tokenizer", "set tokenizer to where it lies"),
        ("no-weights", "holds no weights"),
        ("no-table", "no embedding table"),
        ("no-norm", "no final norm"),
        ("unknown-model-type", "not known"),
        ("gpt2", "positions"),
        ("quantized", "no embedding table"),
        ("float8", "quantized"),
        ("vocabulary-past-table", "300 rows"),
        ("nan-norm", "not finite"),
        ("truncated", "cut short"),
        ("missing-shard", "model-00002-of-00002.safetensors"),
        ("flat-table", "shape"),
    ] {
        let out = work.path().join(name);
        let error = run(&broken(name), &out, &Options::default()).unwrap_err();
        assert!(error.contains(part), "{name}: {error}");
        assert!(!out.exists(), "{name}");
    }
    let left: Vec<_> = fs::read_dir(work.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn tokenizer_and_config_can_come_from_elsewhere() {
    let (dir, elsewhere) = (copy_of("llama"), tempfile::tempdir().unwrap());
    for name in ["config.json", "tokenizer.json"] {
        fs::rename(dir.path().join(name), elsewhere.path().join(name)).unwrap();
    }
    let out = elsewhere.path().join("out");
    for tokenizer in [elsewhere.path().join("tokenizer.json"), elsewhere.path().to_owned()] {
        let overrides = Overrides {
            config: Some(elsewhere.path().join("config.json")),
            tokenizer: Some(tokenizer),
            ..Overrides::default()
        };
        run(dir.path(), &out, &Options { overrides, existing: Existing::Replace, ..Options::default() }).unwrap();
        assert_eq!(vectors(&out), vectors(&checkpoint("llama")));
    }
    let norm = Overrides {
        norm: Some(NormKind::None),
        embedding_tensor: Some("model.embed_tokens.weight".into()),
        ..Overrides::default()
    };
    run(&checkpoint("mistral3"), &elsewhere.path().join("x"), &Options { overrides: norm, ..Options::default() })
        .unwrap_err();
}

#[test]
fn what_exists_is_replaced_by_force_alone_and_only_checkpoints_are() {
    let work = tempfile::tempdir().unwrap();
    let force = Options { existing: Existing::Replace, ..Options::default() };
    let out = work.path().join("out");
    // An empty directory contains nothing that could be lost.
    fs::create_dir(&out).unwrap();
    run(&checkpoint("llama"), &out, &Options::default()).unwrap();
    let before = tensors(&out);
    assert!(run(&checkpoint("gemma"), &out, &Options::default()).unwrap_err().ends_with("out: exists"));
    assert_eq!(tensors(&out), before);
    // A failure leaves the old output unchanged.
    assert!(run(&broken("nan-norm"), &out, &force).is_err());
    assert_eq!(tensors(&out), before);
    run(&checkpoint("gemma"), &out, &force).unwrap();
    assert_eq!(vectors(&out), vectors(&checkpoint("gemma")));

    let home = work.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("letter.txt"), "dear").unwrap();
    assert!(run(&checkpoint("llama"), &home, &force).unwrap_err().contains("no checkpoint"));
    assert!(run(&checkpoint("llama"), &home.join("letter.txt"), &force).unwrap_err().contains("is a file"));
    assert_eq!(fs::read_to_string(home.join("letter.txt")).unwrap(), "dear");

    // Neither the source nor a directory that contains the source is ever replaced.
    let source = copy_of("llama");
    assert!(run(source.path(), source.path(), &force).unwrap_err().contains("holds, the source"));
    assert!(run(source.path(), source.path().parent().unwrap(), &force).is_err());
    assert_eq!(vectors(source.path()), vectors(&checkpoint("llama")));
    let mut left: Vec<_> = fs::read_dir(work.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["home", "out"]);
}

/// A killed run leaves a directory beside the output, and a lock that no process holds.
#[test]
fn the_remains_of_a_killed_run_are_cleared() {
    let work = tempfile::tempdir().unwrap();
    let remains = work.path().join(".out.incomplete");
    fs::create_dir_all(remains.join("deeper")).unwrap();
    fs::write(remains.join("model.safetensors"), "half").unwrap();
    fs::write(remains.join("merges.txt"), "another model's").unwrap();
    let lock = work.path().join(".out.lock");
    let held = OpenOptions::new().create(true).append(true).open(&lock).unwrap();
    held.lock().unwrap();
    let out = work.path().join("out");
    let error = run(&checkpoint("llama"), &out, &Options::default()).unwrap_err();
    assert!(error.contains("another process"), "{error}");
    assert!(remains.join("merges.txt").exists());
    drop(held);
    run(&checkpoint("llama"), &out, &Options::default()).unwrap();
    assert_eq!(vectors(&out), vectors(&checkpoint("llama")));
    assert!(!out.join("merges.txt").exists());
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1);
}

/// The limit on the size of files that the process may write is smaller than tokenizer.json, so the system kills the
/// process when the tensors are written and the tokenizer is not.
#[cfg(unix)]
#[test]
fn killed_while_it_writes_it_leaves_no_output() {
    use std::os::unix::process::ExitStatusExt;
    let work = tempfile::tempdir().unwrap();
    let source = copy_of("llama-full");
    let tokenizer = fs::read_to_string(source.path().join("tokenizer.json")).unwrap();
    fs::write(source.path().join("tokenizer.json"), tokenizer + &" ".repeat(200_000)).unwrap();
    let mut extract = Command::new("sh");
    extract.current_dir(work.path()).args(["-c", "ulimit -c 0; ulimit -f 100; exec \"$0\" extract \"$1\" out"]);
    extract.arg(env!("CARGO_BIN_EXE_embedding-server")).arg(source.path());
    assert_eq!(extract.status().unwrap().signal(), Some(25), "no SIGXFSZ");
    assert!(!work.path().join("out").exists());
    let half = tensors(&work.path().join(".out.incomplete"));
    assert_eq!(half.len(), 2);
    run(&checkpoint("llama-full"), &work.path().join("out"), &Options::default()).unwrap();
    assert_eq!(vectors(&work.path().join("out")), vectors(&checkpoint("llama-full")));
    assert!(!work.path().join(".out.incomplete").exists() && !work.path().join(".out.lock").exists());
}

#[cfg(not(feature = "hub"))]
#[test]
fn without_the_feature_an_id_is_an_error_that_names_it() {
    let work = tempfile::tempdir().unwrap();
    for args in [&["extract", "org/name", "out"][..], &["fetch", "org/name"], &["inspect", "org/name"]] {
        let output = command(work.path(), args);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("--features hub"), "{}", stderr(&output));
    }
}

// The command line -----------------------------------------------------------------------------------------------------

fn command(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_embedding-server")).current_dir(dir).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `extract` accepts the arguments of `mergekit-yaml ./example.yaml ./test`.
#[test]
fn mergekits_recipe_makes_the_same_checkpoint() {
    let work = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(checkpoint("llama-full"), work.path().join("model")).unwrap();
    let recipe =
        "slices:\n  - sources:\n      - model: ./model\n        layer_range: [0, 0]\nmerge_method: passthrough\n";
    fs::create_dir(work.path().join("recipes")).unwrap();
    // Paths in a recipe are relative to the working directory, as in mergekit.
    fs::write(work.path().join("recipes/example.yaml"), recipe).unwrap();
    let output = command(work.path(), &["extract", "./recipes/example.yaml", "./test"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let test = work.path().join("test");
    assert_eq!(vectors(&test), vectors(&checkpoint("llama-full")));
    assert_eq!(tensors(&test).len(), 2);
    assert!(String::from_utf8_lossy(&output.stdout).contains("model.embed_tokens.weight  BF16 [355, 16], 11.1 KiB"));

    let output = command(work.path(), &["extract", "./recipes/example.yaml", "./test"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--force"));

    fs::write(work.path().join("f32.yml"), format!("{recipe}dtype: float32\n")).unwrap();
    let output = command(work.path(), &["extract", "f32.yml", "./test", "--force"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(tensors(&test).values().all(|(dtype, ..)| dtype == "F32"));
    // The flag takes precedence over the recipe.
    let output = command(work.path(), &["extract", "f32.yml", "./test", "--force", "--dtype", "f16"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(tensors(&test).values().all(|(dtype, ..)| dtype == "F16"));
}

#[test]
fn other_recipes_and_sources_say_what_is_supported() {
    let work = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(work.path().join(name), text).unwrap();
    write("linear.yaml", "models:\n  - model: a\nmerge_method: linear\n");
    write(
        "one.yaml",
        "slices:\n  - sources:\n      - model: a\n        layer_range: [0, 1]\nmerge_method: passthrough\n",
    );
    write(
        "gone.yaml",
        "slices:\n  - sources:\n      - model: ./gone\n        layer_range: [0, 0]\nmerge_method: passthrough\n",
    );
    write("note.txt", "x");
    for (source, part) in [
        ("linear.yaml", "layer_range: [0, 0]"),
        ("one.yaml", "its end is exclusive"),
        ("gone.yaml", "./gone: does not exist"),
        ("none.yaml", "No such file"),
        ("note.txt", "a mergekit recipe"),
        ("./none", "a Hub id"),
    ] {
        let output = command(work.path(), &["extract", source, "out"]);
        assert_eq!(output.status.code(), Some(1), "{source}");
        assert!(stderr(&output).contains(part), "{source}: {}", stderr(&output));
        assert!(!work.path().join("out").exists());
    }
    let missing: PathBuf = checkpoint("llama");
    let output = command(work.path(), &["extract", missing.to_str().unwrap(), "out", "--revision", "v1"]);
    assert!(stderr(&output).contains("no Hub id"), "{}", stderr(&output));
}
