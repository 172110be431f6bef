//! Reads the data sets: CSV and TSV, parallel lines, BEIR directories.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::LoadError;
use crate::files;

pub struct Pairs {
    pub left: Vec<String>,
    pub right: Vec<String>,
    pub scores: Vec<f64>,
}

pub struct Search {
    pub documents: Vec<String>,
    pub queries: Vec<String>,
    /// For each query the indices of documents, and their gains.
    pub relevant: Vec<Vec<(usize, f64)>>,
}

/// The file's or directory's name without what follows a dot.
pub fn name(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The last three columns of a row are two sentences and a score; a first row without a score is a header.
pub fn pairs(path: &Path) -> Result<Pairs, LoadError> {
    let tabs = path.extension().is_some_and(|e| e == "tsv");
    let wrong = |problem: String| {
        LoadError::new(path, problem).expected(if tabs {
            "two sentences and a score a line, between tabs, without quotes"
        } else {
            "two sentences and a score a line, as CSV"
        })
    };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if tabs { b'\t' } else { b',' })
        .quoting(!tabs)
        .has_headers(false)
        .flexible(true)
        .from_reader(files::open(path).map_err(|e| LoadError::io(path, &e))?);
    let mut pairs = Pairs { left: Vec::new(), right: Vec::new(), scores: Vec::new() };
    for (number, row) in reader.records().enumerate() {
        let row = row.map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let fields: Vec<&str> = row.iter().collect();
        let [.., left, right, score] = fields.as_slice() else {
            return Err(wrong(format!("has {} columns in line {}", fields.len(), number + 1)));
        };
        match score.trim().parse::<f64>() {
            Ok(score) if score.is_finite() => {
                pairs.left.push((*left).to_owned());
                pairs.right.push((*right).to_owned());
                pairs.scores.push(score);
            }
            _ if number == 0 => {}
            _ => return Err(wrong(format!("has the score {score:?} in line {}", number + 1))),
        }
    }
    if pairs.scores.is_empty() {
        return Err(wrong("holds no pair".to_owned()));
    }
    Ok(pairs)
}

/// The lines of a file, trimmed; empty ones too, so that numbers stay.
pub fn lines(path: &Path) -> Result<Vec<String>, LoadError> {
    let text = files::read_to_string(path).map_err(|e| LoadError::io(path, &e))?;
    let lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if lines.is_empty() {
        return Err(LoadError::new(path, "is empty").expected("a sentence a line"));
    }
    Ok(lines)
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

/// `corpus.jsonl`, `queries.jsonl`, and `qrels/test.tsv` or `qrels.tsv`.
pub fn search(dir: &Path) -> Result<Search, LoadError> {
    let documents: Vec<Document> = jsonl(&dir.join("corpus.jsonl"))?;
    let queries: Vec<Document> = jsonl(&dir.join("queries.jsonl"))?;
    let nested = dir.join("qrels").join("test.tsv");
    let qrels = if nested.exists() { nested } else { dir.join("qrels.tsv") };
    let places: HashMap<&str, usize> = documents.iter().enumerate().map(|(i, d)| (d.id.as_str(), i)).collect();
    let mut judged: HashMap<String, Vec<(usize, f64)>> = HashMap::new();
    for (number, line) in lines(&qrels)?.iter().enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        let parsed = match fields.as_slice() {
            // BEIR's three columns, and TREC's four.
            [query, document, gain] | [query, _, document, gain] => {
                gain.parse::<f64>().ok().map(|g| (query, document, g))
            }
            _ => None,
        };
        match parsed {
            Some((query, document, gain)) => {
                // As trec_eval: what is judged but not in the corpus cannot be found.
                let place = places.get(document).copied().unwrap_or(usize::MAX);
                judged.entry((*query).to_owned()).or_default().push((place, gain.max(0.0)));
            }
            None if number == 0 || line.is_empty() => {}
            None => {
                return Err(LoadError::new(&qrels, format!("has {line:?} in line {}", number + 1))
                    .expected("query id, document id and a number, between tabs"));
            }
        }
    }
    let (queries, relevant): (Vec<String>, Vec<_>) =
        queries.into_iter().filter_map(|query| Some((query.text, judged.remove(&query.id)?))).unzip();
    if queries.is_empty() || documents.is_empty() {
        return Err(
            LoadError::new(&qrels, "judges no query of queries.jsonl").expected("ids of queries and of documents")
        );
    }
    let text = |d: &Document| if d.title.is_empty() { d.text.clone() } else { format!("{} {}", d.title, d.text) };
    Ok(Search { documents: documents.iter().map(text).collect(), queries, relevant })
}

fn jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, LoadError> {
    let file = files::open(path).map_err(|e| LoadError::io(path, &e))?;
    let mut items = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| LoadError::io(path, &e))?;
        if line.trim().is_empty() {
            continue;
        }
        items.push(serde_json::from_str(&line).map_err(|e| {
            LoadError::new(path, format!("cannot be read in line {}: {e}", number + 1))
                .expected("BEIR's objects with _id and text")
        })?);
    }
    Ok(items)
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
        std::fs::write(dir.path().join("qrels.tsv"), "query-id\tcorpus-id\tscore\n2 y 1\n").unwrap();
        assert!(search(dir.path()).err().unwrap().to_string().contains("line 2"));
    }
}
