//! Tests training on pairs: its results against torch's automatic differentiation (`tests/fixtures/make_pairs.py`), its
//! independence of threads and interruptions, files of pairs, and the command.

use std::path::PathBuf;
use std::process::{Command, Output};

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::progress::Silent;
use layer0_tuning::FitError;
use layer0_tuning::contrastive::{Losses, Options, PairFiles, Summary, Trainer};
use layer0_tuning::corpus::Fields;
use layer0_tuning::fit::vectors::VectorFile;
use layer0_tuning::fit::{Corpus, TeacherTexts, Unfitted};
use layer0_tuning::refine::Rows;
use layer0_tuning::refine::write::RowDtype;
use serde::Deserialize;
use serde_json::Value;

use crate::common::{difference, fixtures};

#[derive(Deserialize)]
struct Case {
    batch: usize,
    steps: u64,
    rate: f32,
    warm_up: u64,
    scale: f32,
    keep_weight: f32,
    teacher_weight: f32,
    teacher_texts: usize,
    exponent: f64,
    held_out_share: f64,
    seed: u64,
    rows: Vec<Vec<f32>>,
    losses: Vec<[f64; 3]>,
}

impl Case {
    fn options(&self) -> Options {
        Options {
            batch: self.batch,
            steps: Some(self.steps),
            rate: self.rate,
            warm_up: self.warm_up,
            scale: self.scale,
            keep_weight: self.keep_weight,
            teacher_weight: self.teacher_weight,
            teacher_texts: self.teacher_texts,
            teacher_batches: 1,
            rounded: None,
            seed: self.seed,
        }
    }
}

fn fixture(name: &str) -> PathBuf {
    fixtures("pairs").join(name)
}

fn table(exponent: f64) -> Checkpoint {
    let overrides = Overrides { token_count_exponent: Some(exponent), ..Overrides::default() };
    Checkpoint::open(&fixtures("refined").join("table"), &overrides).unwrap()
}

fn files<'a>(files: &'a [PathBuf], held_out: f64) -> PairFiles<'a> {
    let max_skipped = Default::default();
    PairFiles { files, weights: &[], anchor: "anchor", positive: "positive", max_skipped, held_out }
}

struct Run {
    rows: Vec<f32>,
    losses: Vec<Losses>,
    summary: Summary,
}

/// Trains to the end. `at(trainer)` is called before each step.
fn run_with(
    checkpoint: &Checkpoint,
    pairs: &PairFiles<'_>,
    teacher: Option<&TeacherTexts>,
    options: &Options,
    at: &mut dyn FnMut(&mut Trainer<'_>) -> bool,
) -> Result<Option<Run>, FitError> {
    let scratch = tempfile::tempdir().unwrap();
    let start = Unfitted::new(checkpoint)?;
    let mut trainer = Trainer::new(checkpoint, &start, pairs, teacher, options, scratch.path(), &Silent)?;
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "a file is left on disk");
    let mut losses = Vec::new();
    loop {
        if !at(&mut trainer) {
            return Ok(None);
        }
        let Some(found) = trainer.step()? else { break };
        losses.push(found);
    }
    let trained = trainer.finish();
    let mut rows = Vec::new();
    trained
        .for_each_block(&mut |_, block| {
            rows.extend_from_slice(block);
            Ok(())
        })
        .unwrap();
    Ok(Some(Run { rows, losses, summary: trained.summary().clone() }))
}

fn run(pairs: &PairFiles<'_>, options: &Options) -> Result<Run, FitError> {
    run_with(&table(1.0), pairs, None, options, &mut |_| true).map(Option::unwrap)
}

