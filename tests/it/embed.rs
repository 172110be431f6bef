//! Tests `embedding-server embed`: its vectors against those of the API, continuing an interrupted run, and bad input.

use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::common::{TestApp, checkpoint, same};
use crate::texts::Texts;
use embedding_server::openai::{CreateSparseEmbeddingResponse, SparseEmbedding};
use serde_json::{Value, json};

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

/// Returns the numbers of an npy file, which follow its header.
fn npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A temporary directory for the files of a test.
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

        // The parts of a run with other settings are not reused.
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

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut out).unwrap();
    out
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bzip2::read::BzEncoder::new(bytes, bzip2::Compression::fast()).read_to_end(&mut out).unwrap();
    out
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The CSV of the test below, compressed by Python's lzma into two streams.
const XZ: &str = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+WjAQAIbix0ZXh0CjEsAAAAADFAFSmI9atAAAEhCWwYxdUftvN9AQAAAAAEWVr9N3pYWgAABObWtEYCACEBFgAAAHQv5aMBABAiYSwgIiJiIiIiCjIs7JWICgAAAAAcF5sp8EUn2gABKREyCnAOH7bzfQEAAAAABFla";

fn unbase64(text: &str) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(text).unwrap()
}

#[test]
fn every_input_format_gives_the_same_vectors_and_keeps_its_columns() {
    let place = Place::new();
    let jsonl = b"{\"text\": \"a, \\\"b\\\"\", \"n\": 1}\r\n\n{\"n\": 2, \"text\": \"\\uc548\"}";
    let csv = "n,text\n1,\"a, \"\"b\"\"\"\n2,안\n".as_bytes();
    let parquet = place.name("in.parquet");
    let utf16 = |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let json = str::from_utf8(jsonl).unwrap();
    let inputs = [
        place.file("in.jsonl", jsonl),
        place.file("in.csv", csv),
        place.file("in.tsv", "text\tn\na, \"b\"\t1\n안\t2\n".as_bytes()),
        place.file("in.jsonl.gz", &gzip(jsonl)),
        place.file("in.csv.zst", &zstd::encode_all(csv, 0).unwrap()),
        place.file("members.JSONL.GZ", &[&gzip(&jsonl[..20])[..], &gzip(&jsonl[20..]), &[0; 512]].concat()),
        place.file(
            "frames.ndjson.ZST",
            &[&jsonl[..20], &jsonl[20..]].map(|part| zstd::encode_all(part, 0).unwrap()).concat(),
        ),
        place.file("in.csv.bz2", &bzip2(csv)),
        place.file("members.csv.bz2", &[bzip2(&csv[..9]), bzip2(&csv[9..]), vec![0; 9]].concat()),
        place.file("in.csv.xz", &unbase64(XZ)),
        place.file("in.csv.lz4", &[lz4(&csv[..9]), lz4(&csv[9..])].concat()),
        // If the name says nothing about the compression, the content decides.
        place.file("unnamed.csv", &gzip(csv)),
        place.file("mark.jsonl", &[b"\xef\xbb\xbf", &jsonl[..]].concat()),
        place.file("mark.csv.gz", &gzip(&[b"\xef\xbb\xbf", csv].concat())),
        place.file("little.jsonl", &utf16(&format!("\u{feff}{json}"), u16::to_le_bytes)),
        place.file("big.csv", &utf16(&format!("\u{feff}{}", str::from_utf8(csv).unwrap()), u16::to_be_bytes)),
        place.file("unmarked.jsonl", &utf16(json, u16::to_le_bytes)),
        place.file("unmarked.Csv", &utf16(str::from_utf8(csv).unwrap(), u16::to_be_bytes)),
        place.file("array.json", b" [{\"text\": \"a, \\\"b\\\"\",\n \"n\": 1} ,{\"n\":2,\"text\":\"\\uc548\"}]\n"),
        place.file("lines.json", jsonl),
    ];
    let first = embed(&[&inputs[0], "-o", &parquet, "--embedding-field", "e"]);
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    let expected = rows(&embed(&[&place.file("in.txt", "a, \"b\"\n안\n".as_bytes())]).stdout);
    for input in inputs.iter().chain([&parquet]) {
        let output = embed(&[input]);
        assert_eq!(output.status.code(), Some(0), "{input}: {}", stderr(&output));
        let found = rows(&output.stdout);
        assert_eq!(found.len(), 2, "{input}: {}", stderr(&output));
        for (n, (row, expected)) in (1..).zip(found.iter().zip(&expected)) {
            assert_eq!(vector(row), vector(expected), "{input}");
            assert_eq!(row["text"], expected["text"], "{input}");
            let number = row["n"].as_i64().or_else(|| row["n"].as_str().and_then(|n| n.parse().ok()));
            assert_eq!(number, Some(n), "{input}");
        }
    }
    // The vectors that the first run wrote are in the file that the last run read.
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
    let mut generator = fastrand::Rng::with_seed(1);
    let random: Vec<u8> = (0..300).map(|_| generator.u8(..)).collect();
    let parquet = place.name("good.parquet");
    let made = embed(&[&place.file("good.txt", b"a\n"), "-o", &parquet]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let jsonl = b"{\"text\": \"one\"}\n{\"text\": 2}\n[]\n{\"no\": \"text\"}\n{\"text\": \"\xff\"}\n{\"text\": \"six\", \"embedding\": 1}\n{\"text\": \"seven\"}\n";
    let input = place.file("in.jsonl", jsonl);
    let out = place.name("out.jsonl");
    let failed = embed(&[&input, "-o", &out]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("in.jsonl:2: has 2 in \"text\", not a string"), "{}", stderr(&failed));
    assert!(!Path::new(&out).exists());
    // If more than a tenth of the records is bad, the run fails unless --max-skipped allows it. The vectors are kept
    // for a run that does.
    let too_many = embed(&[&input, "-o", &out, "--on-error", "skip"]);
    assert_eq!(too_many.status.code(), Some(1));
    for part in ["left out 5 of 7 records", "has 5 bad records among 7, more than 10 %", "--max-skipped"] {
        assert!(stderr(&too_many).contains(part), "{}", stderr(&too_many));
    }
    assert!(!Path::new(&out).exists());
    let again = embed(&[&input, "-o", &out, "--on-error", "skip", "--max-skipped", "75%"]);
    assert!(stderr(&again).contains("2 by an earlier run"), "{}", stderr(&again));
    let out = place.name("again.jsonl");
    let skipped = embed(&[&input, "-o", &out, "--on-error", "skip", "--max-skipped", "0.75"]);
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
        (place.file("d.csv", b"text,text\n1,2\n"), &[], "has two columns \"text\""),
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
        (
            place.file("open.csv", b"id,text\n1,a\n2,\"open\n3,b\n"),
            &["--on-error", "skip"],
            "a quote that opens in line 3",
        ),
        (place.file("i.json", b"[{\"text\":\"a\"},{\"text\":[]}]"), &[], "i.json:2: has [] in \"text\", not a string"),
        (place.file("j.json", b"{\"text\":\n\"a\"},"), &[], "is not JSON: in line 2"),
        (place.file("k.json", b"plain text"), &[], "k.json:1: is no JSON object"),
        (place.file("l.jsonl", b"PK\x03\x04\x14\0\0\0"), &[], "l.jsonl: is not text: its content looks like a ZIP"),
        (place.file("m.txt", b"%PDF-1.7\n%\xe2\xe3"), &[], "m.txt: is not text: its content looks like a PDF"),
        (place.file("n", &random), &[], "n: is not text: its content looks like binary data"),
        (place.file("o.txt.gz", &gzip(&random)), &[], "o.txt.gz: is not text"),
        (place.file("p.jsonl.gz", b"{\"text\": \"a\"}\n"), &[], "p.jsonl.gz: is named like a file in the gzip format"),
        (
            place.file("q.gz", &[gzip(b"a\n"), b"tail".to_vec()].concat()),
            &[],
            "q.gz: cannot be decompressed as gzip: the compressed data ends",
        ),
        (place.file("r.gz", &gzip(b"a\n")[..15]), &[], "r.gz"),
        (place.file("s.lz4", &lz4(&random)[..200]), &[], "s.lz4"),
        (place.file("t.tar.gz", b""), &[], "t.tar.gz: is"),
        (place.file("u.jsonl.br", b""), &[], "is an archive or compressed in a format that is not read: .br"),
        (
            place.file("v.txt", &std::fs::read(&parquet).unwrap()),
            &[],
            "v.txt: is not text: its content looks like a Parquet",
        ),
        (input.clone(), &["--max-skipped", "10"], "is no share"),
    ] {
        let output = embed(&[&[input.as_str()], args].concat());
        assert!(matches!(output.status.code(), Some(1 | 2)), "{input}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{input}: {}", stderr(&output));
    }
}

