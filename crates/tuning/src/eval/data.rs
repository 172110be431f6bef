//! Reads the data sets (sentence pairs, parallel texts, and BEIR directories) in all formats of [`layer0_records`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde_json::value::RawValue;

use crate::error::EvalError;
use layer0_files::json::NonFinite;
use layer0_files::{Diagnostic, FileError, Place};
use layer0_records::delimited::Records;
use layer0_records::json::{Object, shortened, strict_object};
use layer0_records::{BadRecord, InputFormat, Limits, Reading, RecordsError, Rows, Source, table};

/// The column names that most of the public data sets of sentence pairs use.
const PAIR: [&str; 3] = ["sentence1", "sentence2", "score"];
const LIMITS: Limits = Limits { rows: 4096, bytes: 1 << 20 };

pub struct Pairs {
    pub left: Vec<String>,
    pub right: Vec<String>,
    pub scores: Vec<f64>,
}

pub struct Search {
    pub documents: Vec<String>,
    pub queries: Vec<String>,
    /// For each query, the indices of the relevant documents and their gains.
    pub relevant: Vec<Vec<(usize, f64)>>,
}

/// Returns the name of a file or directory without its extension.
pub fn name(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Reads pairs of sentences with a score. CSV and TSV: the columns `sentence1`, `sentence2` and `score` if the header
/// names them, or else the last three columns. A first row without a score is taken for a header. Other formats: the
/// fields of these three names.
pub fn pairs(path: &Path) -> Result<Pairs, EvalError> {
    let source = Source::new(path, None)?;
    let mut pairs = Pairs { left: Vec::new(), right: Vec::new(), scores: Vec::new() };
    let mut push = |left: String, right: String, score: f64| {
        pairs.left.push(left);
        pairs.right.push(right);
        pairs.scores.push(score);
    };
    match source.format() {
        InputFormat::Jsonl | InputFormat::Json | InputFormat::Parquet => {
            objects(&source, PAIR[0], &mut |position, object| {
                let score = object.find(PAIR[2]).and_then(number).ok_or_else(no_score);
                let pair = score.and_then(|score| Ok((object.text(PAIR[0])?, object.text(PAIR[1])?, score)));
                let (left, right, score) = pair.map_err(|problem| malformed(path, position, &problem))?;
                push(left, right, score);
                Ok(())
            })?;
        }
        InputFormat::Csv | InputFormat::Tsv | InputFormat::Text => rows(&source, &mut push)?,
    }
    if pairs.scores.is_empty() {
        return Err(wrong_pairs(&source, "holds no pair".to_owned()));
    }
    Ok(pairs)
}

fn no_score() -> BadRecord {
    BadRecord::new("has no number in \"score\"")
}

fn wrong_pairs(source: &Source, problem: String) -> EvalError {
    EvalError::Malformed(Diagnostic::new(source.name(), problem).expected(match source.format() {
        InputFormat::Tsv => "two sentences and a score a line, between tabs, without quotes",
        InputFormat::Csv | InputFormat::Text => "two sentences and a score a line, as CSV",
        _ => "objects or columns with sentence1, sentence2 and score",
    }))
}

fn rows(source: &Source, push: &mut dyn FnMut(String, String, f64)) -> Result<(), EvalError> {
    let wrong = |problem: String| wrong_pairs(source, problem);
    let mut input = source.text(false)?;
    let mut records = Records::new(&mut input.reader, source.format() == InputFormat::Tsv);
    // The positions of the three columns according to the header. Without such a header, the last three columns are
    // used.
    let mut places: Option<[usize; 3]> = None;
    let mut is_first = true;
    while let Some(record) = records.read_record().map_err(|e| wrong(e.to_string()))? {
        let line = record.line;
        let fields = record.fields.map_err(|problem| wrong(format!("has a record in line {line} that {problem}")))?;
        let fields: Vec<Cow<'_, str>> = fields
            .iter()
            .map(|field| str::from_utf8(field).map(Cow::Borrowed))
            .collect::<Result<_, _>>()
            .map_err(|e| wrong(format!("is not UTF-8 in line {line}: {e}")))?;
        if std::mem::take(&mut is_first) {
            let place = |name: &str| fields.iter().position(|field| field.trim() == name);
            let [left, right, score] = PAIR.map(place);
            if let (Some(left), Some(right), Some(score)) = (left, right, score) {
                places = Some([left, right, score]);
                continue;
            }
            let has_score = fields.last().and_then(|score| finite(score)).is_some();
            if fields.len() >= 3 && !has_score {
                continue;
            }
        }
        let [left, right, score] = match (places, fields.len().checked_sub(3)) {
            (Some(places), _) => places,
            (None, Some(first)) => [first, first + 1, first + 2],
            (None, None) => return Err(wrong(format!("has {} columns in line {line}", fields.len()))),
        };
        match (fields.get(left), fields.get(right), fields.get(score)) {
            (Some(left), Some(right), Some(score)) => match finite(score) {
                Some(score) => push(left.to_string(), right.to_string(), score),
                None => return Err(wrong(format!("has the score {score:?} in line {line}"))),
            },
            _ => return Err(wrong(format!("has {} columns in line {line}", fields.len()))),
        }
    }
    Ok(())
}

fn finite(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|number: &f64| number.is_finite())
}

