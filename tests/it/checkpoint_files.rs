//! Tests of checkpoint directories as programs and people leave them: which file takes precedence, what JSON may
//! contain, and what may be in the place of a file.

use std::fs;
use std::path::Path;

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Settings};
use layer0::extract::card::Origin;
use layer0::extract::source::LocalSource;
use layer0::extract::{Options, extract};
use layer0::norm::NormKind;
use layer0::progress::Silent;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::common::{copy_of, fixtures};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TABLE: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const TEXTS: [&str; 3] = ["hello world", "a", "\u{c548}\u{b155}"];

fn vectors(dir: &Path) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(dir, &Overrides::default()).unwrap_or_else(|e| panic!("{e}"));
    Embedder::new(checkpoint, Settings::default()).unwrap().embed(&TEXTS).unwrap()
}

fn error(dir: &Path) -> String {
    Checkpoint::open(dir, &Overrides::default()).err().unwrap_or_else(|| panic!("{} loads", dir.display())).to_string()
}

fn extracted(dir: &Path, out: &Path) -> Result<(), String> {
    let source = LocalSource::open(dir, Origin::local(dir)).map_err(|e| e.to_string())?;
    extract(&source, out, &Options::default(), &Silent).map(|_| ()).map_err(|e| e.to_string())
}

