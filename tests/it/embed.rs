//! `embedding-server embed`: against the API, against itself when it is cut, and on bad input.

use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::common::{TestApp, checkpoint, same};
use crate::texts::Texts;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embedding-server"));
    command.arg("embed").args(args).arg("--model").arg(checkpoint("llama"));
    command
}

fn embed(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn filter(args: &[&str], input: &[u8]) -> Output {
    let mut child = command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    })
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn rows(jsonl: &[u8]) -> Vec<Value> {
    jsonl.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

fn vector(row: &Value) -> Vec<f32> {
    serde_json::from_value(row["embedding"].clone()).unwrap()
}

/// The floats of an npy file, after its header.
fn npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A directory, and the path of a file in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.name(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn ten_thousand_texts_have_the_vectors_of_the_api() {
    let texts: Vec<String> = Texts::new(5, &[], &["<s>".to_owned()], &[]).take(10_000).collect();
    let app = TestApp::start(|_| {});
    let mut expected = Vec::new();
    for batch in texts.chunks(2000) {
        expected.extend(app.vectors(&json!({ "input": batch })));
    }
    let place = Place::new();
    let records: Vec<u8> = texts
        .iter()
        .enumerate()
        .flat_map(|(id, text)| format!("{}\n", json!({ "id": id, "t": text })).into_bytes())
        .collect();
    let input = place.file("in.jsonl", &records);
    for threads in ["1", "3"] {
        let found = rows(&embed(&[&input, "--field", "t", "--threads", threads]).stdout);
        assert_eq!(found.len(), texts.len());
        for (id, ((row, text), expected)) in found.iter().zip(&texts).zip(&expected).enumerate() {
            assert_eq!((&row["id"], &row["t"]), (&json!(id), &json!(text)));
            assert!(same(&vector(row), expected), "{text}");
        }
        let out = place.name(&format!("{threads}.npy"));
        assert_eq!(embed(&[&input, "--field", "t", "--threads", threads, "-o", &out]).status.code(), Some(0));
        assert!(same(&npy(Path::new(&out)), &expected.concat()));
    }
}

#[test]
fn a_run_that_is_killed_goes_on_and_gives_the_same_bytes() {
    let place = Place::new();
    let lines: String =
        (0..60_000).map(|n| format!("{{\"id\": {n}, \"text\": \"number {n} and {}\"}}\n", n * 7)).collect();
    let input = place.file("in.jsonl", lines.as_bytes());
    for name in ["out.jsonl", "out.parquet", "out.safetensors"] {
        let whole = place.name(&format!("whole-{name}"));
        assert_eq!(embed(&[&input, "-o", &whole]).status.code(), Some(0));

        let out = place.name(name);
        let mut child = command(&[&input, "-o", &out, "--threads", "1"]).stderr(Stdio::piped()).spawn().unwrap();
        let parts = place.path(&format!(".{name}.parts"));
        let count = || {
            parts.read_dir().map_or(0, |dir| {
                dir.filter(|e| e.as_ref().unwrap().path().extension() == Some("part".as_ref())).count()
            })
        };
        while count() < 2 && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!Path::new(&out).exists() && count() >= 2, "it was over before it was killed");

        // Another run's parts are not taken for its own.
        let other = embed(&[&input, "-o", &out, "--dimensions", "3"]);
        assert_eq!(other.status.code(), Some(1));
        assert!(stderr(&other).contains("other settings"), "{}", stderr(&other));

        let resumed = embed(&[&input, "-o", &out]);
        assert_eq!(resumed.status.code(), Some(0));
        assert!(stderr(&resumed).contains("going on after a run that was cut"), "{}", stderr(&resumed));
        assert!(stderr(&resumed).contains("by an earlier run"), "{}", stderr(&resumed));
        assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "{name} differs");
        let left: Vec<_> = place.0.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_str().unwrap().starts_with('.')), "{left:?}");
    }
}

#[test]
fn every_input_format_gives_the_same_vectors_and_keeps_its_columns() {
    let place = Place::new();
    let gzip = |bytes: &[u8]| {
        let mut out = Vec::new();
        flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut out).unwrap();
        out
    };
    let jsonl = b"{\"text\": \"a, \\\"b\\\"\", \"n\": 1}\r\n\n{\"n\": 2, \"text\": \"\\uc548\"}";
    let csv = "n,text\n1,\"a, \"\"b\"\"\"\n2,안\n".as_bytes();
    let parquet = place.name("in.parquet");
    let inputs = [
        place.file("in.jsonl", jsonl),
        place.file("in.csv", csv),
        place.file("in.tsv", "text\tn\n\"a, \"\"b\"\"\"\t1\n안\t2\n".as_bytes()),
        place.file("in.jsonl.gz", &gzip(jsonl)),
        place.file("in.csv.zst", &zstd::encode_all(csv, 0).unwrap()),
    ];
    let first = embed(&[&inputs[0], "-o", &parquet, "--embedding-field", "e"]);
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    let expected = rows(&embed(&[&place.file("in.txt", "a, \"b\"\n안\n".as_bytes())]).stdout);
    for input in inputs.iter().chain([&parquet]) {
        let output = embed(&[input]);
        let found = rows(&output.stdout);
        assert_eq!(found.len(), 2, "{input}: {}", stderr(&output));
        for (n, (row, expected)) in (1..).zip(found.iter().zip(&expected)) {
            assert_eq!(vector(row), vector(expected), "{input}");
            assert_eq!(row["text"], expected["text"], "{input}");
            let number = row["n"].as_i64().or_else(|| row["n"].as_str().and_then(|n| n.parse().ok()));
            assert_eq!(number, Some(n), "{input}");
        }
    }
    // The vectors that the first run wrote stand in the file that the last one read.
    let nested = rows(&embed(&[&parquet]).stdout);
    let e: Vec<f32> = serde_json::from_value(nested[1]["e"].clone()).unwrap();
    assert_eq!(e, vector(&nested[1]));

    let pattern = place.name("in.*l");
    assert_eq!(rows(&embed(&[&pattern, &inputs[1]]).stdout).len(), 4);
    let sharded: Vec<usize> = ["0/3", "1/3", "2/3"]
        .iter()
        .map(|shard| rows(&embed(&[&inputs[0], &inputs[1], &inputs[2], &inputs[3], "--shard", shard]).stdout).len())
        .collect();
    assert_eq!(sharded, [4, 2, 2]);
}

