//! The command `embedding-server eval`.

use std::path::PathBuf;
use std::rc::Rc;

use clap::Args;

use super::choice::choice;
use super::output::{Failure, warn};
use super::progress::Bar;
use crate::builtin::open_checkpoint;
use crate::client::Client;
use layer0::OutputDtype;
use layer0::checkpoint::Overrides;
use layer0::embedder::{Embedder, Settings};
use layer0::progress::Progress;
use layer0_tuning::eval::bootstrap::{Bootstrap, Interval};
use layer0_tuning::eval::{self, Difference, Embed, EmbedFailure, Ranking, Score, SearchMethod, Task};

const USAGE: &str = "embedding-server eval --model <NAME=PATH> --sts <FILE>... [OPTIONS]
       embedding-server eval --model <NAME=PATH> --bitext <A> <B> [OPTIONS]
       embedding-server eval --model <NAME=PATH> --retrieval <DIR>... [OPTIONS]
       embedding-server eval --url <URL> --api-model <NAME> --sts <FILE>... [OPTIONS]";

#[derive(Args)]
#[command(override_usage = USAGE)]
pub struct EvalArgs {
    /// A checkpoint to measure. Can be given several times; the models are shown side by side.
    #[arg(long = "model", short, value_name = "NAME=PATH")]
    models: Vec<String>,
    /// An OpenAI-compatible endpoint to measure, such as "http://host:port/v1". The key is read from OPENAI_API_KEY.
    #[arg(long, requires = "api_model")]
    url: Option<String>,
    /// The name of the model to request from the endpoint.
    #[arg(long, value_name = "NAME", requires = "url")]
    api_model: Option<String>,
    /// Sentence similarity: CSV or TSV files with two sentences and a score, or JSONL, JSON or Parquet files with the
    /// fields sentence1, sentence2 and score.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    sts: Vec<PathBuf>,
    /// Translations: two files whose sentences have the same meaning line by line, or record by record in JSONL, JSON,
    /// CSV, TSV or Parquet. Can be given several times.
    #[arg(long, value_names = ["A", "B"], num_args = 2)]
    bitext: Vec<PathBuf>,
    /// The field or column that holds the text in the files of --bitext. A dot selects a field within an object: "a.b".
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// Search: BEIR directories with corpus.jsonl, queries.jsonl and qrels/test.tsv, compressed or not.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    retrieval: Vec<PathBuf>,
    /// How --retrieval ranks documents, side by side if several are given: by vectors (cosine), by BM25 (lexical), by the
    /// scores of POST /v1/rerank over all documents (soft, combined), by sparse vectors (sparse), by their sum with 0.2 of
    /// the cosine (fused), or by reranking the best 50 of cosine (reranked), or of cosine and of sparse (hybrid). With --url,
    /// all but cosine need a server of this program.
    #[arg(long = "method", value_name = "METHOD", value_delimiter = ',', value_parser = choice(&SearchMethod::ALL, SearchMethod::name))]
    methods: Vec<SearchMethod>,
    /// Also measure the vectors in these types, side by side: int8, uint8, binary or ubinary, as the API returns them for
    /// output_dtype.
    #[arg(long = "output-dtype", value_name = "TYPE", value_delimiter = ',', value_parser = choice(&OutputDtype::ALL, OutputDtype::name), conflicts_with = "methods")]
    dtypes: Vec<OutputDtype>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Write a bar chart to this file.
    #[arg(long, value_name = "OUT.svg")]
    chart: Option<PathBuf>,
    /// The number of bootstrap resamples per data set, from which the 95 % intervals are computed. 0 disables the
    /// intervals.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,
    /// The seed of the resamples. The same seed gives the same intervals.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// The number of texts between two updates of the progress bar.
const TEXTS_AT_A_TIME: usize = 1024;

/// The name of a model for the column of the table, and the model.
type Model = (String, Box<dyn Embed>);

pub fn run(args: &EvalArgs) -> Result<String, Failure> {
    let tasks = tasks(args)?;
    let models = models(args)?;
    if tasks.is_empty() || models.is_empty() {
        return Err("nothing to measure: give --model NAME=PATH, or --url URL with --api-model NAME; and --sts, --bitext or --retrieval".into());
    }
    let has_other_tasks = !args.sts.is_empty() || !args.bitext.is_empty();
    if has_other_tasks && !args.methods.is_empty() {
        return Err("--method ranks the documents of --retrieval: measure --sts and --bitext in another run".into());
    }
    let models = if args.dtypes.is_empty() { models } else { with_dtypes(models, &args.dtypes) };
    // One column for each model and method.
    let columns: Vec<(String, &dyn Embed, SearchMethod)> = match args.methods.as_slice() {
        [] => models.iter().map(|(name, model)| (name.clone(), model.as_ref(), SearchMethod::Cosine)).collect(),
        methods => models
            .iter()
            .flat_map(|(name, model)| {
                methods.iter().map(move |method| (format!("{name} {}", method.name()), model.as_ref(), *method))
            })
            .collect(),
    };
    let bootstrap = Bootstrap { resamples: args.resamples, seed: args.seed };
    let bar = Bar::new();
    let mut scores = Vec::new();
    for (name, model, method) in &columns {
        let texts: usize = tasks.iter().map(Task::texts).sum();
        bar.start_counted(&format!("{name}: texts"), texts as u64);
        let model = Counted { model: *model, progress: &bar };
        for task in &tasks {
            let found =
                task.measure_by(&model, *method, &bootstrap).map_err(|e| format!("{name}, {}: {e}", task.name))?;
            let metrics = task.kind.metrics().iter().zip(found);
            scores.extend(
                metrics.map(|(metric, found)| Score::new(name, task.kind, &task.name, task.size(), metric, found)),
            );
        }
        bar.finish();
    }
    let means = eval::means(&scores);
    let all = [scores.as_slice(), &means].concat();
    let differences = columns.first().map(|(first, ..)| eval::differences(&all, first)).unwrap_or_default();
    let text = if args.json {
        let bootstrap = serde_json::json!({
            "resamples": bootstrap.resamples, "seed": bootstrap.seed, "level": Interval::LEVEL,
        });
        let all = serde_json::json!({
            "scores": scores, "means": means, "differences": differences, "bootstrap": bootstrap,
        });
        format!("{all:#}\n")
    } else {
        let names: Vec<&str> = columns.iter().map(|(name, ..)| name.as_str()).collect();
        table(&names, &all, &differences) + &footer(&bootstrap, columns.len())
    };
    if let Some(path) = &args.chart {
        std::fs::write(path, eval::chart::svg(&scores)).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(text)
}

/// Returns each model as it is, followed by the model in each of the types.
fn with_dtypes(models: Vec<Model>, dtypes: &[OutputDtype]) -> Vec<Model> {
    let mut all: Vec<Model> = Vec::new();
    for (name, model) in models {
        let model: Rc<dyn Embed> = Rc::from(model);
        all.push((name.clone(), Box::new(Converted { model: Rc::clone(&model), dtype: OutputDtype::Float })));
        let smaller = dtypes.iter().filter(|dtype| **dtype != OutputDtype::Float);
        all.extend(smaller.map(|&dtype| {
            let converted: Box<dyn Embed> = Box::new(Converted { model: Rc::clone(&model), dtype });
            (format!("{name} {}", dtype.name()), converted)
        }));
    }
    all
}

/// A model whose vectors are converted to a smaller type and read back.
struct Converted {
    model: Rc<dyn Embed>,
    dtype: OutputDtype,
}

impl Embed for Converted {
    fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedFailure> {
        let read_back = |vector: Vec<f32>| {
            let mut read = Vec::with_capacity(vector.len());
            self.dtype.read(&self.dtype.convert(&vector), vector.len(), &mut read);
            read
        };
        Ok(self.model.embed(texts)?.into_iter().map(read_back).collect())
    }
}

/// A model whose embedded texts are counted by a progress bar.
struct Counted<'a> {
    model: &'a dyn Embed,
    progress: &'a dyn Progress,
}

impl Embed for Counted<'_> {
    fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedFailure> {
        let mut vectors = Vec::with_capacity(texts.len());
        for texts in texts.chunks(TEXTS_AT_A_TIME) {
            vectors.extend(self.model.embed(texts)?);
            self.progress.advance(texts.len() as u64);
        }
        Ok(vectors)
    }

