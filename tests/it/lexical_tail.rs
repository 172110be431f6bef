//! Tests the lexical tail on every way from a text to a vector: the API, `embed`, `refine`, `extract`, `inspect`, the preflight and devices.

use std::path::Path;
use std::process::Command;

use embedding_server::config::{Config, ModelConfig};
use embedding_server::server::preflight;
use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::Embedder;
use layer0::pooling::place::DeviceChoice;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::common::{TestApp, checkpoint, difference, fixtures, length, settings};
use crate::process::command;

const BUILTIN: &str = "builtin:default";

fn overrides(columns: usize, weight: f64) -> Overrides {
    Overrides { lexical_dimensions: Some(columns), lexical_weight: Some(weight), ..Overrides::default() }
}

fn embedder(columns: usize, weight: f64) -> Embedder {
    let opened = Checkpoint::open(&checkpoint("llama"), &overrides(columns, weight)).unwrap();
    Embedder::new(opened, settings(|settings| settings.special_tokens = Some(false))).unwrap()
}

fn app(path: impl AsRef<Path>, columns: Option<usize>) -> TestApp {
    TestApp::start(|config| {
        config.models = vec![ModelConfig::new("m", path.as_ref())];
        let model = &mut config.models[0];
        // Devices do not support a tail.
        (model.lexical_dimensions, model.device) = (columns, Some(DeviceChoice::Cpu));
    })
}

fn unit(vector: &[f32]) -> Vec<f32> {
    let length = length(vector);
    vector.iter().map(|&x| (f64::from(x) / length) as f32).collect()
}

/// 384 learned columns and a tail of 1,152 have the length of text-embedding-3-small's vectors.
#[test]
fn the_builtin_model_fills_the_schema_of_text_embedding_3_small() {
    let (tailed, plain) = (app(BUILTIN, Some(1152)), app(BUILTIN, None));
    let texts = ["The cat sits on the mat.", "Eine Katze sitzt auf der Matte.", "ERR-4711 in module x9", ""];
    let (all, without) = (tailed.vectors(&json!({"input": texts})), plain.vectors(&json!({"input": texts})));
    for (vector, without) in all.iter().zip(&without) {
        assert_eq!((vector.len(), without.len()), (1536, 384));
        assert!((length(vector) - 1.0).abs() < 1e-5);
        assert!(difference(&unit(&vector[..384]), without) < 1e-6, "a prefix is the vector of the table");
    }
    // `dimensions` cuts the tail first, and scales again.
    let cut = |dimensions: usize| tailed.vectors(&json!({"input": texts, "dimensions": dimensions}));
    assert_eq!(cut(384), without);
    assert_eq!(cut(256), plain.vectors(&json!({"input": texts, "dimensions": 256})));
    for (cut, vector) in cut(1000).iter().zip(&all) {
        assert!(difference(cut, &unit(&vector[..1000])) < 1e-6);
    }
    assert_eq!(app(BUILTIN, Some(0)).vectors(&json!({"input": texts})), without, "no tail gives the same bits");
    let (status, _, _, param, message) = {
        let answer = tailed.embed(&json!({"input": "a", "dimensions": 1537}));
        let (status, kind, code, param, message) = answer.error();
        (status, kind.to_owned(), code.map(str::to_owned), param.map(str::to_owned), message.to_owned())
    };
    assert_eq!((status, param.as_deref()), (400, Some("dimensions")));
    assert!(message.contains("1536"), "{message}");
    let described = tailed.get("/openapi.json").body;
    let maximum = &described["components"]["schemas"]["CreateEmbeddingRequest"]["properties"]["dimensions"]["maximum"];
    assert_eq!(*maximum, 1536);
}