#[test]
fn training_equals_automatic_differentiation_in_float64() {
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(fixture("golden.json")).unwrap()).unwrap();
    let (checkpoint, scratch) = (table(1.0), tempfile::tempdir().unwrap());
    let corpus = [fixtures("refined").join("corpus.txt")];
    let fields = Fields { field: "text", max_skipped: Default::default() };
    let corpus = Corpus { files: &corpus, fields, held_out: 0.3 };
    let mut vectors = VectorFile::open(&fixtures("fit").join("vectors.npy")).unwrap();
    let teacher =
        TeacherTexts::read(&checkpoint, &corpus, &mut vectors, (0.75, Some(10)), scratch.path(), &Silent).unwrap();
    for (number, case) in cases.iter().enumerate() {
        let teacher = (case.teacher_weight > 0.0).then_some(&teacher);
        let paths = [fixture("pairs.jsonl")];
        let pairs = files(&paths, case.held_out_share);
        let checkpoint = table(case.exponent);
        let found = run_with(&checkpoint, &pairs, teacher, &case.options(), &mut |_| true).unwrap().unwrap();
        for (step, (found, expected)) in found.losses.iter().zip(&case.losses).enumerate() {
            let found = [found.pairs, found.teacher, found.kept];
            let expected = if case.keep_weight > 0.0 { *expected } else { [expected[0], expected[1], 0.0] };
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 2e-4, "case {number}, step {step}: {found:?} {expected:?}");
        }
        let expected: Vec<f32> = case.rows.concat();
        let off = difference(&found.rows, &expected);
        assert!(off < 2e-3, "case {number}: rows are off by {off}");
    }
}

#[test]
fn a_training_gives_the_same_bits_on_any_number_of_threads() {
    let paths = [fixture("pairs.jsonl")];
    let bits = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = Options { batch: 16, steps: Some(12), ..Options::default() };
        pool.install(|| run(&files(&paths, 0.0), &options)).unwrap().rows
    };
    let one = bits(1);
    assert!(one == bits(2) && one == bits(5));
}

#[test]
fn an_interrupted_training_continues_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let paths = [fixture("pairs.jsonl"), fixture("pairs.txt")];
    let pairs = files(&paths, 0.2);
    for rounded in [None, Some(RowDtype::Int4)] {
        let options = Options { batch: 10, steps: Some(20), seed: 3, rounded, ..Options::default() };
        let whole = run(&pairs, &options).unwrap();
        for interrupted in [0, 1, 7, 20] {
            let stopped = run_with(&table(1.0), &pairs, None, &options, &mut |trainer| {
                if trainer.steps_done() == interrupted {
                    trainer.save(&state).unwrap();
                }
                trainer.steps_done() < interrupted
            });
            assert!(stopped.unwrap().is_none());
            let mut resumed = false;
            let continued = run_with(&table(1.0), &pairs, None, &options, &mut |trainer| {
                if !resumed {
                    resumed = trainer.resume(&state).unwrap();
                    assert_eq!(trainer.steps_done(), interrupted);
                }
                true
            });
            let continued = continued.unwrap().unwrap();
            assert_eq!(continued.losses.len() as u64, 20 - interrupted);
            assert_eq!(continued.rows, whole.rows, "after step {interrupted}");
            assert_eq!(continued.summary, whole.summary);
        }
        // The state is refused by any other training.
        let others: [(&[PathBuf], Options); 3] = [
            (&paths[..1], options),
            (&paths, Options { seed: 4, ..options }),
            (&paths, Options { rate: 0.04, ..options }),
        ];
        for (paths, options) in others {
            let mut problem = String::new();
            let stopped = run_with(&table(1.0), &files(paths, 0.2), None, &options, &mut |trainer| {
                problem = trainer.resume(&state).unwrap_err().to_string();
                false
            });
            assert!(stopped.unwrap().is_none());
            assert!(problem.contains("a training with other pairs, other options or another checkpoint"), "{problem}");
        }
        let stopped = run_with(&table(1.0), &pairs, None, &options, &mut |trainer| {
            assert!(!trainer.resume(&dir.path().join("none")).unwrap());
            false
        });
        assert!(stopped.unwrap().is_none());
    }
}

