//! Takes the fastest tokenizer that gives the reference's ids.

use std::borrow::Cow;
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

#[cfg(feature = "fastokens")]
use super::fastokens::Fastokens;
use super::probe;
use super::reference::HfTokenizer;
use super::spbpe::SentencePieceBpe;
use super::{Tokenize, Vocabulary};
use crate::error::LoadError;

/// A tokenizer, ready.
pub struct Tokenizer {
    pub implementation: Box<dyn Tokenize>,
    pub vocabulary: Vocabulary,
    /// Faster implementations that were not taken: which, and why.
    pub refused: Vec<Refused>,
    /// The tokenizer.json, where no file holds it.
    pub rebuilt: Option<Cow<'static, str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub name: &'static str,
    pub reason: String,
    /// It loaded, but its ids were not the reference's.
    pub differs: bool,
}

/// From a tokenizer.json; an error says why not.
type Load = fn(&[u8]) -> Result<Box<dyn Tokenize>, String>;

struct Candidate {
    name: &'static str,
    load: Load,
}

/// The fastest first.
const CANDIDATES: &[Candidate] = &[
    Candidate { name: SentencePieceBpe::NAME, load: |json| Ok(Box::new(SentencePieceBpe::from_json(json)?)) },
    #[cfg(feature = "fastokens")]
    Candidate { name: Fastokens::NAME, load: |json| Ok(Box::new(Fastokens::from_json(json)?)) },
];

impl Tokenizer {
    /// Reads a tokenizer.json. The reference is loaded with the first candidate that takes the file, compared with it on
    /// the probe texts, and dropped when they agree: it is the largest part of the memory.
    ///
    /// # Errors
    /// When it is missing or no tokenizer.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let json = std::fs::read(path).map_err(|e| LoadError::io(path, &e))?;
        Self::choose(&json, path, || HfTokenizer::from_json(&json, path), CANDIDATES)
    }

    /// As [`Tokenizer::open`], of a tokenizer that was built from what `path` says.
    ///
    /// # Errors
    /// When it cannot be written as a tokenizer.json.
    pub fn of(reference: HfTokenizer, path: &Path) -> Result<Self, LoadError> {
        let json = reference.to_json().map_err(|e| LoadError::new(path, e))?;
        let chosen = Self::choose(json.as_bytes(), path, || Ok(reference), CANDIDATES)?;
        Ok(Self { rebuilt: Some(json.into()), ..chosen })
    }

    /// As [`Tokenizer::open`], of a tokenizer.json that was compiled into the program; `path` is for errors.
    ///
    /// # Errors
    /// When it is no tokenizer.
    pub fn of_program(json: &'static str, path: &Path) -> Result<Self, LoadError> {
        let chosen = Self::choose(json.as_bytes(), path, || HfTokenizer::from_json(json.as_bytes(), path), CANDIDATES)?;
        Ok(Self { rebuilt: Some(json.into()), ..chosen })
    }

    fn choose(
        json: &[u8],
        path: &Path,
        reference: impl FnOnce() -> Result<HfTokenizer, LoadError> + Send,
        candidates: &[Candidate],
    ) -> Result<Self, LoadError> {
        let mut refused = Vec::new();
        let mut candidates = candidates.iter();
        let (reference, mut candidate) = thread::scope(|scope| {
            let reference = scope.spawn(reference);
            let candidate = first(&mut candidates, json, &mut refused);
            (join(reference), candidate)
        });
        let reference = reference.unwrap_or_else(|panic| Err(LoadError::new(path, panic)))?;
        let vocabulary = reference.vocabulary();
        while let Some(implementation) = candidate {
            // On a thread of its own: caches of the thread end with it, and a panic is a refusal.
            let compare = || probe::difference(&reference, &*implementation, &vocabulary);
            match thread::scope(|scope| join(scope.spawn(compare))).unwrap_or_else(Some) {
                None => return Ok(Self { implementation, vocabulary, refused, rebuilt: None }),
                Some(reason) => refused.push(Refused { name: implementation.name(), reason, differs: true }),
            }
            candidate = first(&mut candidates, json, &mut refused);
        }
        Ok(Self { implementation: Box::new(reference), vocabulary, refused, rebuilt: None })
    }

    /// The reference anew; `path` is the tokenizer.json it was opened from.
    ///
    /// # Errors
    /// When the file is gone or has changed.
    pub fn reference(&self, path: &Path) -> Result<HfTokenizer, LoadError> {
        match &self.rebuilt {
            Some(json) => HfTokenizer::from_json(json.as_bytes(), path),
            None => HfTokenizer::from_json(&std::fs::read(path).map_err(|e| LoadError::io(path, &e))?, path),
        }
    }

    /// What a user should know: that this is the slow one, and why, or that a faster one went wrong.
    pub fn warning(&self) -> Option<String> {
        let slow = self.implementation.name() == HfTokenizer::NAME;
        if !slow && !self.refused.iter().any(|refused| refused.differs) {
            return None;
        }
        let reasons: Vec<String> = self.refused.iter().map(|r| format!("{}: {}", r.name, r.reason)).collect();
        Some(format!("is tokenized by {}, not by a faster one ({})", self.implementation.name(), reasons.join("; ")))
    }
}