    fn embedder(&self) -> Option<&Embedder> {
        self.model.embedder()
    }

    fn ranking(&self) -> Option<&dyn Ranking> {
        self.model.ranking()
    }
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
    number_equal_names(&mut tasks);
    Ok(tasks)
}

/// Appends numbers to the names of data sets that share a name and a kind, so that each has a row of its own.
fn number_equal_names(tasks: &mut [Task]) {
    let mut seen: Vec<(eval::Kind, String)> = Vec::new();
    for task in tasks {
        let name = (task.kind, task.name.clone());
        let earlier = seen.iter().filter(|other| **other == name).count();
        if earlier > 0 {
            task.name = format!("{} ({})", task.name, earlier + 1);
        }
        seen.push(name);
    }
}

fn models(args: &EvalArgs) -> Result<Vec<Model>, Failure> {
    let mut models: Vec<Model> = Vec::new();
    for model in &args.models {
        let (name, path) = match model.split_once('=') {
            Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
            None => (model.clone(), PathBuf::from(model)),
        };
        let checkpoint = open_checkpoint(&path, &Overrides::default())?;
        models.push((name, Box::new(Embedder::new(checkpoint, Settings::default())?)));
    }
    if let (Some(url), Some(name)) = (&args.url, &args.api_model) {
        let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
        let client = Client::new(url, name, key).map_err(Failure::run)?.with_notify(|text| warn(&text));
        models.push((name.clone(), Box::new(client)));
    }
    let mut names: Vec<&str> = models.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some([name, _]) = names.windows(2).find(|pair| pair.first() == pair.last()) {
        return Err(format!("two models are named {name:?}: give them names, as in --model NAME=PATH").into());
    }
    Ok(models)
}