/// Returns the value of a JSON number, or of a string that holds a number.
fn number(value: &RawValue) -> Option<f64> {
    finite(value.get().trim_matches('"'))
}

/// Returns the trimmed texts of a file. Empty texts are kept, so that the positions in two parallel files agree.
pub fn lines(path: &Path, field: &str) -> Result<Vec<String>, EvalError> {
    let source = Source::new(path, None)?;
    let mut lines: Vec<String> = Vec::new();
    if source.format() == InputFormat::Text {
        let mut input = source.text(false)?;
        let mut line = Vec::new();
        while input.reader.read_until(b'\n', &mut line).map_err(|e| FileError::reading(path, &e))? > 0 {
            let wrong = |e| malformed(path, lines.len() as u64 + 1, &BadRecord::new(format!("is not UTF-8: {e}")));
            let text = str::from_utf8(&line).map_err(wrong)?;
            lines.push(text.trim().to_owned());
            line.clear();
        }
    } else {
        let reading = Reading { limits: LIMITS, field, second_field: None, whole: false, digest: false };
        source.read::<EvalError>(reading, &mut |chunk| {
            let texts: Vec<(u64, Result<String, BadRecord>)> = match chunk.rows {
                Rows::Lines { lines, .. } => lines
                    .into_iter()
                    .map(|line| {
                        let text =
                            |record: Vec<u8>| Object::parse(&strict_object(&record, NonFinite::Kept)?)?.text(field);
                        (line.position, line.content.and_then(text))
                    })
                    .collect(),
                Rows::Batch { first, batch } => {
                    let texts = table::texts(&batch, field).map_err(|e| RecordsError::from_table(path, &e))?;
                    (first..).zip(texts).collect()
                }
            };
            for (position, text) in texts {
                lines.push(text.map_err(|problem| malformed(path, position, &problem))?.trim().to_owned());
            }
            Ok(true)
        })?;
    }
    if lines.is_empty() {
        return Err(EvalError::Malformed(Diagnostic::new(path, "is empty").expected("a sentence a line")));
    }
    Ok(lines)
}

/// Returns the error for one record, with the number of its line, or in JSON and Parquet the number of its row.
fn malformed(path: &Path, position: u64, problem: &BadRecord) -> EvalError {
    EvalError::Malformed(at(path, position, problem))
}

fn at(path: &Path, position: u64, problem: &BadRecord) -> Diagnostic {
    Diagnostic::new(Place::Record { file: path.to_owned(), position }, problem.to_string())
}