#[test]
fn an_exact_token_lifts_a_cosine_and_a_translation_does_not() {
    let app = app(BUILTIN, Some(1152));
    let tails = app.vectors(&json!({"input": ["error ERR4711", "ERR4711 occurred", "ein Fehler", "mistake"]}));
    let cosine = |a: usize, b: usize| {
        let (a, b) = (unit(&tails[a][384..]), unit(&tails[b][384..]));
        a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>()
    };
    assert!(cosine(0, 1) > 0.3, "{}", cosine(0, 1));
    assert!(cosine(0, 2).abs() < 0.15 && cosine(0, 3).abs() < 0.15, "{} {}", cosine(0, 2), cosine(0, 3));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The prefix is the vector without a tail, and a batch is its texts one by one, for any number of columns.
    #[test]
    fn learned_columns_come_first(columns in 1usize..700, weight in 0.1f64..3.0, texts in prop::collection::vec("[a-z ]{1,300}", 1..5)) {
        let (plain, tailed) = (embedder(0, weight), embedder(columns, weight));
        prop_assert_eq!(tailed.dimensions(), plain.dimensions() + columns);
        let (without, with) = (plain.embed(&texts).unwrap(), tailed.embed(&texts).unwrap());
        for ((text, without), with) in texts.iter().zip(&without).zip(&with) {
            prop_assert!((length(with) - 1.0).abs() < 1e-5);
            prop_assert!(difference(&unit(&with[..plain.dimensions()]), without) < 1e-6);
            prop_assert_eq!(&tailed.embed(&[text]).unwrap()[0], with);
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn refine_and_extract_write_the_tail_and_every_command_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let llama = checkpoint("llama").display().to_string();
    let table = fixtures("refined").join("table").display().to_string();
    let flags = ["--lexical-dimensions", "40", "--lexical-weight", "0.6"];
    run(command(&["refine", &table, &at("refined")]).args(flags));
    run(command(&["extract", &llama, &at("extracted")]).args(flags));
    for made in ["refined", "extracted"] {
        let opened = Checkpoint::open(Path::new(&at(made)), &Overrides::default()).unwrap();
        assert_eq!((opened.conventions.lexical_dimensions, opened.conventions.lexical_weight), (40, 0.6), "{made}");
        let preview = Checkpoint::preview(Path::new(&at(made)), &Overrides::default()).unwrap().unwrap();
        assert_eq!((preview.dimensions, preview.lexical_dimensions), (opened.table.dimensions(), 40));
        let text = run(&mut command(&["inspect", &at(made)]));
        assert!(text.contains("40 columns of 0.6 times the length"), "{text}");
    }
    assert!(!std::fs::read_to_string(at("refined/config.json")).unwrap().contains("token_count_exponent"));

    let config = Config { models: vec![ModelConfig::new("m", at("extracted"))], ..Config::default() };
    let columns = Checkpoint::open(&checkpoint("llama"), &Overrides::default()).unwrap().table.dimensions();
    assert_eq!(preflight::check(&config).unwrap(), [Some(columns + 40)]);
    let mut wide = config.clone();
    wide.models[0].dimensions = Some(columns + 41);
    assert!(preflight::check(&wide).unwrap_err().to_string().contains(&format!("between 1 and {}", columns + 40)));

    let expected = app(at("extracted"), None).vectors(&json!({"input": "hello world hello"})).remove(0);
    assert_eq!(expected.len(), columns + 40);
    #[cfg(feature = "bulk")]
    {
        std::fs::write(at("texts.txt"), "hello world hello\n").unwrap();
        let embed = |args: &[&str]| -> Vec<f32> {
            let line = run(command(&["embed", &at("texts.txt")]).args(args));
            let line: Value = serde_json::from_str(&line).unwrap();
            serde_json::from_value(line["embedding"].clone()).unwrap()
        };
        assert_eq!(embed(&["--model", &at("extracted")]), expected);
        assert_eq!(embed(&[&["--model", llama.as_str()][..], &flags[..]].concat()), expected);
        let cut = embed(&["--model", &at("extracted"), "--lexical-dimensions", "0"]);
        assert_eq!(cut.len(), columns);
        let npy = at("out.npy");
        run(command(&["embed", &at("texts.txt"), "--output", &npy, "--model", &llama]).args(flags));
        let bytes = std::fs::read(&npy).unwrap();
        assert!(String::from_utf8_lossy(&bytes[..128]).contains(&format!("(1, {})", columns + 40)));
    }
}

#[test]
fn a_device_refuses_a_tail_and_auto_goes_on_with_the_cpu() {
    let open = |device| {
        let opened = Checkpoint::open(&checkpoint("llama"), &overrides(8, 0.8)).unwrap();
        let settings = settings(|settings| {
            settings.device = device;
            settings.device_min_tokens = Some(0);
        });
        Embedder::new(opened, settings)
    };
    #[cfg(feature = "candle")]
    {
        let error = open(DeviceChoice::CandleCpu).unwrap_err().to_string();
        assert!(error.contains("do not support lexical_dimensions = 8"), "{error}");
    }
    let auto = open(DeviceChoice::Auto).unwrap();
    assert!(auto.device().starts_with("cpu (") && auto.why_cpu().unwrap().contains("lexical_dimensions"));
}

/// What a reranker compares by tokens are the rows of the table; the tail would only add noise.
#[test]
fn soft_and_sparse_scores_do_not_depend_on_the_tail() {
    let (tailed, plain) = (app(BUILTIN, Some(200)), app(BUILTIN, None));
    let documents = ["A cat sat.", "Der Hund bellt.", "Stocks fell."];
    for method in ["soft", "lexical", "cosine"] {
        let body = json!({"query": "the cat", "documents": documents, "method": method}).to_string();
        let ask = |app: &TestApp| app.post("/v1/rerank", "application/json", body.as_bytes());
        let (a, b) = (ask(&tailed), ask(&plain));
        assert_eq!((a.status, b.status), (200, 200), "{}", a.body);
        let order = |answer: &Value| -> Vec<u64> {
            answer["results"].as_array().unwrap().iter().map(|r| r["index"].as_u64().unwrap()).collect()
        };
        assert_eq!(order(&a.body)[0], order(&b.body)[0], "{method}");
        if method == "lexical" {
            assert_eq!(a.body["results"], b.body["results"]);
        }
    }
    let sparse = |app: &TestApp| {
        let body = json!({"input": "the cat sat"}).to_string();
        app.post("/v1/sparse-embeddings", "application/json", body.as_bytes()).body["data"].clone()
    };
    assert_eq!(sparse(&tailed), sparse(&plain));
}
