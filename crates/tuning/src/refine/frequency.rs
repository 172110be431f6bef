//! Determines how often each token occurs in natural text: counted in a corpus, or read from a Unigram tokenizer.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use serde::Serialize;

use crate::corpus::{self, Batch, CorpusFile, Fields, Take};
use crate::error::RefineError;
use layer0::checkpoint::{Checkpoint, tokenizer_json};
use layer0::progress::{Progress, counted};
use layer0_files::Diagnostic;

/// The sentences in many languages that the project ships (assets/README.md).
const SAMPLE: &str = include_str!("../../assets/sample.txt");

/// The probabilities `p_t`: the share of token `t` among the tokens of natural text.
#[derive(Debug, Clone)]
pub struct Frequencies {
    /// One probability per row of the table. They sum to 1.
    probabilities: Vec<f64>,
    source: Source,
}

/// The source of the probabilities. It becomes part of the config.json of the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// The user's files.
    Corpus {
        /// The files.
        files: Vec<CorpusFile>,
        /// The number of tokens of all files.
        tokens: u64,
        /// The share of the probabilities that comes from the built-in sample.
        sample_share: f64,
    },
    /// The scores of a Unigram tokenizer in tokenizer.json.
    Unigram {
        /// The number of pieces with a score.
        pieces: usize,
    },
    /// The built-in sample sentences.
    Sample {
        /// The SHA-256 of the sample in hexadecimal digits.
        sha256: String,
        /// The number of texts.
        texts: u64,
        /// The number of tokens.
        tokens: u64,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corpus { files, tokens, sample_share } => {
                let texts: u64 = files.iter().map(|file| file.texts).sum();
                let share = 100.0 * sample_share;
                let (tokens, texts) = (counted(*tokens, "token"), counted(texts, "text"));
                write!(f, "{tokens} in {texts} from {}", counted(files.len(), "file"))?;
                if *sample_share > 0.0 {
                    write!(f, ", mixed with {share:.0} % of the built-in sample")?;
                }
                Ok(())
            }
            Self::Unigram { pieces } => write!(f, "the scores of the tokenizer's {pieces} pieces"),
            Self::Sample { texts, tokens, .. } => {
                write!(f, "{tokens} tokens in {texts} texts of the sample that this program carries")
            }
        }
    }
}

impl Frequencies {
    /// Returns the probability of each token, which sum up to 1.
    pub fn probabilities(&self) -> &[f64] {
        &self.probabilities
    }

    /// Returns where the probabilities come from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Counts the tokens of `files` on `threads` threads. Memory use does not grow with the size of a file.
    ///
    /// # Errors
    /// Fails if a file cannot be read or has too many bad records, if the tokenizer refuses a text, or if the files
    /// hold no token at all.
    pub fn of_corpus(
        checkpoint: &Checkpoint,
        files: &[PathBuf],
        fields: Fields<'_>,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Self, RefineError> {
        let mut counts = vec![0u64; checkpoint.table.rows()];
        let mut read = Vec::new();
        progress.start_texts("counting tokens", corpus::size(files));
        for path in files {
            read.push(count(checkpoint, threads, progress, &mut counts, |take| {
                corpus::read(path, fields, progress, take)
            })?);
        }
        progress.finish();
        let tokens = counts.iter().sum();
        if tokens == 0 {
            return Err(corpus::without_text(&read, files, fields).into());
        }
        Ok(Self {
            probabilities: normalized(&counts),
            source: Source::Corpus { files: read, tokens, sample_share: 0.0 },
        })
    }