/// Passes all records of a file with fields to `take`, with their positions. Every record must have the field `field`.
fn objects(
    source: &Source,
    field: &str,
    take: &mut dyn FnMut(u64, &Object<'_>) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let wrong = |position: u64, problem: &BadRecord| malformed(source.name(), position, problem);
    let mut take = |position: u64, record: &[u8]| {
        let json = strict_object(record, NonFinite::Null).map_err(|problem| wrong(position, &problem))?;
        take(position, &Object::parse(&json).map_err(|problem| wrong(position, &problem))?)
    };
    source.read::<EvalError>(
        Reading { limits: LIMITS, field, second_field: None, whole: true, digest: false },
        &mut |chunk| {
            match chunk.rows {
                Rows::Lines { lines, .. } => {
                    for line in lines {
                        let record = line.content.map_err(|problem| wrong(line.position, &problem))?;
                        take(line.position, &record)?;
                    }
                }
                Rows::Batch { first, batch } => {
                    let json = table::json_lines(&batch).map_err(|e| RecordsError::from_table(source.name(), &e))?;
                    let lines = json.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
                    for (position, line) in (first..).zip(lines) {
                        take(position, line)?;
                    }
                }
            }
            Ok(true)
        },
    )?;
    Ok(())
}

/// A document or a query of BEIR.
struct Document {
    id: String,
    title: String,
    text: String,
}

/// Reads a BEIR directory: `corpus`, `queries`, and `qrels/test` or `qrels`. Each file may be in any format that has
/// fields. The file of judgments may also be TSV without a header.
pub fn search(dir: &Path) -> Result<Search, EvalError> {
    let documents = documents(&find(dir, "corpus", &["jsonl"])?)?;
    let queries = documents_of_queries(dir)?;
    let nested = dir.join("qrels");
    let qrels = match nested.is_dir() {
        true => find(&nested, "test", &["tsv"])?,
        false => find(dir, "qrels", &["tsv"])?,
    };
    let places: HashMap<&str, usize> = documents.iter().enumerate().map(|(i, d)| (d.id.as_str(), i)).collect();
    let mut judged: HashMap<String, Vec<(usize, f64)>> = HashMap::new();
    judgements(&qrels, &mut |query, document, gain| {
        // As in trec_eval, a judged document that is missing from the corpus counts as relevant but can never be found.
        let place = places.get(document).copied().unwrap_or(usize::MAX);
        judged.entry(query.to_owned()).or_default().push((place, gain.max(0.0)));
    })?;
    let (queries, relevant): (Vec<String>, Vec<_>) =
        queries.into_iter().filter_map(|query| Some((query.text, judged.remove(&query.id)?))).unzip();
    if queries.is_empty() || documents.is_empty() {
        let problem = Diagnostic::new(&qrels, "judges no query of the queries");
        return Err(EvalError::Mismatch(problem.expected("ids of queries and of documents")));
    }
    let text = |d: &Document| if d.title.is_empty() { d.text.clone() } else { format!("{} {}", d.title, d.text) };
    Ok(Search { documents: documents.iter().map(text).collect(), queries, relevant })
}

fn documents_of_queries(dir: &Path) -> Result<Vec<Document>, EvalError> {
    documents(&find(dir, "queries", &["jsonl"])?)
}

/// Returns the file in `dir` whose name is `stem`, followed by the extensions of its format and its compression. If
/// there are several, a file with one of the `usual` extensions is preferred.
fn find(dir: &Path, stem: &str, usual: &[&str]) -> Result<PathBuf, EvalError> {
    let entries = dir.read_dir().map_err(|e| FileError::reading(dir, &e))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let rest = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'));
            rest.is_some_and(|rest| !rest.is_empty())
                && path.is_file()
                && Source::new(path, None).is_ok_and(|source| source.format() != InputFormat::Text)
        })
        .collect();
    found.sort_by_key(|path| {
        let is_usual = usual.iter().any(|usual| path.extension().is_some_and(|extension| extension == *usual));
        (!is_usual, path.clone())
    });
    found.into_iter().next().ok_or_else(|| {
        let name = dir.join(format!("{stem}.{}", usual.first().unwrap_or(&"jsonl")));
        let expected = "a BEIR directory: corpus.jsonl, queries.jsonl and qrels/test.tsv, or these in another format";
        EvalError::Malformed(Diagnostic::new(name, "does not exist").expected(expected))
    })
}

