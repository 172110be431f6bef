//! Tests `fit`: its results against numpy's in float64 (`tests/fixtures/make_fit.py`), vectors in files, and the
//! command.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Settings};
use layer0::progress::Silent;
use layer0_tuning::FitError;
use layer0_tuning::corpus::Fields;
use layer0_tuning::fit::vectors::VectorFile;
use layer0_tuning::fit::{self, Corpus, Fitted, Options};
use layer0_tuning::refine::Rows;
use serde::Deserialize;
use serde_json::Value;

use crate::common::{difference, fixtures};

#[derive(Deserialize)]
struct Case {
    gamma: f64,
    lambda: f32,
    dimensions: usize,
    held_out_share: f64,
    texts: usize,
    held_out: usize,
    token_count_exponent: f64,
    rows: Vec<Vec<f32>>,
    cosine_before: f64,
    cosine_after: f64,
}

fn fixture(name: &str) -> PathBuf {
    fixtures("fit").join(name)
}

fn golden() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(fixture("golden.json")).unwrap()).unwrap()
}

fn table() -> Checkpoint {
    Checkpoint::open(&fixtures("refined").join("table"), &Overrides::default()).unwrap()
}

fn corpus() -> PathBuf {
    fixtures("refined").join("corpus.txt")
}

fn fitted<'a>(
    source: &'a Checkpoint,
    vectors: &Path,
    held_out: f64,
    options: &Options,
) -> Result<Fitted<'a>, FitError> {
    let scratch = tempfile::tempdir().unwrap();
    let corpus =
        Corpus { files: &[corpus()], fields: Fields { field: "text", max_skipped: Default::default() }, held_out };
    let found = fit::fit(source, &corpus, &mut VectorFile::open(vectors)?, options, scratch.path(), &Silent);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "vectors are left on disk");
    found
}

fn rows(fitted: &Fitted<'_>) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    fitted
        .for_each_block(&mut |first, block| {
            assert_eq!(first, rows.len());
            rows.extend(block.chunks(fitted.dimensions()).map(<[f32]>::to_vec));
            Ok(())
        })
        .unwrap();
    rows
}

#[test]
fn rows_equal_the_formulas_in_float64() {
    for case in golden() {
        let overrides = Overrides { token_count_exponent: Some(case.token_count_exponent), ..Overrides::default() };
        let source = Checkpoint::open(&fixtures("refined").join("table"), &overrides).unwrap();
        let options =
            Options { gamma: case.gamma, lambda: Some(case.lambda), steps: 100, dimensions: Some(case.dimensions) };
        for (file, tolerance) in [("vectors.npy", 2e-4), ("vectors.jsonl", 2e-4), ("vectors-f2.npy", 2e-2)] {
            let fitted = fitted(&source, &fixture(file), case.held_out_share, &options).unwrap();
            let found = rows(&fitted);
            assert_eq!(found.len(), case.rows.len());
            let largest = case.rows.iter().flatten().fold(0.0f32, |max, x| x.abs().max(max));
            for (row, (found, expected)) in found.iter().zip(&case.rows).enumerate() {
                let off = difference(found, expected) / largest;
                assert!(off < tolerance, "{file}, gamma {}: row {row} is off by {off}", case.gamma);
            }
            let summary = fitted.summary();
            let report = summary.held_out.unwrap();
            assert_eq!((summary.texts, report.texts), (case.texts, case.held_out));
            let off =
                (report.cosine_before - case.cosine_before).abs().max((report.cosine_after - case.cosine_after).abs());
            assert!(off < f64::from(tolerance), "{file}: {report:?} {} {}", case.cosine_before, case.cosine_after);
        }
    }
}

const CHOSEN: Options = Options { gamma: 0.75, lambda: Some(0.02), steps: 50, dimensions: None };

fn error(vectors: &Path, held_out: f64, options: &Options) -> String {
    fitted(&table(), vectors, held_out, options).err().map_or_else(String::new, |e| e.to_string())
}