/// Returns a table with one row per task and metric. The columns are the models, followed by the differences of the
/// other models from the first one. All values are multiplied by 100. The mean of each kind of task follows its tasks.
fn table(models: &[&str], scores: &[Score], differences: &[Difference]) -> String {
    let mut header: Vec<String> =
        ["task", "name", "metric", "n"].iter().chain(models).map(ToString::to_string).collect();
    header.extend(models.iter().skip(1).map(|model| format!("{model} - {}", models.first().unwrap_or(&""))));
    let mut rows = vec![header];
    for kind in eval::Kind::ALL {
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for score in scores.iter().filter(|score| score.kind == kind) {
            let key = (score.task.as_str(), score.metric);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let mut row =
                vec![kind.name().to_owned(), score.task.clone(), score.metric.to_owned(), score.size.to_string()];
            row.extend(models.iter().map(|model| {
                let same = |s: &&Score| s.kind == kind && (s.task.as_str(), s.metric) == key && s.model == *model;
                let found = scores.iter().find(same);
                found.map_or_else(String::new, |score| cell(&format!("{:.1}", 100.0 * score.value), score.interval))
            }));
            row.extend(models.iter().skip(1).map(|model| {
                let same = |d: &&Difference| d.kind == kind && (d.task.as_str(), d.metric) == key && d.model == *model;
                let found = differences.iter().find(same);
                found.map_or_else(String::new, |d| cell(&format!("{:+.1}", 100.0 * d.value), d.interval))
            }));
            rows.push(row);
        }
    }
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
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

/// Returns the value, followed by its interval multiplied by 100.
fn cell(value: &str, interval: Option<Interval>) -> String {
    let interval = interval.map(|Interval { low, high }| format!(" [{:.1}, {:.1}]", 100.0 * low, 100.0 * high));
    format!("{value}{}", interval.unwrap_or_default())
}

/// Returns the explanation of the numbers in the table.
fn footer(bootstrap: &Bootstrap, models: usize) -> String {
    if bootstrap.resamples == 0 {
        return String::new();
    }
    let differences = if models > 1 { "; of a difference, paired by resample" } else { "" };
    format!(
        "[low, high]: {:.0} % bootstrap interval, {} resamples, seed {}{differences}\n",
        100.0 * Interval::LEVEL,
        bootstrap.resamples,
        bootstrap.seed
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer0_tuning::eval::Measured;

    #[test]
    fn models_stand_side_by_side_and_a_kind_ends_with_its_mean() {
        let score = |model: &str, task: &str, value: f64, spread: f64| {
            let measured = Measured { value, estimates: vec![value - spread, value + spread] };
            Score::new(model, eval::Kind::Sts, task, 2, "spearman", measured)
        };
        let scores = [
            score("a", "de", 0.5, 0.0),
            score("a", "en", 0.7, 0.0),
            score("long name", "de", 0.123, 0.1),
            score("long name", "en", 1.0, 0.0),
        ];
        let all = [&scores[..], &eval::means(&scores)].concat();
        let expected = "\
task  name       metric    n                  a             long name         long name - a
sts   de         spearman  2  50.0 [50.0, 50.0]     12.3 [2.8, 21.8]  -37.7 [-47.2, -28.2]
sts   en         spearman  2  70.0 [70.0, 70.0]  100.0 [100.0, 100.0]    +30.0 [30.0, 30.0]
sts   mean of 2  spearman  4  60.0 [60.0, 60.0]     56.1 [51.4, 60.9]     -3.8 [-8.6, 0.9]
";
        let found = table(&["a", "long name"], &all, &eval::differences(&all, "a"));
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(&found), squeezed(expected), "{found}");
        let without = Measured { value: 0.5, estimates: Vec::new() };
        let scores = [Score::new("a", eval::Kind::Sts, "de", 2, "spearman", without)];
        assert_eq!(table(&["a"], &scores, &[]), "task  name  metric    n     a\nsts   de    spearman  2  50.0\n");
        assert_eq!(footer(&Bootstrap { resamples: 0, seed: 0 }, 1), "");
    }
}