fn documents(path: &Path) -> Result<Vec<Document>, EvalError> {
    let mut documents = Vec::new();
    objects(&Source::new(path, None)?, "text", &mut |position, object| {
        let document = || {
            // A title of null counts as empty, as in the libraries that read BEIR.
            let title = match object.get("title").map(RawValue::get) {
                None | Some("null") => String::new(),
                Some(_) => object.text("title")?,
            };
            Ok(Document { id: id(object, "_id")?, title, text: object.text("text")? })
        };
        let wrong = |problem: BadRecord| {
            EvalError::Malformed(at(path, position, &problem).expected("BEIR's objects with _id and text"))
        };
        documents.push(document().map_err(wrong)?);
        Ok(())
    })?;
    Ok(documents)
}

/// Returns an ID: a string, or the digits of a whole number.
fn id(object: &Object<'_>, field: &str) -> Result<String, BadRecord> {
    let value = object.get(field).ok_or_else(|| BadRecord::new(format!("has no field {field:?}")))?.get();
    let is_whole = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_whole(value.strip_prefix('-').unwrap_or(value)) {
        return Ok(value.to_owned());
    }
    object
        .text(field)
        .map_err(|_| BadRecord::new(format!("has {} in {field:?}, not a string or a whole number", shortened(value))))
}