/// The next candidate that takes the file.
fn first<'c>(
    candidates: &mut impl Iterator<Item = &'c Candidate>,
    json: &[u8],
    refused: &mut Vec<Refused>,
) -> Option<Box<dyn Tokenize>> {
    candidates.find_map(|candidate| {
        let loaded = thread::scope(|scope| join(scope.spawn(|| (candidate.load)(json)))).and_then(|loaded| loaded);
        loaded.map_err(|reason| refused.push(Refused { name: candidate.name, reason, differs: false })).ok()
    })
}

/// The thread's result, or what it panicked with.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> Result<T, String> {
    thread.join().map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        format!("panicked: {}", text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds an id to texts that hold `trigger`; panics on an empty one.
    struct Wrong {
        right: HfTokenizer,
        trigger: &'static str,
    }

    impl Tokenize for Wrong {
        fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<(), String> {
            assert!(!self.trigger.is_empty(), "cannot do it");
            if text.contains(self.trigger) {
                ids.push(0);
            }
            self.right.encode(text, special, ids)
        }

        fn name(&self) -> &'static str {
            "wrong"
        }
    }

    fn path() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/checkpoints/llama/tokenizer.json"))
    }

    fn choose(load: Load) -> Tokenizer {
        let json = std::fs::read(path()).unwrap();
        let reference = || HfTokenizer::from_json(&json, path());
        Tokenizer::choose(&json, path(), reference, &[Candidate { name: "wrong", load }]).unwrap()
    }

    fn wrong(json: &[u8], trigger: &'static str) -> Result<Box<dyn Tokenize>, String> {
        Ok(Box::new(Wrong { right: HfTokenizer::from_json(json, path()).unwrap(), trigger }))
    }

    #[test]
    fn a_candidate_that_differs_is_refused_and_named() {
        for load in [(|json| wrong(json, "안녕")) as Load, |json| wrong(json, "</s>"), |json| wrong(json, "\u{301}")]
        {
            let tokenizer = choose(load);
            assert_eq!(tokenizer.implementation.name(), "tokenizers");
            let warning = tokenizer.warning().unwrap();
            assert!(warning.starts_with("is tokenized by tokenizers, not by a faster one (wrong: "), "{warning}");
        }
    }

    #[test]
    fn a_candidate_that_fails_or_panics_is_refused() {
        let tokenizer = choose(|_| Err("no such model".to_owned()));
        assert_eq!(
            tokenizer.warning().unwrap(),
            "is tokenized by tokenizers, not by a faster one (wrong: no such model)"
        );
        assert_eq!(choose(|_| panic!("at load")).refused[0].reason, "panicked: at load");
        let refused = &choose(|json| wrong(json, "")).refused[0];
        assert_eq!((refused.reason.as_str(), refused.differs), ("panicked: cannot do it", true));
    }

    #[test]
    fn a_candidate_that_agrees_is_taken() {
        let tokenizer = choose(|json| wrong(json, "not in any probe text"));
        assert_eq!((tokenizer.implementation.name(), tokenizer.warning()), ("wrong", None));
    }
}
