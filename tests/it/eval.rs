//! Tests the commands `refine` and `eval`, and that an endpoint has the same scores as the table that it serves.

use std::path::Path;
use std::process::{Command, Output};

use embedding_server::config::ModelConfig;
use serde_json::Value;

use crate::common::TestApp;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_embedding-server")).args(args).env_remove("OPENAI_API_KEY").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/refined").join(name).to_str().unwrap().to_owned()
}

/// Writes small data sets of all three kinds to `dir`.
fn data(dir: &Path) {
    let write = |name: &str, content: &str| std::fs::write(dir.join(name), content).unwrap();
    write("pairs.csv", "the sea,the sea,5\nthe sun,sun,4\nred bird,small fish,2\nnight,a tree runs,0\n");
    write("more.tsv", "rain falls\train\t3\nblue\tgreen\t1\nsky\tsky\t5\n");
    write("a.txt", "the sea\nthe moon\na bird sings\n");
    // The texts have the same words in another order, so their vectors are the same.
    write("b.txt", "sea the\nmoon the\nsings bird a\n");
    std::fs::create_dir_all(dir.join("search/qrels")).unwrap();
    write("search/corpus.jsonl", "{\"_id\":\"1\",\"text\":\"the sea\"}\n{\"_id\":\"2\",\"text\":\"red fish\"}\n");
    write("search/queries.jsonl", "{\"_id\":\"q\",\"text\":\"a red fish\"}\n");
    write("search/qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\t2\t1\n");
}

#[test]
fn a_refined_table_measures_the_same_by_file_and_by_api() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (table, corpus, out) = (fixture("table"), fixture("corpus.txt"), path("out"));
    let refine = ["refine", &table, &out, "--dtype", "int4", "--corpus", &corpus];
    let made = run(&refine);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("31 rows of 10 dimensions in int4"), "{}", text(&made.stdout));
    let again = run(&refine);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("--force"), "{}", text(&again.stderr));

    let app = TestApp::start(|config| config.models = vec![ModelConfig::new("refined", &out)]);
    let url = app.url("/v1");
    let model = format!("file={out}");
    let (pairs, more, a, b, search) =
        (path("pairs.csv"), path("more.tsv"), path("a.txt"), path("b.txt"), path("search"));
    let chart = path("chart.svg");
    let eval = run(&[
        "eval",
        "--model",
        &model,
        "--url",
        &url,
        "--api-model",
        "refined",
        "--sts",
        &pairs,
        &more,
        "--bitext",
        &a,
        &b,
        "--retrieval",
        &search,
        "--json",
        "--chart",
        &chart,
    ]);
    assert!(eval.status.success(), "{}", text(&eval.stderr));
    let found: Value = serde_json::from_slice(&eval.stdout).unwrap();
    let scores = found["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 2 * (2 + 3 + 2));
    for score in scores.iter().filter(|score| score["model"] == "file") {
        let same = |other: &&Value| {
            ["kind", "task", "metric"].iter().all(|key| other[key] == score[key]) && other["model"] == "refined"
        };
        let other = scores.iter().find(same).unwrap();
        assert!((score["value"].as_f64().unwrap() - other["value"].as_f64().unwrap()).abs() < 1e-9, "{score} {other}");
    }
    let value = |task: &str, metric: &str| {
        scores.iter().find(|s| s["task"] == task && s["metric"] == metric).unwrap()["value"].as_f64().unwrap()
    };
    assert_eq!((value("a-b", "top-1"), value("search", "ndcg@10"), value("search", "recall@10")), (1.0, 1.0, 1.0));
    assert_eq!(found["means"][0]["task"], "mean of 2");
    assert!(std::fs::read_to_string(chart).unwrap().starts_with("<svg"));
}