#[test]
fn a_line_without_end_is_passed_over_and_not_held() {
    let mut input = b"one\n".to_vec();
    input.resize(input.len() + (65 << 20), b'x');
    input.extend_from_slice(b"\nthree");
    let output = filter(&["--on-error", "skip", "--max-skipped", "50%"], &input);
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
    // The bad record comes after the first chunk, which determines the types of the columns.
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

#[test]
fn records_of_python_and_node_are_carried_through_as_strict_json() {
    let place = Place::new();
    let input = place.file(
        "in.jsonl",
        br#"{"text":"cut \ud83d","score":NaN,"id":123456789012345678901234567890.10,"deep":{"a.b":[Infinity,"\udc00"]}}"#,
    );
    let output = embed(&[&input]);
    let line = String::from_utf8(output.stdout).unwrap();
    let expected =
        r#"{"text":"cut \ufffd","score":null,"id":123456789012345678901234567890.10,"deep":{"a.b":[null,"\ufffd"]},"#;
    assert!(line.starts_with(expected), "{line}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(vector(&rows(line.as_bytes())[0]), vector(&rows(&filter(&[], "cut \u{fffd}\n".as_bytes()).stdout)[0]));
}

#[test]
fn a_field_is_found_within_objects() {
    let place = Place::new();
    let expected = vector(&rows(&filter(&[], b"hello\n").stdout)[0]);
    for content in [r#"{"doc":{"body.x":{"t":"hello"}}}"#, r#"{"doc":{"body":{}},"doc.body.x.t":"hello"}"#] {
        let found = rows(&embed(&[&place.file("in.jsonl", content.as_bytes()), "--field", "doc.body.x.t"]).stdout);
        assert_eq!(vector(&found[0]), expected, "{content}");
    }
}

#[test]
fn names_of_a_csv_header_matter_only_for_the_text() {
    let place = Place::new();
    let input = place.file("in.csv", b",,a,a,text,a.1\n0,1,2,3,hello,4\n");
    let mut row = rows(&embed(&[&input]).stdout).remove(0);
    row.as_object_mut().unwrap().remove("embedding");
    let expected = json!({"Unnamed: 0": "0", "Unnamed: 1": "1", "a": "2", "a.2": "3", "text": "hello", "a.1": "4"});
    assert_eq!(row, expected);
}

#[test]
fn inputs_without_records_give_empty_parquet_with_their_columns() {
    let place = Place::new();
    for (name, content, columns) in [
        ("empty.csv", &b"id,text,\n"[..], &["id", "text", "Unnamed: 2"][..]),
        ("empty.jsonl", b"", &["text"]),
        ("empty.json", b"[]", &["text"]),
        ("empty.txt", b"", &["text"]),
    ] {
        let (input, out) = (place.file(name, content), place.name(&format!("{name}.parquet")));
        let output = embed(&[&input, "-o", &out]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        // The next run reads the columns from the file without rows.
        let again = place.name(&format!("{name}.again.parquet"));
        let output = embed(&[&out, "-o", &again, "--embedding-field", "e"]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        for (path, last) in [(&out, "embedding"), (&again, "e")] {
            let schema = layer0_records::table::schema(Path::new(path)).unwrap();
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            assert_eq!(names[..columns.len()], *columns);
            assert_eq!(names.last(), Some(&last));
        }
    }
}

/// Sparse vectors are those of the API, in every format, also if the output consists of several parts.
#[test]
fn sparse_vectors_are_those_of_the_api_in_every_format() {
    let place = Place::new();
    let texts: Vec<String> = (0..3000).map(|i| format!("text {i} of a dog {}", "and more ".repeat(i % 5))).collect();
    let lines: String = texts.iter().map(|text| format!("{}\n", json!({"text": text}))).collect();
    let input = place.file("in.jsonl", lines.as_bytes());
    let app = TestApp::start(|_| {});
    let expected = |kind: &str| -> Vec<SparseEmbedding> {
        let batches = texts.chunks(1000).flat_map(|texts| {
            let body = json!({"input": texts, "input_type": kind});
            let answer = app.post("/v1/sparse-embeddings", "application/json", body.to_string().as_bytes());
            serde_json::from_value::<CreateSparseEmbeddingResponse>(answer.body).unwrap().data
        });
        batches.collect()
    };
    for (flag, kind) in [("--sparse", "document"), ("--sparse=document", "document"), ("--sparse=query", "query")] {
        let output = embed(&[&input, flag]);
        let rows = rows(&output.stdout);
        let expected = expected(kind);
        assert_eq!(rows.len(), texts.len());
        for (row, expected) in rows.iter().zip(&expected) {
            assert_eq!(row["sparse_embedding"]["indices"], json!(expected.indices), "{flag}");
            let values: Vec<f32> = serde_json::from_value(row["sparse_embedding"]["values"].clone()).unwrap();
            assert_eq!(values, expected.values);
            assert!(row["embedding"].is_array() && row["text"].is_string());
        }
    }

    let expected = expected("document");
    let out = place.name("out.safetensors");
    embed(&[&input, "--sparse", "--sparse-field", "s", "-o", &out]);
    let bytes = std::fs::read(&out).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| tensors.tensor(name).unwrap().data().to_vec();
    let pointers: Vec<usize> =
        numbers("s.indptr").as_chunks().0.iter().map(|b| u64::from_le_bytes(*b) as usize).collect();
    let indices: Vec<u32> = numbers("s.indices").as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let values: Vec<f32> = numbers("s.values").as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!((pointers.len(), pointers[0], *pointers.last().unwrap()), (texts.len() + 1, 0, indices.len()));
    for (pair, expected) in pointers.windows(2).zip(&expected) {
        assert_eq!(indices[pair[0]..pair[1]], expected.indices);
        assert_eq!(values[pair[0]..pair[1]], expected.values);
    }
    let dense = place.name("dense.safetensors");
    embed(&[&input, "-o", &dense]);
    let dense = std::fs::read(&dense).unwrap();
    let dense = safetensors::SafeTensors::deserialize(&dense).unwrap();
    assert_eq!(numbers("embedding"), dense.tensor("embedding").unwrap().data());

    let out = place.name("out.parquet");
    embed(&[&input, "--sparse", "-o", &out]);
    let rows = rows(&embed(&[&out, "--embedding-field", "again"]).stdout);
    for (row, expected) in rows.iter().zip(&expected) {
        assert_eq!(row["sparse_embedding"]["indices"], json!(expected.indices));
        let values: Vec<f32> = serde_json::from_value(row["sparse_embedding"]["values"].clone()).unwrap();
        assert_eq!(values, expected.values);
    }
}

#[test]
fn sparse_vectors_need_a_format_and_a_name_of_their_own() {
    let place = Place::new();
    let input = place.file("in.jsonl", b"{\"text\": \"a\", \"sparse_embedding\": 1}\n");
    for (args, problem) in [
        (vec!["--sparse", "-o", "out.npy"], "an npy file cannot hold"),
        (vec!["--sparse", "--sparse-field", "embedding"], "name the same column"),
        (vec!["--sparse"], "--sparse-field"),
    ] {
        let output = command(&[&[input.as_str()], &args[..]].concat()).output().unwrap();
        assert!(!output.status.success() && stderr(&output).contains(problem), "{args:?}: {}", stderr(&output));
    }
    let empty = place.file("empty.jsonl", b"");
    for name in ["empty.safetensors", "empty.parquet"] {
        embed(&[&empty, "--sparse", "-o", &place.name(name)]);
    }
    let bytes = std::fs::read(place.name("empty.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("sparse_embedding.indptr").unwrap().data(), [0; 8]);
}
