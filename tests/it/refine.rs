//! Tests `refine`: its results against numpy's in float64 (`tests/fixtures/make_refined.py`), the format that it
//! writes, and the command.

use layer0::error::FileErrorKind;
use layer0_tuning::RefineError;
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Settings};
use layer0::extract::staging::Existing;
use layer0::pooling::{CpuPooling, DevicePooling, Pooling};
use layer0::progress::Silent;
use layer0_records::MaxSkipped;
use layer0_tuning::corpus::Fields;
use layer0_tuning::refine::frequency::{Frequencies, Source};
use layer0_tuning::refine::write::{self, Description, RowDtype};
use layer0_tuning::refine::{Options, Refinement, Rows};
use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;
use serde_json::Value;

use crate::common::{checkpoint, difference, length};

#[derive(Deserialize)]
struct Golden {
    probabilities: Vec<f64>,
    unigram: Vec<f64>,
    sentences: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    a: f64,
    whitening: f64,
    dimensions: usize,
    rows: Vec<Vec<f32>>,
    vectors: Vec<Vec<f32>>,
}

impl Case {
    fn options(&self) -> Options {
        Options { a: Some(self.a), whitening: self.whitening, dimensions: Some(self.dimensions) }
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/refined").join(name)
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(fixture("golden.json")).unwrap()).unwrap()
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &Overrides::default()).unwrap()
}

fn fields(field: &str) -> Fields<'_> {
    Fields { field, max_skipped: MaxSkipped::default() }
}

fn counted(source: &Checkpoint, file: &str, field: &str, threads: usize) -> Frequencies {
    Frequencies::of_corpus(source, &[fixture(file)], fields(field), threads, &Silent).unwrap()
}

/// Refines the table of the fixture into `out`.
fn refined(out: &Path, dtype: RowDtype, options: &Options) {
    let source = open(&fixture("table"));
    let frequencies = counted(&source, "corpus.txt", "text", 2);
    let refinement = Refinement::fit(&source, &frequencies, options, &Silent).unwrap();
    let description = Description { made: refinement.description(&frequencies), card: None };
    write::write(out, Existing::Refuse, dtype, &source, &refinement, &description, &Silent).unwrap();
}

fn embedder(path: &Path, settings: Settings) -> Embedder {
    Embedder::new(open(path), settings).unwrap()
}

fn rows(refinement: &Refinement<'_>) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    refinement
        .for_each_block(&mut |first, block| {
            assert_eq!(first, rows.len());
            rows.extend(block.chunks(refinement.dimensions()).map(<[f32]>::to_vec));
            Ok(())
        })
        .unwrap();
    rows
}

#[test]
fn rows_equal_the_formulas_in_float64() {
    let source = open(&fixture("table"));
    let frequencies = counted(&source, "corpus.txt", "text", 2);
    for case in golden().cases {
        let refinement = Refinement::fit(&source, &frequencies, &case.options(), &Silent).unwrap();
        let found = rows(&refinement);
        assert_eq!(found.len(), case.rows.len());
        let largest = case.rows.iter().flatten().fold(0.0f32, |max, x| x.abs().max(max));
        for (row, (found, expected)) in found.iter().zip(&case.rows).enumerate() {
            let off = difference(found, expected) / largest;
            assert!(off < 1e-5, "a {} g {}: row {row} is off by {off}", case.a, case.whitening);
        }
    }
}

