//! Tests the exponent of token counts on every way from a text to a vector: the API, `embed`, `refine`, `extract`, `inspect` and devices.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Settings, TokenInput};
use layer0::error::LoadErrorKind;
use layer0::pooling::place::DeviceChoice;
use layer0::yield_point::Undisturbed;
use serde_json::{Value, json};

use crate::common::{TestApp, checkpoint, difference, fixtures, settings};
use crate::process::command;

const EXPONENT: f64 = 0.7;

fn open(path: &Path, exponent: Option<f64>) -> Checkpoint {
    Checkpoint::open(path, &Overrides { token_count_exponent: exponent, ..Overrides::default() }).unwrap()
}

/// Starts a server with the tiny Llama, whose token IDs are those of its own vocabulary.
fn app(exponent: Option<f64>) -> TestApp {
    TestApp::start(|config| {
        let model = &mut config.models[0];
        (model.token_count_exponent, model.token_input) = (exponent, TokenInput::Model);
        // Devices do not support an exponent.
        model.device = Some(DeviceChoice::Cpu);
    })
}

/// Returns the vector of the tokens `ids` of the tiny Llama by the definition, in f64.
fn by_definition(ids: &[u32]) -> Vec<f32> {
    let embedder = Embedder::new(open(&checkpoint("llama"), None), Settings::default()).unwrap();
    let mut counts = BTreeMap::new();
    for &id in ids {
        *counts.entry(id).or_insert(0.0f64) += 1.0;
    }
    let distinct: Vec<u32> = counts.keys().copied().collect();
    let dimensions = embedder.table_dimensions();
    let mut rows = vec![0.0; distinct.len() * dimensions];
    embedder.token_vectors(&distinct, &mut rows, &Undisturbed).unwrap();
    let mut sum = vec![0.0f64; dimensions];
    for (row, count) in rows.chunks(dimensions).zip(counts.values()) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += count.powf(EXPONENT) * f64::from(*x);
        }
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    sum.iter().map(|x| (x / length) as f32).collect()
}

#[test]
fn the_api_weighs_tokens_by_a_power_of_their_counts() {
    let (weighted, plain) = (app(Some(EXPONENT)), app(None));
    let rows = open(&checkpoint("llama"), None).table.rows() as u32;
    // Short texts, texts that are counted in a table of the vocabulary, and one that is pooled in many steps.
    let texts: Vec<Vec<u32>> = [3, 30, 128, 129, 1000, 100_000]
        .into_iter()
        .map(|length: u32| (0..length).map(|i| i.wrapping_mul(i).wrapping_add(i / 7) % 31 % rows).collect())
        .collect();
    let batch = weighted.vectors(&json!({"input": texts}));
    for (ids, vector) in texts.iter().zip(&batch) {
        assert!(difference(vector, &by_definition(ids)) < 1e-6, "{}", ids.len());
        assert_eq!(&weighted.vectors(&json!({"input": [ids]}))[0], vector, "{}", ids.len());
    }
    let mean = plain.vectors(&json!({"input": texts}));
    assert!(mean.iter().zip(&batch).any(|(a, b)| difference(a, b) > 0.01), "the exponent changes vectors");
    let one = app(Some(1.0)).vectors(&json!({"input": texts}));
    assert_eq!(one, mean);
    let usage = &weighted.embed(&json!({"input": [texts[4]]})).body["usage"];
    assert_eq!(usage["total_tokens"], 1000, "every occurrence is a token of the request");
}