#[test]
fn training_lets_held_out_sentences_find_their_translations() {
    let paths = [fixture("languages.tsv")];
    for rounded in [None, Some(RowDtype::Int4)] {
        let options = Options { batch: 64, steps: Some(150), rate: 0.05, rounded, ..Options::default() };
        let found = run(&files(&paths, 0.2), &options).unwrap();
        let report = found.summary.held_out.unwrap();
        assert!((80..120).contains(&report.pairs), "{report:?}");
        assert!(report.accuracy_before < 0.2 && report.accuracy_after > 0.9, "{report:?}");
        assert!(report.loss_after < 0.5 * report.loss_before && !report.is_worse(), "{report:?}");
        let file = &found.summary.files[0];
        assert_eq!(file.measured, Some(report));
        assert_eq!(file.file.held_out as usize, report.pairs);
    }
}

#[test]
fn all_formats_give_the_same_training() {
    let options = Options { batch: 16, steps: Some(5), ..Options::default() };
    let expected = run(&files(&[fixture("pairs.jsonl")], 0.0), &options).unwrap();
    assert_eq!(run(&files(&[fixture("pairs.txt")], 0.0), &options).unwrap().rows, expected.rows);
    let paths = [fixture("pairs.csv")];
    let named = PairFiles { anchor: "query", positive: "passage", ..files(&paths, 0.0) };
    assert_eq!(run(&named, &options).unwrap().rows, expected.rows);
    let problem = run(&files(&paths, 0.0), &options).err().unwrap().to_string();
    assert!(problem.contains("has no column \"anchor\"") && problem.contains("id, query, passage"), "{problem}");
    let half_named = PairFiles { anchor: "query", ..files(&paths, 0.0) };
    let problem = run(&half_named, &options).err().unwrap().to_string();
    assert!(problem.contains("has no column \"positive\""), "{problem}");
}

#[test]
fn hostile_files_are_refused_or_left_out_by_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { batch: 8, steps: Some(6), ..Options::default() };
    let of = |content: &str, name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        run(&files(&[path], 0.0), &options)
    };
    let pair = |anchor: &str, positive: &str| serde_json::json!({"anchor": anchor, "positive": positive}).to_string();
    let error = |content: &str, name: &str| of(content, name).err().map_or_else(String::new, |e| e.to_string());
    for (content, name, part) in [
        (String::new(), "a.jsonl", "leaves no pairs to train on"),
        (pair("the sea", "blue"), "a.jsonl", "leaves no pairs to train on"),
        ([pair("", "blue"), pair("the sea", " "), pair("a", "b")].join("\n"), "a.jsonl", "leaves no pairs"),
        ("no tab\nno tab\n".to_owned(), "a.txt", "no tab between two texts"),
        ("the sea\tblue\n\n  \n".to_owned(), "a.txt", "leaves no pairs"),
        ("{\"anchor\": \"a\"}\n".to_owned(), "a.jsonl", "has no field \"positive\""),
        ("{\"anchor\": \"a\", \"positive\": 3}\n".to_owned(), "a.jsonl", "not a string"),
        ("anchor,positive\na,\"b".to_owned(), "a.csv", "never closed"),
        ("anchor,anchor,positive\na,b,c".to_owned(), "a.csv", "two columns"),
        ("x".to_owned(), "a.tar", "archive"),
    ] {
        let found = error(&content, name);
        assert!(found.contains(part), "{part}: {found}");
    }
    // Identical pairs are not negatives of each other, so the rows stay as they are.
    let same = of(&[pair("the sea", "blue fish"), pair("the sea!", "blue fish")].join("\n"), "a.jsonl").unwrap();
    assert!(same.losses.iter().all(|losses| losses.pairs.abs() < 1e-6), "{:?}", same.losses);
    let mut longest = String::from("moon ");
    longest.extend(std::iter::repeat_n("the sea ", 20_000));
    let long = [pair(&longest, "blue"), pair("tree", "old tree"), pair("", "left out")].join("\n");
    let long = of(&long, "a.jsonl").unwrap();
    assert!(long.rows.iter().all(|x| x.is_finite()));
    assert_eq!((long.summary.files[0].file.pairs, long.summary.files[0].file.without_tokens), (2, 1));
}