#[test]
fn the_written_table_answers_the_formulas_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let golden = golden();
    for (n, case) in golden.cases.iter().enumerate() {
        for (dtype, tolerance) in
            [(RowDtype::F32, 1e-5), (RowDtype::F16, 2e-3), (RowDtype::Int8, 2e-2), (RowDtype::Int4, 0.25)]
        {
            let out = dir.path().join(format!("{n}-{}", dtype.name()));
            refined(&out, dtype, &case.options());
            // Without further settings, special tokens are left out and vectors have length 1, because the rows are
            // made for that.
            let embedder = embedder(&out, Settings::default());
            assert_eq!(embedder.dimensions(), case.dimensions);
            for (vector, expected) in embedder.embed(&golden.sentences).unwrap().iter().zip(&case.vectors) {
                let off = difference(vector, expected);
                assert!(off < tolerance, "{} case {n}: off by {off}", dtype.name());
                assert!((length(vector) - 1.0).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn fewer_columns_are_the_first_of_all() {
    let source = open(&fixture("table"));
    let frequencies = counted(&source, "corpus.txt", "text", 2);
    let fit = |dimensions| {
        rows(&Refinement::fit(&source, &frequencies, &Options { dimensions, ..Options::default() }, &Silent).unwrap())
    };
    let (all, four) = (fit(None), fit(Some(4)));
    for (all, four) in all.iter().zip(&four) {
        assert_eq!(four.len(), 4);
        assert!(difference(&all[..4], four) < 1e-6);
    }
}

#[test]
fn counts_are_the_same_in_every_form_and_on_any_number_of_threads() {
    let source = open(&fixture("table"));
    let expected = golden().probabilities;
    for (file, field) in [("corpus.txt", "text"), ("corpus.jsonl", "body")] {
        for threads in [0, 1, 4] {
            let found = counted(&source, file, field, threads);
            // serde_json parses a floating-point number with an error of up to one unit in the last place.
            let same = found.probabilities().iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-15);
            assert!(same, "{file}, {threads} threads: {:?}", found.probabilities());
            let Source::Corpus { files, tokens, .. } = found.source() else { panic!("{:?}", found.source()) };
            assert_eq!((files[0].texts, files[0].skipped, files[0].tokens), (60, 0, *tokens));
            assert_eq!(files[0].bytes, std::fs::metadata(fixture(file)).unwrap().len());
        }
    }
    // Naming a file twice counts its tokens twice, which changes no share.
    let twice = [fixture("corpus.txt"), fixture("corpus.txt")];
    let found = Frequencies::of_corpus(&source, &twice, fields("text"), 2, &Silent).unwrap();
    assert!(found.probabilities().iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn unigram_scores_are_probabilities_without_markers() {
    let overrides = Overrides { tokenizer: Some(fixture("unigram.json")), ..Overrides::default() };
    let source = Checkpoint::open(&fixture("table"), &overrides).unwrap();
    let found = Frequencies::of_unigram(&source).unwrap();
    for (id, (p, expected)) in found.probabilities().iter().zip(golden().unigram).enumerate() {
        assert!((p - expected).abs() < 1e-9, "{id}: {p} {expected}");
    }
    assert!(Frequencies::of_unigram(&open(&fixture("table"))).is_none());
}

#[test]
fn the_sample_takes_its_share_beside_a_corpus() {
    let source = open(&checkpoint("llama"));
    let corpus = counted(&source, "corpus.txt", "text", 1);
    let sample = Frequencies::of_sample(&source, 1, &Silent).unwrap();
    for share in [0.0, 0.25, 1.0] {
        let mixed = corpus.clone().with_sample(&source, share, 1, &Silent).unwrap();
        for ((mixed, own), sample) in
            mixed.probabilities().iter().zip(corpus.probabilities()).zip(sample.probabilities())
        {
            assert!((mixed - (own + share * (sample - own))).abs() < 1e-12);
        }
        let Source::Corpus { sample_share, .. } = mixed.source() else { panic!("{:?}", mixed.source()) };
        assert_eq!(*sample_share, share);
    }
    for share in [-0.1, 1.1, f64::NAN] {
        assert!(corpus.clone().with_sample(&source, share, 1, &Silent).is_err());
    }
}

#[test]
fn the_sample_has_text_for_any_tokenizer() {
    let source = open(&checkpoint("llama"));
    let found = Frequencies::of_sample(&source, 2, &Silent).unwrap();
    assert!((found.probabilities().iter().sum::<f64>() - 1.0).abs() < 1e-9);
    let Source::Sample { texts, tokens, .. } = found.source() else { panic!("{:?}", found.source()) };
    assert!(*texts > 1000 && tokens > texts);
}

#[test]
fn a_corpus_without_text_is_an_error_that_says_so() {
    let source = open(&fixture("table"));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    for (path, part) in [
        (file("empty.txt", b""), "no text; 0 records"),
        (file("blank.txt", b" \n\n\t\n"), "no text; 0 records"),
        (file("binary.txt", b"\x80\xfe\n\x80\n"), "has 2 bad records among 2"),
        (file("other.jsonl", b"{\"a\": 1}\n[\n"), "has 2 bad records among 2"),
        (dir.path().join("nowhere.txt"), "nowhere.txt"),
        (dir.path().to_owned(), "is a directory"),
    ] {
        let error = Frequencies::of_corpus(&source, &[path], fields("text"), 2, &Silent).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn options_out_of_range_are_named() {
    let source = open(&fixture("table"));
    let frequencies = counted(&source, "corpus.txt", "text", 2);
    let defaults = Options::default();
    for (options, part) in [
        (Options { dimensions: Some(0), ..defaults }, "0 dimensions"),
        (Options { dimensions: Some(11), ..defaults }, "between 1 and 10"),
        (Options { a: Some(0.0), ..defaults }, "a = 0"),
        (Options { a: Some(f64::NAN), ..defaults }, "a = NaN"),
        (Options { whitening: -0.1, ..defaults }, "whitening = -0.1"),
        (Options { whitening: f64::NAN, ..defaults }, "whitening = NaN"),
    ] {
        let error = Refinement::fit(&source, &frequencies, &options, &Silent).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_output_says_what_it_was_made_from() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b/out");
    refined(&out, RowDtype::Int4, &Options::default());
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    let made = &config["refined"];
    assert_eq!(made["source"]["name"], "table");
    assert_eq!((made["dimensions"].as_u64(), made["dtype"].as_str()), (Some(10), Some("int4")));
    assert_eq!((made["parameters"]["a"].as_f64(), made["parameters"]["whitening"].as_f64()), (Some(1e-3), Some(1.0)));
    let file = &made["frequencies"]["files"][0];
    assert_eq!((file["name"].as_str(), file["texts"].as_u64()), (Some("corpus.txt"), Some(60)));
    assert_eq!(file["sha256"].as_str().unwrap().len(), 64);
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let held: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["refined"]).unwrap();
    assert_eq!(&held, made);
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let mode = std::fs::metadata(out.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "{name} has mode {mode:o}");
    }
}

#[test]
fn integers_pool_on_a_device_as_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    for dtype in [RowDtype::Int8, RowDtype::Int4] {
        let out = dir.path().join(dtype.name());
        // With an odd number of columns, the last half byte of each row is unused.
        refined(&out, dtype, &Options { dimensions: Some(7), ..Options::default() });
        let table = open(&out);
        let collapsed = table.norm.collapse(&table.table, 2).unwrap();
        let device = DevicePooling::new(&table.table, &collapsed, candle_core::Device::Cpu).unwrap();
        let cpu = CpuPooling::new(table.table.clone(), collapsed);
        let texts: [&[u32]; 2] = [&[2, 9, 30], &[5]];
        for dimensions in [7, 3] {
            let mut a = vec![0.0; 2 * dimensions];
            let mut b = a.clone();
            cpu.mean(&texts, dimensions, &mut a).unwrap();
            device.mean(&texts, dimensions, &mut b).unwrap();
            let mut row = vec![0.0; 7];
            assert!(table.table.read_row(5, &mut row));
            assert!(difference(&a, &b) < 1e-6 && difference(&a[dimensions..], &row[..dimensions]) < 1e-6);
        }
    }
}

/// Model2Vec requires as many rows as the tokenizer has tokens.
#[test]
fn floats_have_the_tokenizers_rows() {
    let dir = tempfile::tempdir().unwrap();
    for (added, rows, dtype) in [(1, 32, RowDtype::F32), (1, 31, RowDtype::Int8), (-1, 30, RowDtype::F16)] {
        let source = dir.path().join(format!("source{rows}"));
        std::fs::create_dir(&source).unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(fixture("table").join(name), source.join(name)).unwrap();
        }
        let mut tokenizer: Value =
            serde_json::from_slice(&std::fs::read(fixture("table/tokenizer.json")).unwrap()).unwrap();
        if added > 0 {
            let mut token = tokenizer["added_tokens"][0].clone();
            token["id"] = 31.into();
            token["content"] = "<image>".into();
            tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
        } else {
            tokenizer["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| *id != 30);
        }
        std::fs::write(source.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let source = open(&source);
        let frequencies = counted(&source, "corpus.txt", "text", 1);
        let refinement = Refinement::fit(&source, &frequencies, &Options::default(), &Silent).unwrap();
        let out = dir.path().join(format!("out{rows}"));
        let description = Description { made: refinement.description(&frequencies), card: None };
        write::write(&out, Existing::Refuse, dtype, &source, &refinement, &description, &Silent).unwrap();
        let made = open(&out);
        assert_eq!(made.table.rows(), rows, "{dtype:?}");
        let mut row = vec![1.0; 10];
        if rows == 32 {
            assert!(made.table.read_row(31, &mut row));
            assert_eq!(row, [0.0; 10]);
        }
    }
}

/// Creates a refined directory, applies `change`, and returns the error on opening the directory.
fn broken(change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    refined(&out, RowDtype::Int4, &Options::default());
    change(&out);
    Checkpoint::open(&out, &Overrides::default()).err().map_or_else(String::new, |e| e.to_string())
}

fn tensors(out: &Path, embeddings: (Dtype, [usize; 2], usize), scales: Option<(Dtype, usize, usize)>) {
    let (rows, steps) = (vec![0u8; embeddings.2], vec![0u8; scales.map_or(0, |s| s.2)]);
    let mut all = HashMap::new();
    all.insert("embeddings", TensorView::new(embeddings.0, embeddings.1.to_vec(), &rows).unwrap());
    if let Some((dtype, n, _)) = scales {
        all.insert("scales", TensorView::new(dtype, vec![n], &steps).unwrap());
    }
    safetensors::serialize_to_file(&all, None, &out.join("model.safetensors")).unwrap();
}

#[test]
fn broken_tables_are_refused_by_what_is_wrong() {
    assert_eq!(broken(|_| {}), "");
    assert_eq!(broken(|out| tensors(out, (Dtype::U8, [31, 5], 155), Some((Dtype::F32, 31, 124)))), "");
    let cases: [(&str, String); 6] = [
        ("scales", broken(|out| tensors(out, (Dtype::U8, [31, 5], 155), None))),
        ("scales", broken(|out| tensors(out, (Dtype::U8, [31, 5], 155), Some((Dtype::F32, 30, 120))))),
        ("scales", broken(|out| tensors(out, (Dtype::U8, [31, 5], 155), Some((Dtype::F16, 62, 124))))),
        ("columns", broken(|out| tensors(out, (Dtype::U8, [31, 6], 186), Some((Dtype::F32, 31, 124))))),
        ("BF16", broken(|out| tensors(out, (Dtype::BF16, [31, 10], 620), None))),
        ("dimensions", broken(|out| std::fs::write(out.join("config.json"), "{\"refined\": {}}").unwrap())),
    ];
    for (part, error) in cases {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn an_existing_directory_is_replaced_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let source = open(&fixture("table"));
    let frequencies = counted(&source, "corpus.txt", "text", 1);
    let refinement = Refinement::fit(&source, &frequencies, &Options::default(), &Silent).unwrap();
    let description = Description { made: refinement.description(&frequencies), card: None };
    let write = |existing, dtype| write::write(&out, existing, dtype, &source, &refinement, &description, &Silent);
    write(Existing::Refuse, RowDtype::F32).unwrap();
    let error = write(Existing::Refuse, RowDtype::Int8).unwrap_err();
    assert!(matches!(&error, RefineError::File(error) if error.kind() == FileErrorKind::Exists), "{error}");
    assert_eq!(open(&out).table.dtype().name(), "f32");
    write(Existing::Replace, RowDtype::Int8).unwrap();
    assert_eq!(open(&out).table.dtype().name(), "int8");
    // No temporary files are left beside the output.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    for name in ["config.json", "model.safetensors"] {
        std::fs::remove_file(out.join(name)).unwrap();
    }
    assert!(write(Existing::Replace, RowDtype::Int8).unwrap_err().to_string().contains("no checkpoint"));
}

#[test]
fn a_compressed_corpus_is_read_as_the_plain_one_and_skipped_records_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let source = open(&fixture("table"));
    let plain = std::fs::read(fixture("corpus.txt")).unwrap();
    let expected = counted(&source, "corpus.txt", "text", 1);
    let read = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Frequencies::of_corpus(&source, &[path], fields("text"), 1, &Silent)
    };
    let lines: Vec<&str> = str::from_utf8(&plain).unwrap().lines().collect();
    let records = lines.iter().map(|line| serde_json::json!({ "text": line })).collect::<Vec<_>>();
    for (name, content) in [
        ("a.txt.zst", zstd::encode_all(&*plain, 0).unwrap()),
        ("a.TXT", zstd::encode_all(&*plain, 0).unwrap()),
        ("a.json", serde_json::to_vec(&records).unwrap()),
        ("a.tsv", format!("text\n{}\n", lines.join("\n")).into_bytes()),
        ("a.txt", [&b"\xef\xbb\xbf"[..], &plain].concat()),
    ] {
        let found = read(name, &content).unwrap();
        assert_eq!(found.probabilities(), expected.probabilities(), "{name}");
        let Source::Corpus { files, .. } = found.source() else { panic!("{name}") };
        assert_eq!((files[0].bytes, files[0].skipped), (content.len() as u64, 0), "{name}");
    }
    let noise: Vec<u8> = (0..5000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let error = read("noise.txt", &noise).unwrap_err().to_string();
    assert!(error.contains("noise.txt: is not text"), "{error}");

    let half = dir.path().join("half.jsonl");
    std::fs::write(&half, "{\"text\":\"some words\"}\n{\"title\":\"none\"}\n").unwrap();
    let refine = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_embedding-server"));
        command.arg("refine").arg(fixture("table")).arg(dir.path().join("out")).arg("--corpus").arg(&half).args(more);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = refine(&[]);
    assert!(code == Some(1) || code == Some(78), "{code:?}");
    for part in ["left out 1 of 2 records", "1 bad records among 2", "has no field \"text\"", "--max-skipped"] {
        assert!(said.contains(part), "{said}");
    }
    let (code, said) = refine(&["--max-skipped", "50%"]);
    assert!(code == Some(0) && said.contains("left out 1 of 2 records"), "{code:?} {said}");
}
