//! Measures the quality of vectors on data sets in simple public formats.
//!
//! * sentence similarity (STS): Spearman's rank correlation of the cosines with human scores;
//! * bitext: how often the nearest sentence of the other language is the translation, in both directions;
//! * retrieval: nDCG@10 and recall@10 over a BEIR directory.
//!
//! The trait [`Embed`] stands for the model that is measured: a loaded table, or an endpoint. Each value has a
//! bootstrap interval, and so has each difference between two models ([`bootstrap`]).

pub mod bootstrap;
pub mod chart;
mod data;
pub mod metrics;
mod search;

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::error::EvalError;
use bootstrap::{Bootstrap, Interval, RankedPairs};
use layer0::embedder::Embedder;
use layer0::retrieval::Method;
use layer0::retrieval::sparse::SparseVector;
use layer0_files::Diagnostic;
use metrics::Ranked;
pub use search::SearchMethod;

/// The number of search results that are judged.
const CUT: usize = 10;
/// The number of texts that one parallel task embeds.
const TEXTS_AT_A_TIME: usize = 64;

/// The reason why texts have no vectors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EmbedFailure {
    /// The reason, for the user.
    pub message: String,
    /// Whether the same request may succeed later without a change by the user.
    pub temporary: bool,
}

/// A model that computes vectors of texts. The vectors are compared by cosine, so their length does not matter.
pub trait Embed {
    /// Returns one vector for each text, in order. All vectors have the same number of dimensions.
    ///
    /// # Errors
    /// Fails if a text has no vector.
    fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedFailure>;

    /// Returns the embedder, if the model is a table in memory.
    fn embedder(&self) -> Option<&Embedder> {
        None
    }

    /// Returns what scores documents and makes sparse vectors, if the model is a server. Methods of search other than the cosine need an
    /// embedder or this.
    fn ranking(&self) -> Option<&dyn Ranking> {
        None
    }
}

/// A server that scores documents and makes sparse vectors.
pub trait Ranking: Sync {
    /// Returns the relevance of each document to the query, with the statistics of these documents.
    ///
    /// # Errors
    /// Fails if the server does not score the documents.
    fn rerank(&self, method: Method, query: &str, documents: &[&str]) -> Result<Vec<f32>, EmbedFailure>;

    /// Returns the sparse vector of each text, as a query or as a document.
    ///
    /// # Errors
    /// Fails if the server has no vector for a text.
    fn sparse(&self, texts: &[String], is_query: bool) -> Result<Vec<SparseVector>, EmbedFailure>;
}

impl Embed for Embedder {
    fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedFailure> {
        let parts: Result<Vec<Vec<Vec<f32>>>, _> =
            texts.par_chunks(TEXTS_AT_A_TIME).map(|texts| Self::embed(self, texts)).collect();
        let vectors = parts.map(|parts| parts.into_iter().flatten().collect());
        vectors.map_err(|e| EmbedFailure { message: e.to_string(), temporary: false })
    }

    fn embedder(&self) -> Option<&Embedder> {
        Some(self)
    }
}

/// The kind of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Semantic textual similarity: Spearman's correlation of cosines with human scores.
    Sts,
    /// Bitext retrieval: the share of texts whose nearest neighbor in the other language is their translation.
    Bitext,
    /// Retrieval: nDCG and recall of the first ten documents.
    Retrieval,
}

impl Kind {
    /// All kinds, in the order of the tables.
    pub const ALL: [Self; 3] = [Self::Sts, Self::Bitext, Self::Retrieval];

    /// Returns the name of the kind for display.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sts => "sts",
            Self::Bitext => "bitext",
            Self::Retrieval => "retrieval",
        }
    }

    /// Returns the names of the metrics. Models are compared by the first one.
    pub const fn metrics(self) -> &'static [&'static str] {
        match self {
            Self::Sts => &["spearman"],
            Self::Bitext => &["top-1", "top-1 forward", "top-1 backward"],
            Self::Retrieval => &["ndcg@10", "recall@10"],
        }
    }
}

/// A data set in memory.
#[derive(Debug)]
pub struct Task {
    /// The kind of the task.
    pub kind: Kind,
    /// The name of the task: the name of its file or directory without the extension.
    pub name: String,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Sts { left: Vec<String>, right: Vec<String>, scores: Vec<f64> },
    Bitext { left: Vec<String>, right: Vec<String> },
    Retrieval { documents: Vec<String>, queries: Vec<String>, relevant: Vec<Vec<(usize, f64)>> },
}

impl Task {
    /// Reads pairs of sentences with a score. CSV and TSV may have a header or none. Other formats have the fields
    /// `sentence1`, `sentence2` and `score`.
    ///
    /// # Errors
    /// Fails if the file cannot be read in one of these forms.
    pub fn sts(path: &Path) -> Result<Self, EvalError> {
        let data::Pairs { left, right, scores } = data::pairs(path)?;
        Ok(Self { kind: Kind::Sts, name: data::name(path), data: Data::Sts { left, right, scores } })
    }