#[test]
fn similarities_and_cosines_of_rerank_are_those_of_the_vectors() {
    let app = app(Some(EXPONENT));
    let texts = ["hello hello hello world", "world world hello", "hello"];
    let vectors = app.vectors(&json!({"input": texts}));
    let cosine = |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(a, b)| a * b).sum::<f32>();
    let post = |path: &str, body: Value| app.post(path, "application/json", body.to_string().as_bytes()).body;
    let ranked = post("/v1/rerank", json!({"query": texts[0], "documents": &texts[1..], "method": "cosine"}));
    for result in ranked["results"].as_array().unwrap() {
        let index = result["index"].as_u64().unwrap() as usize;
        let score = result["relevance_score"].as_f64().unwrap() as f32;
        assert!((score - cosine(0, index + 1).max(0.0)).abs() < 1e-5, "{ranked}");
    }
    let similar = post("/v1/similarity", json!({"input": texts}));
    let first: Vec<f32> = serde_json::from_value(similar["data"][0]["similarity"].clone()).unwrap();
    assert!(first.iter().zip(0..).all(|(found, index)| (found - cosine(0, index)).abs() < 1e-5), "{similar}");
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn refine_and_extract_write_the_exponent_and_every_command_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let llama = checkpoint("llama").display().to_string();
    let table = fixtures("refined").join("table").display().to_string();
    for dtype in ["int4", "int8", "f16", "f32"] {
        run(&mut command(&["refine", &table, &at(dtype), "--dtype", dtype, "--token-count-exponent", "0.7"]));
    }
    run(&mut command(&["extract", &llama, &at("extracted"), "--token-count-exponent", "0.7"]));
    for made in ["int4", "int8", "f16", "f32", "extracted"] {
        let made = at(made);
        assert_eq!(open(Path::new(&made), None).conventions.token_count_exponent, EXPONENT, "{made}");
        assert_eq!(open(Path::new(&made), Some(1.0)).conventions.token_count_exponent, 1.0, "{made}");
        assert!(run(&mut command(&["inspect", &made])).contains("weighs n^0.7"), "{made}");
    }
    assert!(run(&mut command(&["inspect", &llama])).contains("every occurrence of a token counts"));
    // A table that is refined again keeps the exponent.
    run(&mut command(&["refine", &at("f32"), &at("again")]));
    assert_eq!(open(Path::new(&at("again")), None).conventions.token_count_exponent, EXPONENT);

    let text = "hello hello world hello";
    std::fs::write(at("texts.txt"), format!("{text}\n")).unwrap();
    let served = TestApp::start(|config| {
        config.models[0].path = at("extracted").into();
        config.models[0].device = Some(DeviceChoice::Cpu);
    });
    let expected = served.vectors(&json!({"input": text})).remove(0);
    #[cfg(feature = "bulk")]
    {
        let line = run(&mut command(&["embed", &at("texts.txt"), "--model", &at("extracted")]));
        let line: Value = serde_json::from_str(&line).unwrap();
        let embedded: Vec<f32> = serde_json::from_value(line["embedding"].clone()).unwrap();
        assert_eq!(embedded, expected);
    }
    let opened = Embedder::builder(checkpoint("llama")).token_count_exponent(EXPONENT).open().unwrap();
    assert_eq!(opened.embed(&[text]).unwrap()[0], expected);
}

#[test]
fn an_exponent_outside_of_zero_to_one_is_refused_wherever_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let table = fixtures("refined").join("table").display().to_string();
    run(&mut command(&["refine", &table, out.to_str().unwrap(), "--token-count-exponent", "0.5"]));
    let file = out.join("config.json");
    let good = std::fs::read_to_string(&file).unwrap();
    assert!(good.contains("\"token_count_exponent\": 0.5"), "{good}");
    for wrong in ["1.5", "-1", "\"much\""] {
        std::fs::write(&file, good.replace("exponent\": 0.5", &format!("exponent\": {wrong}"))).unwrap();
        let error = Checkpoint::open(&out, &Overrides::default()).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
        assert!(Checkpoint::preview(&out, &Overrides::default()).is_err());
    }
    let overrides = Overrides { token_count_exponent: Some(1.5), ..Overrides::default() };
    let error = Checkpoint::open(&checkpoint("llama"), &overrides).unwrap_err();
    assert!(error.kind() == LoadErrorKind::Setting && error.to_string().contains("between 0"), "{error}");
    let unmade = dir.path().join("unmade").display().to_string();
    let output = command(&["refine", &table, &unmade, "--token-count-exponent", "1.5"]).output().unwrap();
    assert!(!output.status.success());
}

/// A device that ignored the exponent would compute other vectors than the CPU.
#[test]
fn a_device_refuses_an_exponent_and_auto_goes_on_with_the_cpu() {
    let open = |device| {
        let settings = settings(|settings| {
            settings.device = device;
            settings.device_min_tokens = Some(0);
        });
        Embedder::new(open(&checkpoint("llama"), Some(EXPONENT)), settings)
    };
    #[cfg(feature = "candle")]
    {
        let error = open(DeviceChoice::CandleCpu).unwrap_err().to_string();
        assert!(error.contains("do not support token_count_exponent = 0.7") && error.contains("auto"), "{error}");
    }
    let auto = open(DeviceChoice::Auto).unwrap();
    assert!(auto.device().starts_with("cpu (") && !auto.wants_whole_batches());
    assert!(auto.why_cpu().unwrap().contains("token_count_exponent"));
}