/// Reads the judgments. A judgment states how relevant a document is for a query.
fn judgements(path: &Path, take: &mut dyn FnMut(&str, &str, f64)) -> Result<(), EvalError> {
    let source = Source::new(path, None)?;
    if source.format() != InputFormat::Tsv {
        return objects(&source, "query-id", &mut |position, object| {
            let judgement = || {
                let gain = object.get("score").and_then(number).ok_or_else(no_score)?;
                Ok::<_, BadRecord>((id(object, "query-id")?, id(object, "corpus-id")?, gain))
            };
            let (query, document, gain) = judgement().map_err(|problem| malformed(path, position, &problem))?;
            take(&query, &document, gain);
            Ok(())
        });
    }
    let mut input = source.text(false)?;
    let mut line = String::new();
    let mut number = 0u64;
    loop {
        line.clear();
        if input.reader.read_line(&mut line).map_err(|e| FileError::reading(path, &e))? == 0 {
            return Ok(());
        }
        number += 1;
        let line = line.trim();
        let fields: Vec<&str> = line.split('\t').collect();
        match fields.as_slice() {
            // BEIR has three columns, and TREC has four.
            [query, document, gain] | [query, _, document, gain] if finite(gain).is_some() => {
                take(query, document, finite(gain).unwrap_or_default());
            }
            _ if number == 1 || line.is_empty() => {}
            _ => {
                let problem = Diagnostic::new(path, format!("has {line:?} in line {number}"));
                let expected = "query id, document id and a number, between tabs";
                return Err(EvalError::Malformed(problem.expected(expected)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn csv_has_quotes_and_tsv_has_none() {
        let (_dir, path) = file("a.csv", "sentence1,sentence2,score\n\"a, \"\"b\"\"\",c,2.5\n");
        let read = pairs(&path).unwrap();
        assert_eq!((read.left[0].as_str(), read.right[0].as_str(), read.scores[0]), ("a, \"b\"", "c", 2.5));
        let (_dir, path) = file("a.tsv", "main\t1\t\"a\tb\"\t3\n");
        let read = pairs(&path).unwrap();
        assert_eq!((read.left[0].as_str(), read.right[0].as_str(), read.scores[0]), ("\"a", "b\"", 3.0));
    }

    #[test]
    fn pairs_are_read_by_their_names_in_every_format() {
        for (name, content) in [
            ("a.csv", "\u{feff}score,sentence1,sentence2,split\n3,a,b,test\n"),
            ("a.tsv", "sentence2\tscore\tsentence1\nb\t3.0\ta\n"),
            ("a.jsonl", "{\"sentence1\":\"a\",\"sentence2\":\"b\",\"score\":3}\n"),
            ("a.JSON", "[{\"sentence1\":\"a\",\"sentence2\":\"b\",\"score\":\"3\"}]"),
        ] {
            let (_dir, path) = file(name, content);
            let read = pairs(&path).unwrap();
            assert_eq!((read.left[0].as_str(), read.right[0].as_str(), read.scores[0]), ("a", "b", 3.0), "{name}");
        }
        let (_dir, path) = file("a.jsonl", "{\"sentence1\":\"a\",\"sentence2\":\"b\",\"score\":NaN}\n");
        assert!(pairs(&path).err().unwrap().to_string().contains("a.jsonl:1: has no number"));
    }

    #[test]
    fn texts_keep_their_numbers_in_every_format() {
        for (name, content) in [
            ("a.txt", &b"\xef\xbb\xbfa\r\n\nb"[..]),
            ("a.txt", b"\xff\xfea\0\n\0\n\0b\0"),
            ("a.jsonl", b"{\"x\":{\"t\":\"a\"}}\n{\"x.t\":\"\"}\n{\"x\":{\"t\":\" b \"}}"),
            ("a.csv", b"n,x.t\n1,a\n2,\n3,b"),
        ] {
            let (_dir, path) = file(name, "");
            std::fs::write(&path, content).unwrap();
            assert_eq!(lines(&path, "x.t").unwrap(), ["a", "", "b"], "{name}");
        }
        let (_dir, path) = file("a.jsonl", "{\"t\":\"a\"}\n{}\n");
        assert!(lines(&path, "t").unwrap_err().to_string().contains("a.jsonl:2: has no field"));
    }

    #[test]
    fn wrong_pairs_name_their_line() {
        for (content, part) in [("", "no pair"), ("a,b,1\nc,d,x\n", "line 2"), ("a,b,1\nc\n", "line 2")] {
            let (_dir, path) = file("a.csv", content);
            let error = pairs(&path).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = pairs(Path::new("/nowhere.csv")).err().unwrap().to_string();
        assert!(error.contains("/nowhere.csv"), "{error}");
    }

    #[test]
    fn a_beir_directory_joins_its_three_files() {
        let (dir, _) =
            file("corpus.jsonl", "{\"_id\":\"x\",\"title\":\"T\",\"text\":\"t\"}\n{\"_id\":\"y\",\"text\":\"u\"}\n");
        std::fs::write(
            dir.path().join("queries.jsonl"),
            "{\"_id\":\"1\",\"text\":\"q\"}\n{\"_id\":\"2\",\"text\":\"r\"}\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("qrels.tsv"), "query-id\tcorpus-id\tscore\n2\ty\t1\n2\tgone\t2\n").unwrap();
        let read = search(dir.path()).unwrap();
        assert_eq!(read.documents, ["T t", "u"]);
        assert_eq!(read.queries, ["r"]);
        assert_eq!(read.relevant, [vec![(1, 1.0), (usize::MAX, 2.0)]]);
        // Programs that convert tables write IDs as whole numbers and empty titles as null.
        let corpus = "{\"_id\":123456789012345678901,\"title\":null,\"text\":\"t\"}\n{\"_id\":\"y\",\"text\":\"u\"}\n";
        std::fs::write(dir.path().join("corpus.jsonl"), corpus).unwrap();
        std::fs::write(dir.path().join("queries.json"), "[{\"_id\":7,\"text\":\"q\"}]").unwrap();
        std::fs::remove_file(dir.path().join("queries.jsonl")).unwrap();
        std::fs::create_dir(dir.path().join("qrels")).unwrap();
        let judged = "{\"query-id\":7,\"corpus-id\":123456789012345678901,\"score\":1}\n";
        std::fs::write(dir.path().join("qrels/test.jsonl"), judged).unwrap();
        let read = search(dir.path()).unwrap();
        assert_eq!((read.documents, read.relevant), (vec!["t".to_owned(), "u".to_owned()], vec![vec![(0, 1.0)]]));
        std::fs::write(dir.path().join("corpus.jsonl"), "{\"_id\":1.5,\"text\":\"t\"}\n").unwrap();
        assert!(search(dir.path()).err().unwrap().to_string().contains("corpus.jsonl:1: has 1.5 in \"_id\""));
        std::fs::write(dir.path().join("corpus.jsonl"), corpus).unwrap();
        std::fs::remove_dir_all(dir.path().join("qrels")).unwrap();
        std::fs::write(dir.path().join("qrels.tsv"), "query-id\tcorpus-id\tscore\n2 y 1\n").unwrap();
        assert!(search(dir.path()).err().unwrap().to_string().contains("line 2"));
    }
}