    /// Replaces the share `share` of the probabilities with those of the built-in sample. Text in only one language
    /// leaves most directions of the table without variance, and the whitening would then rest on too few tokens.
    ///
    /// # Errors
    /// Fails if `share` is not between 0 and 1, or if the tokenizer refuses a text.
    pub fn with_sample(
        mut self,
        checkpoint: &Checkpoint,
        share: f64,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Self, RefineError> {
        if !(0.0..=1.0).contains(&share) {
            let problem = format!("cannot be refined with a sample share of {share}");
            let problem = Diagnostic::new(&checkpoint.path, problem);
            return Err(RefineError::OutOfRange(problem.expected("between 0 and 1")));
        }
        if share > 0.0 {
            let sample = Self::of_sample(checkpoint, threads, progress)?;
            for (p, sample) in self.probabilities.iter_mut().zip(sample.probabilities) {
                *p = (1.0 - share) * *p + share * sample;
            }
        }
        if let Source::Corpus { sample_share, .. } = &mut self.source {
            *sample_share = share;
        }
        Ok(self)
    }

    /// Returns `exp(score)` of the pieces of a SentencePiece Unigram tokenizer, whose scores were trained on text of
    /// the kind that the model reads. Returns `None` for other tokenizers.
    pub fn of_unigram(checkpoint: &Checkpoint) -> Option<Self> {
        let scores = tokenizer_json::reference(checkpoint).ok()?.unigram_scores()?;
        let mut probabilities = vec![0.0; checkpoint.table.rows()];
        for &(id, score) in &scores {
            // A score is a log probability. A score that is not below zero belongs to a marker and not to a piece of
            // text.
            if let Some(p) = probabilities.get_mut(id as usize).filter(|_| score < 0.0) {
                *p = score.exp();
            }
        }
        let sum: f64 = probabilities.iter().sum();
        (sum > 0.0 && sum.is_finite()).then(|| Self {
            probabilities: probabilities.iter().map(|p| p / sum).collect(),
            source: Source::Unigram { pieces: scores.len() },
        })
    }

    /// Counts the tokens of the built-in sample.
    ///
    /// # Errors
    /// Fails if the tokenizer refuses a text.
    pub fn of_sample(checkpoint: &Checkpoint, threads: usize, progress: &dyn Progress) -> Result<Self, RefineError> {
        let mut counts = vec![0u64; checkpoint.table.rows()];
        progress.start_texts("counting the tokens of the sample", SAMPLE.len() as u64);
        let file = count(checkpoint, threads, progress, &mut counts, |take| {
            let (batches, file) = corpus::of_lines(SAMPLE);
            for batch in batches {
                take(batch)?;
            }
            Ok(file)
        })?;
        progress.finish();
        if file.tokens == 0 {
            let problem = "has no token for any text of the sample";
            return Err(RefineError::NoTokens(Diagnostic::new(&checkpoint.tokenizer_path, problem)));
        }
        let source = Source::Sample { sha256: file.sha256, texts: file.texts, tokens: file.tokens };
        Ok(Self { probabilities: normalized(&counts), source })
    }
}

fn normalized(counts: &[u64]) -> Vec<f64> {
    let total: u64 = counts.iter().sum();
    counts.iter().map(|&n| n as f64 / total.max(1) as f64).collect()
}

/// Adds the tokens of the texts that `read` produces to `counts`. One thread reads and `threads` threads tokenize. A
/// few batches wait between them.
fn count(
    checkpoint: &Checkpoint,
    threads: usize,
    progress: &dyn Progress,
    counts: &mut [u64],
    read: impl FnOnce(&mut Take<'_, RefineError>) -> Result<CorpusFile, RefineError>,
) -> Result<CorpusFile, RefineError> {
    let rows = counts.len();
    let threads = threads.max(1);
    let (send, receive) = mpsc::sync_channel::<Batch>(2 * threads);
    // Only the workers own the receiver, so sending fails once all workers have failed.
    let receive = Arc::new(Mutex::new(receive));
    let work = |receive: Arc<Mutex<mpsc::Receiver<Batch>>>| -> Result<Vec<u64>, RefineError> {
        let mut counts = vec![0u64; rows];
        let mut ids = Vec::new();
        loop {
            let batch = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(batch) = batch else { return Ok(counts) };
            for text in &batch.texts {
                ids.clear();
                checkpoint.tokenizer.choice.implementation.encode(text, false, &mut ids).map_err(|e| {
                    let problem = format!("cannot tokenize a text: {e}");
                    RefineError::Tokenizer(Diagnostic::new(&checkpoint.tokenizer_path, problem))
                })?;
                for &id in &ids {
                    if let Some(count) = counts.get_mut(id as usize) {
                        *count += 1;
                    }
                }
            }
            progress.advance_texts(batch.texts.len() as u64, batch.bytes);
        }
    };
    let (read, counted) = std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = std::iter::repeat_n(receive, threads).map(|r| scope.spawn(move || work(r))).collect();
        // Sending fails only if all workers have failed. The workers' error is then the one to report.
        let read = read(&mut |batch| Ok(send.send(batch).is_ok()));
        drop(send);
        let counted: Vec<_> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        (read, counted)
    });
    let mut tokens = 0;
    for part in counted {
        for (total, n) in counts.iter_mut().zip(part?) {
            *total += n;
            tokens += n;
        }
    }
    Ok(CorpusFile { tokens, ..read? })
}