/// Returns a copy of a static table's fixture.
fn copy_of_static(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures("static").join(name)).unwrap().map(Result::unwrap) {
        if entry.path().is_file() {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    dir
}

/// Writes the tensors of `from` to `to`, each as `change` returns it.
fn rewrite(
    from: &Path,
    to: &Path,
    metadata: &[(&str, &str)],
    change: impl Fn(&str, Dtype, Vec<u8>) -> (String, Dtype, Vec<u8>),
) {
    let bytes = fs::read(from).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let (name, dtype, data) = change(&name, tensor.dtype(), tensor.data().to_vec());
            (name, dtype, tensor.shape().to_vec(), data)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    safetensors::serialize_to_file(views, Some(metadata), to).unwrap();
}

fn as_they_are(name: &str, dtype: Dtype, data: Vec<u8>) -> (String, Dtype, Vec<u8>) {
    (name.to_owned(), dtype, data)
}

fn prepend(path: &Path, start: &[u8]) {
    let content = fs::read(path).unwrap();
    fs::write(path, [start, &content].concat()).unwrap();
}

#[test]
fn a_single_file_wins_over_an_index_that_lies_beside_it() {
    let dir = copy_of("llama");
    let at = |name: &str| dir.path().join(name);
    let right = vectors(dir.path());
    // These are the shard and the index of an older save of the same model.
    let shard = "model-00001-of-00001.safetensors";
    rewrite(&at(WEIGHTS), &at(shard), &[], |name, dtype, data| {
        (name.to_owned(), dtype, data.iter().rev().copied().collect())
    });
    let index = json!({"weight_map": {TABLE: shard, NORM: shard}});
    fs::write(at(INDEX), index.to_string()).unwrap();
    assert_eq!(vectors(dir.path()), right);
    let out = dir.path().join("out");
    extracted(dir.path(), &out).unwrap();
    assert_eq!(vectors(&out), right);
    // An index whose shards are missing is no reason to refuse the single file.
    fs::remove_file(at(shard)).unwrap();
    assert_eq!(vectors(dir.path()), right);
    // transformers prefers the file that the configuration names to any other.
    fs::rename(at(WEIGHTS), at("other.safetensors")).unwrap();
    rewrite(&at("other.safetensors"), &at(WEIGHTS), &[], |name, dtype, data| {
        (name.to_owned(), dtype, data.iter().rev().copied().collect())
    });
    let mut config: Value = serde_json::from_slice(&fs::read(at("config.json")).unwrap()).unwrap();
    config["transformers_weights"] = "other.safetensors".into();
    fs::write(at("config.json"), config.to_string()).unwrap();
    assert_eq!(vectors(dir.path()), right);
    config["transformers_weights"] = "../other.safetensors".into();
    fs::write(at("config.json"), config.to_string()).unwrap();
    assert!(error(dir.path()).contains("transformers_weights"), "{}", error(dir.path()));
}

#[test]
fn an_index_may_name_its_shards_with_a_dot_and_a_slash() {
    let dir = copy_of("llama-sharded");
    let right = vectors(dir.path());
    let path = dir.path().join(INDEX);
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for shard in index["weight_map"].as_object_mut().unwrap().values_mut() {
        *shard = format!("././{}", shard.as_str().unwrap()).into();
    }
    fs::write(&path, index.to_string()).unwrap();
    assert_eq!(vectors(dir.path()), right);
    extracted(dir.path(), &dir.path().join("out")).unwrap();
    for outside in ["./../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "", "."] {
        fs::write(&path, json!({"weight_map": {TABLE: outside}}).to_string()).unwrap();
        assert!(error(dir.path()).contains("plain file names"), "{outside}: {}", error(dir.path()));
    }
}

#[test]
fn a_byte_order_mark_and_the_words_of_python_are_read_in_every_json_file() {
    for mark in [&b"\xef\xbb\xbf"[..], b""] {
        let dir = copy_of("llama-sharded");
        let right = vectors(dir.path());
        for name in ["config.json", "tokenizer.json", INDEX] {
            let path = dir.path().join(name);
            let text = fs::read_to_string(&path).unwrap();
            // In tokenizer.json the words go into the object `model`, because the tokenizers library ignores unknown
            // keys only there.
            let open = text.find("\"model\":").unwrap_or(0);
            let open = open + text[open..].find('{').unwrap();
            let words = "\"a\": [Infinity, -Infinity, NaN, 1e999, \"cut \\ud83d\"], ";
            let text = format!("{}{words}{}", &text[..=open], &text[open + 1..]);
            fs::write(&path, [mark, text.as_bytes()].concat()).unwrap();
        }
        assert_eq!(vectors(dir.path()), right);
        let out = dir.path().join("out");
        extracted(dir.path(), &out).unwrap();
        assert_eq!(vectors(&out), right);
        let again = dir.path().join("again");
        extracted(&out, &again).unwrap();
        assert_eq!(fs::read(again.join("config.json")).unwrap(), fs::read(out.join("config.json")).unwrap());
        let written = fs::read_to_string(again.join("config.json")).unwrap();
        let compact: String = written.split_whitespace().collect();
        assert!(compact.contains("\"a\":[Infinity,-Infinity,NaN,Infinity,"), "{written}");

        let table = copy_of_static("sentence-transformers");
        let right = vectors(table.path());
        prepend(&table.path().join("tokenizer.json"), mark);
        let modules = table.path().join("modules.json");
        let text = fs::read_to_string(&modules).unwrap().replacen("\"idx\": 0", "\"idx\": NaN", 1);
        assert!(text.contains("NaN"), "{text}");
        fs::write(&modules, [mark, text.as_bytes()].concat()).unwrap();
        assert_eq!(vectors(table.path()), right);
    }
}

#[test]
fn a_git_lfs_pointer_is_named_in_place_of_every_file() {
    let sharded = fs::read_dir(fixtures("checkpoints").join("llama-sharded")).unwrap();
    let shard = sharded.map(|e| e.unwrap().file_name().into_string().unwrap());
    let shards: Vec<String> = shard.filter(|name| name.ends_with(".safetensors")).collect();
    assert!(!shards.is_empty());
    let files = ["config.json", "tokenizer.json", INDEX].map(str::to_owned);
    for name in files.iter().chain(&shards) {
        let dir = copy_of("llama-sharded");
        fs::write(dir.path().join(name), POINTER).unwrap();
        let Err(error) = Checkpoint::open(dir.path(), &Overrides::default()).map(|_| ()) else { continue };
        let error = error.to_string();
        assert!(
            error.contains(name.as_str()) && error.contains("Git LFS pointer") && error.contains("git lfs pull"),
            "{error}"
        );
    }
    for (fixture, name) in [
        ("model2vec", "config.json"),
        ("model2vec", WEIGHTS),
        ("sentence-transformers", "modules.json"),
        ("wordllama", WEIGHTS),
    ] {
        let dir = copy_of_static(fixture);
        fs::write(dir.path().join(name), POINTER).unwrap();
        let error = error(dir.path());
        assert!(error.contains(name) && error.contains("Git LFS pointer"), "{fixture}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("model.gguf");
    fs::write(&gguf, POINTER).unwrap();
    assert!(error(&gguf).contains("Git LFS pointer"), "{}", error(&gguf));
}

#[test]
fn a_table_and_a_norm_of_doubles_are_read() {
    let dir = copy_of("llama-f32");
    let right = vectors(dir.path());
    let path = dir.path().join(WEIGHTS);
    let widened = dir.path().join("widened");
    rewrite(&path, &widened, &[], |name, _, data| {
        let numbers = data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
        (name.to_owned(), Dtype::F64, numbers.flat_map(f64::to_le_bytes).collect())
    });
    fs::rename(&widened, &path).unwrap();
    assert_eq!(vectors(dir.path()), right);
    assert_eq!(Checkpoint::open(dir.path(), &Overrides::default()).unwrap().table_source.dtype, "F64");
    let out = dir.path().join("out");
    extracted(dir.path(), &out).unwrap();
    assert_eq!(vectors(&out), right);
    rewrite(&path, &widened, &[], |name, _, data| (name.to_owned(), Dtype::I64, data));
    fs::rename(&widened, &path).unwrap();
    for refused in [error(dir.path()), extracted(dir.path(), &dir.path().join("no")).unwrap_err()] {
        assert!(refused.contains("I64") && !refused.contains("quantized"), "{refused}");
    }
}

#[test]
fn a_table_that_the_header_says_is_stored_under_another_name_is_found() {
    let dir = copy_of("llama-tied");
    let path = dir.path().join(WEIGHTS);
    let right = vectors(dir.path());
    let kept = dir.path().join("kept");
    let renamed =
        |name: &str, dtype, data| as_they_are(if name == TABLE { "lm_head.weight" } else { name }, dtype, data);
    rewrite(&path, &kept, &[("format", "pt"), (TABLE, "lm_head.weight")], renamed);
    fs::rename(&kept, &path).unwrap();
    assert_eq!(vectors(dir.path()), right);
    let out = dir.path().join("out");
    extracted(dir.path(), &out).unwrap();
    assert_eq!(vectors(&out), right);
    // A sharded model stores the other name in its index, as save_torch_state_dict of huggingface_hub writes it.
    fs::rename(&path, dir.path().join("model-00001-of-00001.safetensors")).unwrap();
    rewrite(&dir.path().join("model-00001-of-00001.safetensors"), &kept, &[("format", "pt")], as_they_are);
    fs::rename(&kept, dir.path().join("model-00001-of-00001.safetensors")).unwrap();
    let mut index = json!({
        "metadata": {"total_size": 1, TABLE: "lm_head.weight"},
        "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors", NORM: "model-00001-of-00001.safetensors"},
    });
    fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
    assert_eq!(vectors(dir.path()), right);
    let out = dir.path().join("out2");
    extracted(dir.path(), &out).unwrap();
    assert_eq!(vectors(&out), right);
    // Without that name, the configuration or the default of its class says whether the head is the table.
    index["metadata"] = Value::Null;
    fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (model_type, tied, found) in [
        ("llama", json!(true), true),
        ("llama", json!(false), false),
        ("llama", Value::Null, false),
        ("lfm2", Value::Null, true),
        ("lfm2", json!(false), false),
    ] {
        config["model_type"] = model_type.into();
        config["norm_eps"] = config["rms_norm_eps"].clone();
        config["tie_word_embeddings"] = tied.clone();
        fs::write(&path, config.to_string()).unwrap();
        let out = dir.path().join(format!("{model_type}-{tied}"));
        if found {
            assert_eq!(vectors(dir.path()), right, "{model_type}, {tied}");
            extracted(dir.path(), &out).unwrap();
            assert_eq!(vectors(&out), right, "{model_type}, {tied}");
        } else {
            // An output layer that is not tied to the table is not used as the table.
            for error in [error(dir.path()), extracted(dir.path(), &out).unwrap_err()] {
                assert!(error.contains("no embedding table"), "{error}");
            }
        }
    }
}

#[test]
fn the_configuration_of_a_static_table_is_read_as_its_library_reads_it() {
    for (value, normalize) in [
        (json!(null), false),
        (json!(true), true),
        (json!(1), true),
        (json!(0), false),
        (json!("false"), true),
        (json!(""), false),
    ] {
        let dir = copy_of_static("model2vec");
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["normalize"] = value.clone();
        config["architectures"] = Value::Null;
        config["model_type"] = "model2vec".into();
        fs::write(&path, config.to_string()).unwrap();
        let opened = Checkpoint::open(dir.path(), &Overrides::default()).unwrap();
        assert_eq!((opened.kind.name(), opened.conventions.normalize), ("Model2Vec directory", normalize), "{value}");
    }
}

#[test]
fn a_file_that_is_there_and_cannot_be_read_is_an_error() {
    for (fixture, name) in
        [("model2vec", "config.json"), ("sentence-transformers", "modules.json"), ("model2vec", "modules.json")]
    {
        for content in ["{", "", "[1]", "\"x\"", "null"] {
            let dir = copy_of_static(fixture);
            fs::write(dir.path().join(name), content).unwrap();
            match Checkpoint::open(dir.path(), &Overrides::default()) {
                // Model2Vec's own library ignores modules.json.
                Ok(opened) => assert_eq!((opened.kind.name(), name), ("Model2Vec directory", "modules.json")),
                Err(error) => assert!(error.to_string().contains(name), "{fixture}, {content:?}: {error}"),
            }
        }
    }
}

#[test]
fn a_tokenizer_in_another_format_is_named() {
    for (name, content, format) in [
        ("tekken.json", "{}", "mistral-common"),
        ("tiktoken.model", "IQ== 0\n", "tiktoken"),
        ("qwen.tiktoken", "IQ== 0\n", "tiktoken"),
        ("tokenizer.model", "IQ== 0\n", "tiktoken"),
        ("tokenizer.model", "\n\u{fffd}", "SentencePiece"),
        ("spiece.model", "\n\u{fffd}", "SentencePiece"),
        ("vocab.txt", "[UNK]\n", "WordPiece"),
        ("merges.txt", "a b\n", "byte-pair"),
    ] {
        let dir = copy_of("llama");
        fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        fs::write(dir.path().join(name), content).unwrap();
        for error in [error(dir.path()), extracted(dir.path(), &dir.path().join("out")).unwrap_err()] {
            assert!(error.contains(name) && error.contains(format) && error.contains("save_pretrained"), "{error}");
            assert!(error.contains("tokenizer.json: is missing"), "{error}");
        }
    }
}

fn stdout(arguments: &[&str]) -> Result<String, String> {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_embedding-server")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn what_extract_is_told_of_a_model_is_part_of_its_output() {
    let dir = copy_of("llama-f32");
    let at = |name: &str| dir.path().join(name);
    let path = at(WEIGHTS);
    let renamed = |name: &str, dtype, data| {
        let name = if name == TABLE {
            "tower.table"
        } else if name == NORM {
            "tower.out.weight"
        } else {
            name
        };
        as_they_are(name, dtype, data)
    };
    rewrite(&path, &at("renamed"), &[("format", "pt")], renamed);
    fs::rename(at("renamed"), &path).unwrap();
    let names = ["--embedding-tensor", "tower.table", "--norm-tensor", "tower.out.weight"];
    for (number, (model_type, flags, norm)) in [
        (json!("llama"), vec![], None),
        (json!("llama"), vec!["--norm", "rms_plus_one", "--norm-eps", "0.25"], Some(NormKind::RmsPlusOne)),
        (json!("llama"), vec!["--embedding-scale", "3.5"], None),
        (json!("granite"), vec!["--embedding-scale", "3.5", "--norm-eps", "0.25"], None),
        (json!("never-heard-of"), vec!["--norm", "layer", "--norm-eps", "0.25"], Some(NormKind::Layer)),
        (json!("never-heard-of"), vec!["--norm", "none"], Some(NormKind::None)),
        (Value::Null, vec!["--norm", "rms"], Some(NormKind::Rms)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config: Value = serde_json::from_slice(&fs::read(at("config.json")).unwrap()).unwrap();
        config["model_type"] = model_type.clone();
        fs::write(at("config.json"), config.to_string()).unwrap();
        let value = |flag: &str| {
            let place = flags.iter().position(|given| *given == flag)?;
            flags.get(place + 1)?.parse().ok()
        };
        let overrides = Overrides {
            norm,
            norm_eps: value("--norm-eps"),
            embedding_scale: value("--embedding-scale"),
            embedding_tensor: Some("tower.table".to_owned()),
            norm_tensor: Some("tower.out.weight".to_owned()),
            ..Overrides::default()
        };
        let right = Checkpoint::open(dir.path(), &overrides).unwrap_or_else(|e| panic!("{flags:?}: {e}"));
        let out = at(&number.to_string());
        let source = [dir.path().to_str().unwrap(), out.to_str().unwrap()];
        stdout(&[&["extract"][..], &source, &names, &flags].concat()).unwrap_or_else(|e| panic!("{flags:?}: {e}"));
        let made = Checkpoint::open(&out, &Overrides::default()).unwrap_or_else(|e| panic!("{flags:?}: {e}"));
        assert_eq!((&made.norm, made.table.bytes()), (&right.norm, right.table.bytes()), "{model_type}, {flags:?}");
        // The output is a valid source for a second extraction.
        let again = at(&format!("{number}-again"));
        extracted(&out, &again).unwrap();
        assert_eq!(
            Checkpoint::open(&again, &Overrides::default()).unwrap().norm,
            right.norm,
            "{model_type}, {flags:?}"
        );
        let refined = at(&format!("{number}-refined"));
        let source = [dir.path().to_str().unwrap(), refined.to_str().unwrap()];
        let frequencies = ["--dtype", "f32"];
        stdout(&[&["refine"][..], &source, &names, &flags, &frequencies].concat()).unwrap();
        let direct = at(&format!("{number}-direct"));
        stdout(&["refine", out.to_str().unwrap(), direct.to_str().unwrap(), "--dtype", "f32"]).unwrap();
        assert_eq!(vectors(&refined), vectors(&direct), "{model_type}, {flags:?}");
    }
}

#[test]
fn overrides_that_mean_nothing_are_refused() {
    let dir = copy_of("llama");
    let out = dir.path().join("out");
    for (flag, value, remedy) in [
        ("--norm", "rmsnorm", "write rms, rms_plus_one, layer, layer_plus_one or none"),
        ("--norm-eps", "-1", "write a number from 0 to 1"),
        ("--norm-eps", "NaN", "write a number from 0 to 1"),
        ("--embedding-scale", "0", "write a number from 0.000001 to 1000000"),
    ] {
        let flag = format!("{flag}={value}");
        let error = stdout(&["extract", dir.path().to_str().unwrap(), out.to_str().unwrap(), &flag]).unwrap_err();
        assert!(error.contains(remedy), "{error}");
    }
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for written in [json!([]), json!({"norm": "rmsnorm"}), json!({"norm_eps": -1}), json!({"embedding_scale": "2"})] {
        config["layer0"] = written;
        fs::write(&path, config.to_string()).unwrap();
        assert!(error(dir.path()).contains("layer0"), "{}", error(dir.path()));
    }
}

#[test]
fn the_default_prompt_of_sentence_transformers_is_put_before_each_text() {
    let dir = copy_of_static("sentence-transformers");
    let open = || Checkpoint::open(dir.path(), &Overrides::default());
    let embed = |texts: &[&str]| Embedder::new(open().unwrap(), Settings::default()).unwrap().embed(texts).unwrap();
    let prompted = embed(&["hello world a", "hello world "]);
    let plain = embed(&["a"]);
    let path = dir.path().join("config_sentence_transformers.json");
    let describe = |value: &Value| fs::write(&path, value.to_string()).unwrap();
    describe(&json!({"prompts": {"query": "hello world "}, "default_prompt_name": "query"}));
    assert_eq!(embed(&["a", ""]), prompted);
    assert_ne!(prompted[0], plain[0]);
    for without in [
        json!({"prompts": {"query": "hello world "}, "default_prompt_name": null}),
        json!({"prompts": {"query": "hello world "}}),
        json!({"prompts": {"query": ""}, "default_prompt_name": "query"}),
        json!({"prompts": null, "default_prompt_name": "document"}),
    ] {
        describe(&without);
        assert_eq!(embed(&["a"]), plain, "{without}");
    }
    for wrong in [json!({"default_prompt_name": "other"}), json!({"default_prompt_name": 1}), json!([])] {
        describe(&wrong);
        let error = open().err().unwrap().to_string();
        assert!(error.contains("config_sentence_transformers.json"), "{error}");
    }
    // The prompt is ignored, with a warning, by Model2Vec, whose library does not support prompts, and by an LLM's
    // layer 0.
    for other in [copy_of_static("model2vec"), copy_of("llama")] {
        let prompts = json!({"prompts": {"query": "hello world "}, "default_prompt_name": "query"});
        fs::write(other.path().join("config_sentence_transformers.json"), prompts.to_string()).unwrap();
        let opened = Checkpoint::open(other.path(), &Overrides::default()).unwrap();
        assert!(opened.prompt.is_none() && opened.warnings.iter().any(|w| w.contains("hello world ")));
    }
}

#[test]
fn a_tokenizer_on_which_the_library_panics_is_a_plain_error() {
    let dir = copy_of("llama");
    let path = dir.path().join("tokenizer.json");
    let tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for charsmap in [Value::Null, json!("AAAAAAAAAAA="), json!("BAAAAAAAAAAA!!!!")] {
        let mut broken = tokenizer.clone();
        broken["normalizer"] = json!({"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": charsmap}]});
        fs::write(&path, broken.to_string()).unwrap();
        let error = stdout(&["inspect", dir.path().to_str().unwrap()]).unwrap_err();
        assert!(error.starts_with("error: ") && error.contains("tokenizer.json"), "{error}");
        assert!(!error.contains("panicked") && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn extract_does_not_destroy_its_recipe() {
    let dir = copy_of("llama");
    let out = dir.path().join("out");
    extracted(dir.path(), &out).unwrap();
    let recipe = out.join("mergekit_config.yml");
    let text = format!(
        "slices:\n  - sources:\n      - model: {}\n        layer_range: [0, 0]\nmerge_method: passthrough\n",
        dir.path().display()
    );
    fs::write(&recipe, &text).unwrap();
    let error = stdout(&["extract", recipe.to_str().unwrap(), out.to_str().unwrap(), "--force"]).unwrap_err();
    assert!(error.contains("is, or holds, the source"), "{error}");
    assert_eq!(fs::read_to_string(&recipe).unwrap(), text);
}