    /// Reads two files of which the texts at the same position have the same meaning. `field` names the field that
    /// holds the text, in formats that have fields.
    ///
    /// # Errors
    /// Fails if a file cannot be read, if the files are empty, or if they differ in the number of texts.
    pub fn bitext(left: &Path, right: &Path, field: &str) -> Result<Self, EvalError> {
        let (a, b) = (data::lines(left, field)?, data::lines(right, field)?);
        if a.len() != b.len() {
            let expected = format!("{}, as {} has: line by line the same sentence", a.len(), left.display());
            let problem = format!("has {} lines", b.len());
            return Err(EvalError::Mismatch(Diagnostic::new(right, problem).expected(expected)));
        }
        let name = format!("{}-{}", data::name(left), data::name(right));
        Ok(Self { kind: Kind::Bitext, name, data: Data::Bitext { left: a, right: b } })
    }

    /// Reads a BEIR directory: `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`. Queries without judgments are left
    /// out.
    ///
    /// # Errors
    /// Fails if a file is missing, or if a file refers to IDs that the others lack.
    pub fn retrieval(dir: &Path) -> Result<Self, EvalError> {
        let data::Search { documents, queries, relevant } = data::search(dir)?;
        Ok(Self {
            kind: Kind::Retrieval,
            name: data::name(dir),
            data: Data::Retrieval { documents, queries, relevant },
        })
    }

    /// Returns the number of pairs or queries that are measured.
    pub fn size(&self) -> usize {
        match &self.data {
            Data::Sts { scores, .. } => scores.len(),
            Data::Bitext { left, .. } => left.len(),
            Data::Retrieval { queries, .. } => queries.len(),
        }
    }

    /// Returns the number of texts that [`Task::measure`] embeds.
    pub fn texts(&self) -> usize {
        match &self.data {
            Data::Sts { left, right, .. } | Data::Bitext { left, right } => left.len() + right.len(),
            Data::Retrieval { documents, queries, .. } => documents.len() + queries.len(),
        }
    }

    /// Measures a retrieval task like [`Task::measure`], but ranks the documents by `method`. Other tasks compare vectors whatever the method
    /// is.
    ///
    /// # Errors
    /// Fails if the model does not take a text, or if the method is not the cosine and the model has vectors only.
    pub fn measure_by(
        &self,
        model: &dyn Embed,
        method: SearchMethod,
        bootstrap: &Bootstrap,
    ) -> Result<Vec<Measured>, EmbedFailure> {
        let Data::Retrieval { documents, queries, relevant } = &self.data else {
            return self.measure(model, bootstrap);
        };
        if method == SearchMethod::Cosine {
            return self.measure(model, bootstrap);
        }
        let found = search::search(model, method, documents, queries, relevant, CUT)?;
        Ok(Measured::of_ranks(&found, bootstrap))
    }

    /// Returns one value for each metric of [`Kind::metrics`], in the same order. Values range from -1 or 0 to 1.
    ///
    /// # Errors
    /// Fails if the model has no vectors for the texts.
    pub fn measure(&self, model: &dyn Embed, bootstrap: &Bootstrap) -> Result<Vec<Measured>, EmbedFailure> {
        match &self.data {
            Data::Sts { left, right, scores } => {
                let (left, right) = (model.embed(left)?, model.embed(right)?);
                let cosines: Vec<f64> = left.iter().zip(&right).map(|(a, b)| metrics::cosine(a, b)).collect();
                let pairs = RankedPairs::new(&cosines, scores);
                let estimates = bootstrap.estimates(scores.len(), |drawn| pairs.spearman(drawn));
                Ok(vec![Measured { value: metrics::spearman(&cosines, scores), estimates }])
            }
            Data::Bitext { left, right } => {
                let (left, right) = (unit(model.embed(left)?)?, unit(model.embed(right)?)?);
                let forward = metrics::top1(&left, &right);
                let backward = metrics::top1(&right, &left);
                let both: Vec<f64> = forward.iter().zip(&backward).map(|(a, b)| f64::midpoint(*a, *b)).collect();
                Ok([both, forward, backward].iter().map(|hits| Measured::mean_of(hits, bootstrap)).collect())
            }
            Data::Retrieval { documents, queries, relevant } => {
                let (documents, queries) = (unit(model.embed(documents)?)?, unit(model.embed(queries)?)?);
                let found: Vec<Ranked> = queries
                    .par_iter()
                    .zip(relevant)
                    .map(|(query, relevant)| metrics::ranked(query, &documents, relevant, CUT))
                    .collect();
                Ok(Measured::of_ranks(&found, bootstrap))
            }
        }
    }
}

