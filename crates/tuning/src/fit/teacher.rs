//! Requests vectors from a teacher: each text once, in parallel batches, with every answer stored in a cache.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::cache::{Cache, Identity, Key};
use super::vectors::{VALID, Vectors, check};
use crate::error::{FitError, InvalidVectors};
use crate::eval::Embed;
use layer0::progress::Progress;
use layer0_files::{Diagnostic, FileError, FileErrorKind, Place};

/// A teacher that is reached through `ask`. `identity` names the teacher in the cache.
pub struct Teacher<'a> {
    /// Computes the vectors of texts.
    pub ask: &'a (dyn Embed + Sync),
    /// The name of the teacher in the cache.
    pub identity: Identity,
    /// The vectors that are known.
    pub cache: Cache,
    /// The number of texts in one request.
    pub batch: usize,
    /// The number of concurrent requests.
    pub requests: usize,
}

impl std::fmt::Debug for Teacher<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Teacher").finish_non_exhaustive()
    }
}

impl Teacher<'_> {
    /// Requests the vectors of the texts that the cache lacks. Each answer is in the cache before its thread sends the
    /// next request. After an error, requests in flight still run to their end, because a teacher may charge for them.
    fn fill(&mut self, missing: &[(Key, &str)], progress: &dyn Progress) -> Result<(), FitError> {
        let Self { ask, identity, cache, .. } = self;
        let (ask, identity) = (&**ask, &*identity);
        let batches = Mutex::new(missing.chunks(self.batch.max(1)));
        let cache = Mutex::new(cache);
        let failed: Mutex<Option<FitError>> = Mutex::new(None);
        let work = || loop {
            if lock(&failed).is_some() {
                return;
            }
            let Some(batch) = lock(&batches).next() else { return };
            let answered = answers(ask, identity, batch).and_then(|answers| lock(&cache).append(&answers));
            match answered {
                Ok(()) => progress.advance_texts(batch.len() as u64, bytes(batch)),
                Err(error) => drop(lock(&failed).get_or_insert(error)),
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.requests.clamp(1, missing.len().div_ceil(self.batch.max(1))) {
                scope.spawn(work);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Returns the length of all texts together, in bytes.
fn bytes(batch: &[(Key, &str)]) -> u64 {
    batch.iter().map(|(_, text)| text.len() as u64).sum()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answers(
    ask: &(dyn Embed + Sync),
    identity: &Identity,
    batch: &[(Key, &str)],
) -> Result<Vec<(Key, Vec<f32>)>, FitError> {
    let texts: Vec<String> = batch.iter().map(|(_, text)| format!("{}{text}", identity.prefix)).collect();
    let vectors = ask.embed(&texts).map_err(|failure| {
        let found = problem(failure.message);
        FitError::Teacher(match failure.temporary {
            true => found.remedy("run the same again later: what was answered is kept, and not asked for twice"),
            false => found,
        })
    })?;
    let dimensions = vectors.first().map_or(0, Vec::len);
    for (text, vector) in texts.iter().zip(&vectors) {
        check(vector, dimensions).map_err(|problem| wrong(identity, text, &problem))?;
    }
    Ok(batch.iter().map(|(key, _)| *key).zip(vectors).collect())
}

/// Returns a problem of the teacher, whatever its address is.
pub fn problem(problem: String) -> Diagnostic {
    Diagnostic::new(Place::Name("teacher".to_owned()), problem)
}

fn wrong(identity: &Identity, text: &str, problem: &InvalidVectors) -> FitError {
    let shown: String = text.chars().take(80).collect();
    let problem = format!("answered for the text {shown:?} a vector that {problem}");
    FitError::Vectors(Diagnostic::new(Place::Url(identity.url.clone()), problem).expected(VALID))
}

impl Vectors for Teacher<'_> {
    fn of(&mut self, texts: &[String], progress: &dyn Progress) -> Result<Vec<Vec<f32>>, FitError> {
        let keys: Vec<Key> = texts.iter().map(|text| Cache::key(text)).collect();
        let mut seen = HashSet::new();
        let missing: Vec<(Key, &str)> = keys
            .iter()
            .zip(texts)
            .filter(|(key, _)| !self.cache.contains(key) && seen.insert(**key))
            .map(|(key, text)| (*key, text.as_str()))
            .collect();
        let all: u64 = texts.iter().map(|text| text.len() as u64).sum();
        progress.advance_texts((texts.len() - missing.len()) as u64, all - bytes(&missing));
        if !missing.is_empty() {
            self.fill(&missing, progress)?;
        }
        keys.iter()
            .map(|key| {
                let vector = self.cache.get(key)?;
                let lost = "lost a vector while this process had it";
                vector.ok_or_else(|| FileError::new(FileErrorKind::Io, self.cache.path(), lost).into())
            })
            .collect()
    }

    fn finish(&mut self) -> Result<(), FitError> {
        self.cache.sync()
    }

    fn wrong(&self, _: u64, text: &str, problem: &InvalidVectors) -> FitError {
        wrong(&self.identity, text, problem)
    }

    fn description(&self) -> Value {
        json!(self.identity)
    }
}