#[test]
fn values_and_differences_have_their_number_and_a_seeded_interval() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (table, out, pairs, more, a, b) =
        (fixture("table"), path("out"), path("pairs.csv"), path("more.tsv"), path("a.txt"), path("b.txt"));
    let made = run(&["refine", &table, &out, "--corpus", &fixture("corpus.txt")]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let (raw, refined) = (format!("raw={table}"), format!("refined={out}"));
    let eval = |more_args: &[&str]| {
        let args = ["eval", "--model", &raw, "--model", &refined, "--sts", &pairs, &more, "--bitext", &a, &b];
        let output = run(&[&args[..], more_args].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let json =
        |more_args: &[&str]| -> Value { serde_json::from_str(&eval(&[more_args, &["--json"][..]].concat())).unwrap() };
    let found = json(&[]);
    assert_eq!(found["bootstrap"], serde_json::json!({ "resamples": 1000, "seed": 0, "level": 0.95 }));
    let number = |value: &Value| value.as_f64().unwrap();
    for score in found["scores"].as_array().unwrap().iter().chain(found["means"].as_array().unwrap()) {
        let (low, high) = (number(&score["interval"][0]), number(&score["interval"][1]));
        assert!((-1.0..=1.0).contains(&low) && low <= high && high <= 1.0, "{score}");
        assert!(score["size"].as_u64().unwrap() >= 3, "{score}");
    }
    let differences = found["differences"].as_array().unwrap();
    // The differences between the two models are those of two data sets, of their mean, and of the three metrics of the
    // third data set.
    assert_eq!(differences.len(), 6);
    for difference in differences {
        assert_eq!((difference["model"].as_str(), difference["baseline"].as_str()), (Some("refined"), Some("raw")));
        let value = |model: &str| {
            let all = found["scores"].as_array().unwrap().iter().chain(found["means"].as_array().unwrap());
            let same = |s: &&Value| {
                s["model"] == model && ["kind", "task", "metric"].iter().all(|key| s[key] == difference[key])
            };
            number(&all.clone().find(same).unwrap()["value"])
        };
        assert!((number(&difference["value"]) - (value("refined") - value("raw"))).abs() < 1e-12, "{difference}");
        assert!(number(&difference["interval"][0]) <= number(&difference["interval"][1]));
    }
    // Both models find all translations in every resample.
    let bitext = differences.iter().find(|d| d["metric"] == "top-1").unwrap();
    assert_eq!((number(&bitext["interval"][0]), number(&bitext["interval"][1])), (0.0, 0.0));
    assert_eq!(json(&[]), found);
    let few = |seed| json(&["--resamples", "3", "--seed", seed])["scores"].clone();
    assert_ne!(few("1"), few("2"));
    let none = json(&["--resamples", "0"]);
    assert!(none["scores"][0]["interval"].is_null() && none["differences"][0]["interval"].is_null());
    assert_eq!(none["scores"][0]["value"], found["scores"][0]["value"]);

    let table = eval(&[]);
    for part in
        ["metric", " n ", "refined - raw", "95 % bootstrap interval, 1000 resamples, seed 0", "100.0 [100.0, 100.0]"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
    let twice = run(&["eval", "--model", &raw, "--model", &raw, "--sts", &pairs, &pairs]);
    assert!(text(&twice.stderr).contains("two models are named \"raw\""), "{}", text(&twice.stderr));
    let twice = text(&run(&["eval", "--model", &raw, "--sts", &pairs, &pairs]).stdout);
    assert!(twice.contains("pairs (2)"), "{twice}");
}

#[test]
fn what_cannot_be_measured_is_said() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (table, pairs, a) = (fixture("table"), path("pairs.csv"), path("a.txt"));
    std::fs::write(dir.path().join("short.txt"), "one\n").unwrap();
    let short = path("short.txt");
    let table = table.as_str();
    for (args, part) in [
        (vec!["--model", table], "nothing to measure"),
        (vec!["--sts", &pairs], "nothing to measure"),
        (vec!["--model", table, "--bitext", &a, &short], "1 lines"),
        (vec!["--model", "/nowhere", "--sts", &pairs], "/nowhere"),
        (vec!["--url", "ftp://example.com/v1", "--api-model", "m", "--sts", &pairs], "no http:// or https:// address"),
        (vec!["--url", "http://127.0.0.1:9/v1", "--api-model", "m", "--sts", &pairs], "127.0.0.1:9"),
    ] {
        let output = run(&[&["eval"], args.as_slice()].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains(part), "{}", text(&output.stderr));
    }
    let app = TestApp::start(|_| {});
    let output = run(&["eval", "--url", &app.url("/v1"), "--api-model", "other", "--sts", &pairs]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("404"), "{}", text(&output.stderr));
}

/// The built-in model's table finds a question's passage in another language, which BM25 cannot.
#[test]
fn retrieval_is_measured_by_several_methods_with_paired_differences() {
    let dir = tempfile::tempdir().unwrap();
    let search = dir.path().join("search");
    std::fs::create_dir_all(search.join("qrels")).unwrap();
    let passages = [
        ("a", "Photosynthesis turns light into sugar."),
        ("b", "Der Hund schläft im Garten."),
        ("c", "The market fell on Monday."),
        ("d", "Error E5521: the filter is blocked."),
    ];
    let line = |(id, text): (&str, &str)| format!("{{\"_id\": \"{id}\", \"text\": \"{text}\"}}\n");
    std::fs::write(search.join("corpus.jsonl"), passages.map(line).concat()).unwrap();
    let queries = [("1", "the sleeping dog"), ("2", "E5521"), ("3", "stocks on Monday"), ("4", "sugar from light")];
    std::fs::write(search.join("queries.jsonl"), queries.map(line).concat()).unwrap();
    let judged = "query-id\tcorpus-id\tscore\n1\tb\t1\n2\td\t1\n3\tc\t1\n4\ta\t1\n";
    std::fs::write(search.join("qrels/test.tsv"), judged).unwrap();
    let search = search.to_str().unwrap();
    let model = format!("m={}/models/default", env!("CARGO_MANIFEST_DIR"));
    let methods = ["lexical", "cosine", "soft", "combined", "sparse", "fused", "reranked", "hybrid"];
    let eval = run(&["eval", "--model", &model, "--retrieval", search, "--method", &methods.join(","), "--json"]);
    assert!(eval.status.success(), "{}", text(&eval.stderr));
    let found: Value = serde_json::from_slice(&eval.stdout).unwrap();
    let ndcg = |method: &str| {
        let is_it = |score: &&Value| score["model"] == format!("m {method}") && score["metric"] == "ndcg@10";
        let score = found["scores"].as_array().unwrap().iter().find(is_it).unwrap();
        assert_eq!((&score["size"], score["interval"].as_array().unwrap().len()), (&Value::from(4), 2));
        score["value"].as_f64().unwrap()
    };
    assert!(ndcg("lexical") < 1.0);
    for method in ["soft", "combined", "sparse", "fused", "reranked", "hybrid"] {
        assert_eq!(ndcg(method), 1.0, "{method}");
    }
    let differences = found["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 2 * (methods.len() - 1));
    assert!(differences.iter().all(|difference| difference["baseline"] == "m lexical"));
    // A server measures the same.
    let app = TestApp::start(|config| config.models = vec![ModelConfig::new("m", "builtin:default")]);
    let url = app.url("/v1");
    let methods = methods.join(",");
    let args = ["eval", "--url", &url, "--api-model", "m", "--retrieval", search, "--method", &methods, "--json"];
    let by_api = run(&args);
    assert!(by_api.status.success(), "{}", text(&by_api.stderr));
    let by_api: Value = serde_json::from_slice(&by_api.stdout).unwrap();
    assert_eq!(by_api["scores"], found["scores"]);
    let missing = run(&["eval", "--url", &url, "--api-model", "none", "--retrieval", search, "--method", "sparse"]);
    assert!(!missing.status.success());
    assert!(text(&missing.stderr).contains("/v1/sparse-embeddings: answered 404"), "{}", text(&missing.stderr));
    let table = run(&["eval", "--model", &model, "--retrieval", search, "--method", "combined"]);
    assert!(text(&table.stdout).contains("m combined"), "{}", text(&table.stdout));
    let refused = run(&["eval", "--model", &model, "--sts", "x.csv", "--method", "soft"]);
    assert!(!refused.status.success());
}