fn unit(mut vectors: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, EmbedFailure> {
    for vector in &mut vectors {
        layer0::pooling::normalize(vector)
            .map_err(|error| EmbedFailure { message: error.to_string(), temporary: false })?;
    }
    Ok(vectors)
}

/// A value and its bootstrap estimates.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The value on the whole task.
    pub value: f64,
    /// One estimate per resample. The estimates of two models in the same task are paired: estimate `i` of both is from
    /// the same resample.
    pub estimates: Vec<f64>,
}

impl Measured {
    /// Returns nDCG and recall.
    fn of_ranks(found: &[Ranked], bootstrap: &Bootstrap) -> Vec<Self> {
        let mean = |f: fn(&Ranked) -> f64| Self::mean_of(&found.iter().map(f).collect::<Vec<_>>(), bootstrap);
        vec![mean(|r| r.ndcg), mean(|r| r.recall)]
    }

    fn mean_of(values: &[f64], bootstrap: &Bootstrap) -> Self {
        Self {
            value: values.iter().sum::<f64>() / values.len().max(1) as f64,
            estimates: bootstrap.estimates(values.len(), |drawn| bootstrap::mean(values, drawn)),
        }
    }
}

/// The result of one model in one task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// The name of the model.
    pub model: String,
    /// The kind of the task.
    pub kind: Kind,
    /// The name of the task.
    pub task: String,
    /// The number of pairs or queries that were measured.
    pub size: usize,
    /// The name of the metric, one of [`Kind::metrics`].
    pub metric: &'static str,
    /// The value of the metric, from 0 to 1 except for correlations.
    pub value: f64,
    /// The bootstrap interval, or `None` without resamples.
    pub interval: Option<Interval>,
    #[serde(skip)]
    estimates: Vec<f64>,
}

impl Score {
    /// Creates the score of a model, with its bootstrap interval.
    pub fn new(model: &str, kind: Kind, task: &str, size: usize, metric: &'static str, measured: Measured) -> Self {
        Self {
            model: model.to_owned(),
            kind,
            task: task.to_owned(),
            size,
            metric,
            value: measured.value,
            interval: Interval::of(&measured.estimates),
            estimates: measured.estimates,
        }
    }
}

/// The difference between two models in the same task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The name of the model.
    pub model: String,
    /// The model with which `model` is compared.
    pub baseline: String,
    /// The kind of the task.
    pub kind: Kind,
    /// The name of the task.
    pub task: String,
    /// The number of pairs or queries that were measured.
    pub size: usize,
    /// The name of the metric.
    pub metric: &'static str,
    /// The value of `model` minus that of `baseline`.
    pub value: f64,
    /// The bootstrap interval of the difference, or `None` without resamples. If the interval excludes 0, chance alone
    /// does not explain the difference.
    pub interval: Option<Interval>,
}

/// Compares each score with that of the model named `baseline` in the same task.
pub fn differences(scores: &[Score], baseline: &str) -> Vec<Difference> {
    let others = scores.iter().filter(|score| score.model != baseline);
    let difference = |score: &Score| {
        let same =
            |s: &&Score| s.model == baseline && (s.kind, &s.task, s.metric) == (score.kind, &score.task, score.metric);
        let base = scores.iter().find(same)?;
        let paired: Vec<f64> = score.estimates.iter().zip(&base.estimates).map(|(a, b)| a - b).collect();
        Some(Difference {
            model: score.model.clone(),
            baseline: baseline.to_owned(),
            kind: score.kind,
            task: score.task.clone(),
            size: score.size,
            metric: score.metric,
            value: score.value - base.value,
            interval: Interval::of(&paired),
        })
    };
    others.filter_map(difference).collect()
}

/// Returns, for each model and metric, the mean over the tasks of each kind that has several tasks. The mean is named
/// "mean of N".
pub fn means(scores: &[Score]) -> Vec<Score> {
    let mut means: Vec<(Score, usize)> = Vec::new();
    for score in scores {
        let same = |m: &Score| (&m.model, m.kind, m.metric) == (&score.model, score.kind, score.metric);
        if let Some((mean, count)) = means.iter_mut().find(|(mean, _)| same(mean)) {
            mean.value += score.value;
            mean.size += score.size;
            for (sum, estimate) in mean.estimates.iter_mut().zip(&score.estimates) {
                *sum += estimate;
            }
            *count += 1;
        } else {
            means.push((score.clone(), 1));
        }
    }
    let several = means.into_iter().filter(|(_, count)| *count > 1);
    let mean = |(sum, n): (Score, usize)| {
        let estimates: Vec<f64> = sum.estimates.iter().map(|estimate| estimate / n as f64).collect();
        let interval = Interval::of(&estimates);
        Score { value: sum.value / n as f64, task: format!("mean of {n}"), interval, estimates, ..sum }
    };
    several.map(mean).collect()
}
