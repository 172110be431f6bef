//! `embedding-server eval`

use std::path::PathBuf;

use clap::Args;

use super::output::warn;
use super::progress::Bar;
use crate::checkpoint::{Checkpoint, Overrides};
use crate::client::Client;
use crate::embedder::{Embedder, Settings};
use crate::eval::{self, Embed, Score, Task};
use crate::progress::Progress;

#[derive(Args)]
pub struct EvalArgs {
    /// A checkpoint to measure. Repeatable: models stand side by side.
    #[arg(long = "model", short, value_name = "NAME=PATH")]
    models: Vec<String>,
    /// An OpenAI-compatible endpoint to measure, "http://host:port/v1"; a key is taken from OPENAI_API_KEY.
    #[arg(long, requires = "api_model")]
    url: Option<String>,
    /// The model to ask that endpoint for.
    #[arg(long, value_name = "NAME", requires = "url")]
    api_model: Option<String>,
    /// Sentence similarity: CSV or TSV of two sentences and a score, or JSONL, JSON or Parquet with sentence1, sentence2 and score.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    sts: Vec<PathBuf>,
    /// Two files of sentences that mean the same line by line, or record by record in JSONL, JSON, CSV, TSV or Parquet. Repeatable.
    #[arg(long, value_names = ["A", "B"], num_args = 2)]
    bitext: Vec<PathBuf>,
    /// The field or column of --bitext's files that holds the text. A dot leads into objects: "a.b".
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// Search: directories of corpus.jsonl, queries.jsonl and qrels/test.tsv, as BEIR has them, compressed or not.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    retrieval: Vec<PathBuf>,
    /// Print JSON in place of a table.
    #[arg(long)]
    json: bool,
    /// Write a bar chart there.
    #[arg(long, value_name = "OUT.svg")]
    chart: Option<PathBuf>,
}

type Failure = Box<dyn std::error::Error>;
/// A name for the table's column, and what embeds.
type Model = (String, Box<dyn Embed>);

pub fn run(args: &EvalArgs) -> Result<String, Failure> {
    let tasks = tasks(args)?;
    let models = models(args)?;
    if tasks.is_empty() || models.is_empty() {
        return Err("nothing to measure: give --model NAME=PATH or --url, and --sts, --bitext or --retrieval".into());
    }
    let bar = Bar::new();
    bar.start_counted("measuring", (tasks.len() * models.len()) as u64);
    let mut scores = Vec::new();
    for (name, model) in &models {
        for task in &tasks {
            let values = task.measure(model.as_ref()).map_err(|e| format!("{name}, {}: {e}", task.name))?;
            scores.extend(task.kind.metrics().iter().zip(values).map(|(&metric, value)| Score {
                model: name.clone(),
                kind: task.kind,
                task: task.name.clone(),
                size: task.size(),
                metric,
                value,
            }));
            bar.advance(1);
        }
    }
    bar.finish();
    let text = if args.json {
        let all = serde_json::json!({ "scores": scores, "means": eval::means(&scores) });
        format!("{all:#}\n")
    } else {
        let names: Vec<&str> = models.iter().map(|(name, _)| name.as_str()).collect();
        table(&names, &scores)
    };
    if let Some(path) = &args.chart {
        std::fs::write(path, eval::chart::svg(&scores)).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(text)
}

fn tasks(args: &EvalArgs) -> Result<Vec<Task>, Failure> {
    let mut tasks = Vec::new();
    for path in &args.sts {
        tasks.push(Task::sts(path)?);
    }
    let (pairs, _) = args.bitext.as_chunks();
    for [left, right] in pairs {
        tasks.push(Task::bitext(left, right, &args.field)?);
    }
    for dir in &args.retrieval {
        tasks.push(Task::retrieval(dir)?);
    }
    Ok(tasks)
}

fn models(args: &EvalArgs) -> Result<Vec<Model>, Failure> {
    let mut models: Vec<Model> = Vec::new();
    for model in &args.models {
        let (name, path) = match model.split_once('=') {
            Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
            None => (model.clone(), PathBuf::from(model)),
        };
        let checkpoint = Checkpoint::open(&path, &Overrides::default())?;
        models.push((name, Box::new(Embedder::new(checkpoint, Settings::default())?)));
    }
    if let (Some(url), Some(name)) = (&args.url, &args.api_model) {
        let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
        let client = Client::new(url, name, key)?.with_notify(|text| warn(&text));
        models.push((name.clone(), Box::new(client)));
    }
    Ok(models)
}

/// A row a task and metric, a column a model; scores x 100. Means close each kind.
fn table(models: &[&str], scores: &[Score]) -> String {
    let means = eval::means(scores);
    let mut rows: Vec<Vec<String>> =
        vec![["task", "name", "metric"].iter().chain(models).map(ToString::to_string).collect()];
    for kind in eval::Kind::ALL {
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for score in scores.iter().chain(&means).filter(|score| score.kind == kind) {
            let key = (score.task.as_str(), score.metric);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let mut row = vec![kind.name().to_owned(), score.task.clone(), score.metric.to_owned()];
            row.extend(models.iter().map(|model| {
                let same = |s: &&Score| s.kind == kind && (s.task.as_str(), s.metric) == key && s.model == *model;
                let found = scores.iter().chain(&means).find(same);
                found.map_or_else(String::new, |score| format!("{:.1}", 100.0 * score.value))
            }));
            rows.push(row);
        }
    }
    let columns = models.len() + 3;
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if column < 3 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_stand_side_by_side_and_a_kind_ends_with_its_mean() {
        let score = |model: &str, task: &str, value| Score {
            model: model.to_owned(),
            kind: eval::Kind::Sts,
            task: task.to_owned(),
            size: 2,
            metric: "spearman",
            value,
        };
        let scores = [
            score("a", "de", 0.5),
            score("a", "en", 0.7),
            score("long name", "de", 0.123),
            score("long name", "en", 1.0),
        ];
        let expected = "\
task  name       metric       a  long name
sts   de         spearman  50.0       12.3
sts   en         spearman  70.0      100.0
sts   mean of 2  spearman  60.0       56.1
";
        assert_eq!(table(&["a", "long name"], &scores), expected);
    }
}