/// Writes an npy file that consists of the header's text and of the bytes `data`.
fn npy(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn files_that_hold_no_vectors_of_these_texts_are_refused_by_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read_to_string(fixture("vectors.jsonl")).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let jsonl = |change: &dyn Fn(&mut Vec<&str>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        let path = dir.path().join("vectors.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        error(&path, 0.3, &CHOSEN)
    };
    assert_eq!(jsonl(&|_| {}), "");
    let zeros = "[0,0,0,0,0,0,0,0,0,0,0,0,0,0]";
    let cases = [
        (jsonl(&|lines| lines.truncate(59)), "holds 59 vectors, and the corpus has more texts"),
        (jsonl(&|lines| lines.push("[1]")), "more vectors than the 60 texts"),
        (jsonl(&|lines| lines[7] = "[1, 2]"), "row 7, counted from 0, that has 2 numbers, where the first had 14"),
        (jsonl(&|lines| lines[7] = zeros), "row 7, counted from 0, that is all zeros"),
        (jsonl(&|lines| lines[7] = "[1e999]"), "line 8"),
        (jsonl(&|lines| lines[7] = "{\"vector\": [1]}"), "line 8"),
        (jsonl(&|lines| lines[7] = ""), "line 8"),
        (jsonl(&|lines| lines[0] = "[]"), "row 0"),
    ];
    for (error, part) in cases {
        assert!(error.contains(part), "{part}: {error}");
    }

    let matrix = |descr: &str, order: &str, shape: &str, data: &[u8]| {
        let path = dir.path().join("vectors.npy");
        npy(&path, &format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n"), data);
        error(&path, 0.3, &CHOSEN)
    };
    let not_a_number: Vec<u8> = std::iter::repeat_n(f32::NAN.to_le_bytes(), 120).flatten().collect();
    let cases = [
        (matrix("<f4", "False", "(60, 2)", &not_a_number), "row 0, counted from 0, that holds NaN"),
        (matrix("<f4", "False", "(60, 2)", &not_a_number[..100]), "ends within row 12"),
        (matrix("<f4", "False", "(99999999999, 2)", &not_a_number), "NaN"),
        (matrix("<i8", "False", "(60, 2)", &not_a_number), "<i8"),
        (matrix("<f4", "True", "(60, 2)", &not_a_number), "row 0, counted from 0, that holds NaN"),
        (matrix("<f4", "True", "(60, 2)", &not_a_number[..100]), "ends within row 0"),
        (matrix("<f4", "Maybe", "(60, 2)", &not_a_number), "Fortran order"),
        (matrix("<f4", "False", "(60,)", &not_a_number), "shape (60,)"),
        (matrix("<f4", "False", "(60, 99999999)", &not_a_number), "shape (60, 99999999)"),
        (matrix("<f4", "False", "(60, -1)", &not_a_number), "shape (60, -1)"),
        (error(&fixtures("refined").join("corpus.txt"), 0.3, &CHOSEN), "no known kind"),
        (error(&dir.path().join("none.npy"), 0.3, &CHOSEN), "none.npy"),
    ];
    for (error, part) in cases {
        assert!(error.contains(part), "{part}: {error}");
    }
    std::fs::write(dir.path().join("short.npy"), b"\x93NUMPY\x01\x00\xff\xff{").unwrap();
    assert!(error(&dir.path().join("short.npy"), 0.3, &CHOSEN).contains("no npy file"));
}

#[test]
fn options_out_of_range_are_named() {
    let vectors = fixture("vectors.npy");
    for (held_out, options, part) in [
        (0.3, Options { gamma: f64::NAN, ..CHOSEN }, "gamma = NaN"),
        (0.3, Options { gamma: -1.0, ..CHOSEN }, "gamma = -1"),
        (0.3, Options { lambda: Some(0.0), ..CHOSEN }, "lambda"),
        (0.3, Options { lambda: Some(f32::INFINITY), ..CHOSEN }, "lambda"),
        (0.3, Options { dimensions: Some(0), ..CHOSEN }, "0 dimensions"),
        (0.3, Options { dimensions: Some(15), ..CHOSEN }, "at most 14"),
        (0.9, CHOSEN, "held-out share of 0.9"),
        (f64::NAN, CHOSEN, "held-out share of NaN"),
        (0.01, Options { lambda: None, ..CHOSEN }, "to choose lambda on"),
    ] {
        let error = error(&vectors, held_out, &options);
        assert!(error.contains(part), "{part}: {error}");
    }
    // If no text is held out, there is no report, and lambda must be given.
    let source = table();
    let fitted = fitted(&source, &vectors, 0.0, &CHOSEN).unwrap();
    assert_eq!((fitted.summary().texts, fitted.summary().held_out), (60, None));
}

#[test]
fn lambda_is_the_one_of_the_grid_that_serves_the_held_out_texts_best() {
    let (source, vectors) = (table(), fixture("vectors.npy"));
    let found = fitted(&source, &vectors, 0.4, &Options { lambda: None, ..CHOSEN }).unwrap();
    let after = |lambda| {
        let options = Options { lambda: Some(lambda), ..CHOSEN };
        fitted(&source, &vectors, 0.4, &options).unwrap().summary().held_out.unwrap().cosine_after
    };
    let best = [3e-3, 1e-2, 3e-2, 1e-1, 3e-1].into_iter().max_by(|&a, &b| after(a).total_cmp(&after(b))).unwrap();
    assert!(found.summary().lambda_chosen);
    assert_eq!(found.summary().lambda, best);
}

#[test]
fn a_fit_that_made_the_table_worse_says_so_and_has_an_exit_code_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    // The vectors are independent of the texts, so a fit to some texts makes the others worse.
    let mut random = fastrand::Rng::with_seed(3);
    let vectors: String = std::fs::read_to_string(corpus())
        .unwrap()
        .lines()
        .map(|_| format!("{:?}\n", (0..14).map(|_| random.f32() - 0.5).collect::<Vec<_>>()))
        .collect();
    let path = dir.path().join("vectors.jsonl");
    std::fs::write(&path, vectors).unwrap();
    let out = dir.path().join("out");
    let [source, corpus, vectors, at] =
        [fixtures("refined").join("table"), corpus(), path, out.clone()].map(|path| path.display().to_string());
    let args = ["fit", &source, &at, "--corpus", &corpus, "--teacher-vectors", &vectors, "--lambda", "0.0001"];
    let made = run(&[&args[..], &["--held-out", "0.3"]].concat());
    let (said, warned) = (String::from_utf8_lossy(&made.stdout), String::from_utf8_lossy(&made.stderr));
    assert_eq!(made.status.code(), Some(3), "{said}{warned}");
    assert!(said.contains("on 21 texts held out") && said.contains("is worse than before"), "{said}");
    assert!(warned.starts_with("warning: the fit made the table worse"), "{warned}");
    assert!(warned.contains(" fell from 0."), "{warned}");
    // The table is written nevertheless, and its README.md contains the warning.
    Checkpoint::open(&out, &Overrides::default()).unwrap();
    assert!(std::fs::read_to_string(out.join("README.md")).unwrap().contains("is worse than before"));
    // Without held-out texts, it is unknown whether the table became worse.
    let made = run(&[&args[..], &["--held-out", "0", "--force"]].concat());
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(made.status.success() && said.contains("no texts were held out"), "{said}");
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_embedding-server")).args(args).output().unwrap()
}

#[test]
fn the_command_writes_a_table_that_says_what_it_was_fitted_to() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/fitted");
    let [source, corpus, vectors, at] =
        [fixtures("refined").join("table"), corpus(), fixture("vectors.npy"), out.clone()]
            .map(|p| p.display().to_string());
    let args = [
        "fit",
        &source,
        &at,
        "--corpus",
        &corpus,
        "--teacher-vectors",
        &vectors,
        "--held-out",
        "0.3",
        "--lambda",
        "0.02",
    ];
    let made = run(&[&args[..], &["--dtype", "f32"]].concat());
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for part in ["31 rows of 10 dimensions in f32", "39 texts", "21 texts held out", "0.3160 -> 0.5223"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    let fit = &config["refined"]["fit"];
    assert_eq!(
        (fit["texts"].as_u64(), fit["gamma"].as_f64(), fit["lambda_chosen"].as_bool()),
        (Some(39), Some(0.75), Some(false))
    );
    assert_eq!(fit["teacher"]["vectors"], "vectors.npy");
    assert_eq!(fit["files"][0]["name"], "corpus.txt");
    assert!((fit["held_out"]["cosine_after"].as_f64().unwrap() - 0.5223).abs() < 1e-4);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("0.3160 -> 0.5223") && card.contains("corpus.txt, 60 texts"), "{card}");
    assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1, "something is left beside the table");

    // A served vector is the sum of the rows, scaled to length 1.
    let case = &golden()[0];
    let embedder = Embedder::new(Checkpoint::open(&out, &Overrides::default()).unwrap(), Settings::default()).unwrap();
    let sea = embedder.embed(&["the sea"]).unwrap();
    let words = [2, 6].map(|id: usize| &case.rows[id]);
    let mut expected: Vec<f32> = words[0].iter().zip(words[1]).map(|(a, b)| a + b).collect();
    layer0::pooling::normalize(&mut expected).unwrap();
    assert!(difference(&sea[0], &expected) < 1e-3, "{sea:?} {expected:?}");

    let again = run(&args);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--force"));
    // A fitted table can be fitted again.
    let next = dir.path().join("next").display().to_string();
    let args = ["fit", &at, &next, "--corpus", &corpus, "--teacher-vectors", &vectors, "--lambda", "0.02"];
    assert!(run(&args).status.success());
}