#[test]
fn options_out_of_range_are_named() {
    let paths = [fixture("pairs.jsonl")];
    let pairs = files(&paths, 0.0);
    let right = Options::default();
    let nan = f32::NAN;
    for (pairs, options, part) in [
        (pairs, Options { batch: 1, ..right }, "batch of 1"),
        (pairs, Options { batch: 1 << 20, ..right }, "at most 32768"),
        (pairs, Options { steps: Some(0), ..right }, "number of steps of 0"),
        (pairs, Options { rate: 0.0, ..right }, "rate of 0"),
        (pairs, Options { rate: nan, ..right }, "rate of NaN"),
        (pairs, Options { scale: 41.0, ..right }, "scale of 41"),
        (pairs, Options { keep_weight: -1.0, ..right }, "weight of the old table of -1"),
        (pairs, Options { teacher_weight: nan, ..right }, "weight of the teacher of NaN"),
        (PairFiles { weights: &[1.0, 2.0], ..pairs }, right, "one weight for each file"),
        (PairFiles { weights: &[-1.0], ..pairs }, right, "weight of a file"),
        (PairFiles { weights: &[0.0], ..pairs }, right, "leaves no pairs to train on"),
        (PairFiles { held_out: 0.6, ..pairs }, right, "held-out share of 0.6"),
    ] {
        let found = run(&pairs, &options).err().unwrap().to_string();
        assert!(found.contains(part), "{part}: {found}");
    }
}

fn command(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_embedding-server")).args(args).output().unwrap()
}

#[test]
fn the_command_trains_on_pairs_with_and_without_a_teacher() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/trained");
    let [source, at, jsonl, csv, corpus, vectors] = [
        fixtures("refined").join("table"),
        out.clone(),
        fixture("pairs.jsonl"),
        fixture("pairs.csv"),
        fixtures("refined").join("corpus.txt"),
        fixtures("fit").join("vectors.npy"),
    ]
    .map(|path| path.display().to_string());
    let start = ["fit", &source, &at, "--pairs", &jsonl, "--batch", "16", "--train-steps", "20", "--dtype", "f32"];
    let made = command(&[&start[..], &["--held-out", "0.2", "--resume"]].concat());
    let (said, warned) = (String::from_utf8_lossy(&made.stdout), String::from_utf8_lossy(&made.stderr));
    assert!(matches!(made.status.code(), Some(0 | 3)), "{said}{warned}");
    for part in ["31 rows of", "20 steps of up to 16 pairs", "pairs held out:", "accuracy in batches of 16"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(warned.contains("starting anew") && warned.contains("step 20 of 20: loss "), "{warned}");
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    let pairs = &config["refined"]["pairs"];
    assert_eq!((pairs["steps"].as_u64(), pairs["files"][0]["name"].as_str()), (Some(20), Some("pairs.jsonl")));
    assert!(pairs["held_out"]["accuracy_before"].is_number() && pairs["teacher"].is_null());
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("A table trained on pairs of texts") && card.contains("pairs.jsonl, "), "{card}");
    assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1, "a file is left beside the table");
    Checkpoint::open(&out, &Overrides::default()).unwrap();

    let teacher = ["--corpus", &corpus, "--teacher-vectors", &vectors, "--lambda", "0.02", "--force"];
    for (closed_form, more) in [(true, &[][..]), (false, &["--skip-closed-form", "--quantization-aware"][..])] {
        let made = command(&[&start[..], &teacher[..], more].concat());
        assert!(matches!(made.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&made.stderr));
        let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["refined"]["fit"].is_object(), closed_form);
        assert_eq!(config["refined"]["pairs"]["teacher"]["vectors"], "vectors.npy");
    }
    let failing: [(&[&str], &str); 5] = [
        (&["--pairs", &csv], "--anchor-field"),
        (&["--corpus", &corpus], "--corpus: needs a teacher"),
        (&["--teacher-vectors", &vectors], "--corpus: is missing"),
        (&["--pair-weight", "1", "--pair-weight", "2"], "one weight for each file"),
        (&["--pairs", &format!("{at}/config.json")], "holds"),
    ];
    for (more, part) in failing {
        let made = command(&[&start[..], &["--force"], more].concat());
        let warned = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.code() == Some(1) && warned.contains(part), "{part}: {warned}");
    }
}