#[test]
fn bad_records_end_the_run_or_are_left_out_with_their_position() {
    let place = Place::new();
    let jsonl = b"{\"text\": \"one\"}\n{\"text\": 2}\n[]\n{\"no\": \"text\"}\n{\"text\": \"\xff\"}\n{\"text\": \"six\", \"embedding\": 1}\n{\"text\": \"seven\"}\n";
    let input = place.file("in.jsonl", jsonl);
    let out = place.name("out.jsonl");
    let failed = embed(&[&input, "-o", &out]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("in.jsonl:2: has 2 in \"text\", not a string"), "{}", stderr(&failed));
    assert!(!Path::new(&out).exists());
    let skipped = embed(&[&input, "-o", &out, "--on-error", "skip"]);
    assert_eq!(skipped.status.code(), Some(0), "{}", stderr(&skipped));
    for line in 2..=6 {
        assert!(stderr(&skipped).contains(&format!("left out {input}:{line}: it ")), "{}", stderr(&skipped));
    }
    assert!(stderr(&skipped).contains("2 embedded, 5 left out"), "{}", stderr(&skipped));
    let texts: Vec<Value> = rows(&std::fs::read(&out).unwrap()).into_iter().map(|row| row["text"].clone()).collect();
    assert_eq!(texts, ["one", "seven"]);

    for (input, args, expected) in [
        (place.file("a.txt", b"ok\n\xff\xfe\n"), &[][..], "a.txt:2: is not UTF-8"),
        (place.file("b.csv", b"text,n\na,1\nb\n"), &[], "b.csv:3: is damaged"),
        (place.file("c.csv", b"a,b\n1,2\n"), &[], "has no column \"text\""),
        (place.file("d.csv", b"text,text\n1,2\n"), &[], "two columns \"text\""),
        (place.file("e.parquet", b"PAR1 not PAR1"), &[], "is no Parquet file that can be read"),
        (place.file("f.jsonl.gz", b"\x1f\x8b\x08 torn"), &[], "f.jsonl.gz"),
        (place.file("g.zst", b"no"), &[], "g.zst"),
        (place.name("missing.txt"), &[], "missing.txt"),
        (place.name("none-*.txt"), &[], "no file is named"),
        (place.0.path().to_str().unwrap().to_owned(), &[], "is a directory"),
        (place.file("h.log", b"{}\n"), &["--field", "body"], "has no --field: give --input-format"),
        (input.clone(), &["--format", "npy"], "give --output FILE"),
        (input.clone(), &["--dimensions", "0"], "dimensions"),
        (input.clone(), &["-o", &out], "exists already"),
        (input.clone(), &["-o", "x.bin"], "does not say its format"),
        (place.file("empty.jsonl", b""), &["-o", &place.name("empty.parquet")], "hold no record"),
    ] {
        let output = embed(&[&[input.as_str()], args].concat());
        assert_eq!(output.status.code(), Some(1), "{input}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{input}: {}", stderr(&output));
    }
}

#[test]
fn a_line_without_end_is_passed_over_and_not_held() {
    let mut input = b"one\n".to_vec();
    input.resize(input.len() + (65 << 20), b'x');
    input.extend_from_slice(b"\nthree");
    let output = filter(&["--on-error", "skip"], &input);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("standard input:2: it is longer than 64 MiB"), "{}", stderr(&output));
    let texts: Vec<Value> = rows(&output.stdout).into_iter().map(|row| row["text"].clone()).collect();
    assert_eq!(texts, ["one", "three"]);
}

#[test]
fn a_filter_writes_in_order_whatever_finishes_first() {
    let input: String = (0..70_000).map(|n| format!("{n}\n")).collect();
    let output = filter(&["--threads", "4", "--dimensions", "1"], input.as_bytes());
    let texts: Vec<Value> = rows(&output.stdout).into_iter().map(|row| row["text"].clone()).collect();
    let expected: Vec<String> = (0..70_000).map(|n| n.to_string()).collect();
    assert!(texts == expected);
}

#[test]
fn a_later_record_must_fit_the_columns_of_parquet() {
    let place = Place::new();
    // Beyond the first chunk, which decides.
    let mut lines: String = (0..20_000).map(|n| format!("{{\"id\": {n}, \"text\": \"t\"}}\n")).collect();
    lines += "{\"id\": \"x\", \"text\": \"t\"}\n";
    let input = place.file("in.jsonl", lines.as_bytes());
    let output = embed(&[&input, "-o", &place.name("out.parquet")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("in.jsonl:20001: has \"x\" in \"id\", which is an integer"),
        "{}",
        stderr(&output)
    );
}
