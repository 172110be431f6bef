//! Chooses the fastest tokenizer that gives the same IDs as the reference.

mod compile;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};

use twox_hash::XxHash3_128;

use super::bounds;
use super::bytebpe::ByteBpe;
use super::panics::{self, Panicked};
use super::pieces::Pieces;
use super::probe;
use super::reference::HfTokenizer;
use super::spbpe::SentencePieceBpe;
use super::unigram::Unigram;
use super::{EncodeError, Tokenize, Vocabulary, long};
use crate::yield_point::Steps;
use crate::{DefinitionError, TokenizerError};

/// A tokenizer that is ready to use, with its vocabulary.
///
/// # Examples
///
/// ```
/// use layer0_tokenizers::TokenizerError;
/// use layer0_tokenizers::choose::Tokenizer;
///
/// let json = std::fs::read("../../tests/fixtures/checkpoints/llama/tokenizer.json")?;
/// let tokenizer = Tokenizer::from_json(&json)?;
/// let mut ids = Vec::new();
/// tokenizer.choice.implementation.encode("hello", true, &mut ids)?;
/// assert!(ids.iter().all(|id| u64::from(*id) <= tokenizer.vocabulary.max_id()));
///
/// assert!(matches!(Tokenizer::from_json(b"not JSON"), Err(TokenizerError::Malformed(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tokenizer {
    /// The implementation that tokenizes.
    pub choice: Choice,
    /// What the tokenizer.json states of its vocabulary.
    pub vocabulary: Vocabulary,
    /// What each token stands for in a text.
    #[doc(hidden)]
    pub pieces: Pieces,
    /// The content of the tokenizer.json, if the tokenizer was not read from a file.
    pub rebuilt: Option<Cow<'static, str>>,
    /// The 128 bits of XXH3 over the content of the tokenizer.json.
    pub digest: u128,
}

/// The chosen implementation of a tokenizer.
#[derive(Debug)]
pub struct Choice {
    /// The implementation.
    pub implementation: Arc<dyn Tokenize>,
    /// The faster implementations that were not chosen, with the reasons.
    pub refused: Vec<Refused>,
}

/// An implementation that was not chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The name of the implementation.
    pub name: &'static str,
    /// What the implementation does not support, or a text for which its IDs differ.
    pub reason: String,
    /// Whether the implementation was loaded but gave other IDs than the reference. Otherwise it could not read the file.
    pub differs: bool,
}

/// A function that loads an implementation from a tokenizer.json.
type Load = fn(&[u8]) -> Result<Arc<dyn Tokenize>, DefinitionError>;

#[derive(Debug, Clone, Copy)]
struct Candidate {
    name: &'static str,
    load: Load,
}

/// The implementations of this crate, which are tried in this order. They are loaded at the same time as the reference.
const CANDIDATES: &[Candidate] = &[
    Candidate { name: SentencePieceBpe::NAME, load: |json| Ok(Arc::new(SentencePieceBpe::from_json(json)?)) },
    Candidate { name: ByteBpe::NAME, load: |json| Ok(Arc::new(ByteBpe::from_json(json)?)) },
    Candidate { name: Unigram::NAME, load: |json| Ok(Arc::new(Unigram::from_json(json)?)) },
];

/// Shows the chosen implementation and the size of the vocabulary.
impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("choice", &self.choice)
            .field("tokens", &self.vocabulary.size)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a tokenizer.json. Loads the reference, and compares the first implementation that can read the file with the reference on
    /// the probe texts.
    ///
    /// # Errors
    /// When `json` is not a tokenizer.json, or asks for more memory or work than the length of a text explains.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        bounds::check(json)?;
        Self::choose(json, || HfTokenizer::from_json(json), CANDIDATES)
    }

    /// Like [`Tokenizer::from_json`], for a tokenizer that was built in memory.
    ///
    /// # Errors
    /// When the tokenizer cannot be written as a tokenizer.json.
    pub fn from_reference(reference: HfTokenizer) -> Result<Self, TokenizerError> {
        let json = reference.to_json()?;
        let chosen = Self::choose(json.as_bytes(), || Ok(reference), CANDIDATES)?;
        Ok(Self { rebuilt: Some(json.into()), ..chosen })
    }

    /// Like [`Tokenizer::from_json`], for a tokenizer.json that was compiled into the program and is known to be good. For a Unigram
    /// model the reference is not loaded, because loading it would take most of the start-up time. Tests compare the two instead.
    ///
    /// # Errors
    /// When `json` is not a tokenizer.json.
    pub fn from_static_json(json: &'static str) -> Result<Self, TokenizerError> {
        if let Ok((implementation, vocabulary, pieces)) = Unigram::with_vocabulary(json.as_bytes()) {
            let choice = Choice { implementation: Arc::new(implementation), refused: Vec::new() };
            let digest = XxHash3_128::oneshot(json.as_bytes());
            return Ok(Self { choice, vocabulary, pieces, rebuilt: Some(json.into()), digest });
        }
        let reference = || HfTokenizer::from_json(json.as_bytes());
        let chosen = Self::choose(json.as_bytes(), reference, CANDIDATES)?;
        Ok(Self { rebuilt: Some(json.into()), ..chosen })
    }

    fn choose(
        json: &[u8],
        reference: impl FnOnce() -> Result<HfTokenizer, TokenizerError> + Send,
        candidates: &[Candidate],
    ) -> Result<Self, TokenizerError> {
        let mut refused = Vec::new();
        let mut candidates = candidates.iter().copied();
        let (reference, candidate) = thread::scope(|scope| {
            let reference = scope.spawn(|| panics::catch(reference));
            let candidate = first(&mut candidates, json, &mut refused);
            (join(reference), candidate)
        });
        let reference = reference.unwrap_or_else(|panic| {
            Err(TokenizerError::Malformed(format!(
                "is not a tokenizer that can be read: the tokenizers library {panic}"
            )))
        })?;
        let (vocabulary, pieces) = (reference.vocabulary(), reference.pieces());
        let found = agreeing(candidate, candidates, json, &reference, &vocabulary, &mut refused);
        let implementation = found.unwrap_or_else(|| Arc::new(reference));
        let choice = Choice { implementation, refused };
        Ok(Self { choice, vocabulary, pieces, rebuilt: None, digest: XxHash3_128::oneshot(json) })
    }
}

impl Choice {
    /// Like [`Tokenize::encode`], for texts that may take seconds: `steps` is called regularly, so that other work can run in
    /// between.
    ///
    /// # Errors
    /// As for [`Tokenize::encode_in_steps`].
    pub fn encode_in_steps(
        &self,
        text: &str,
        special: bool,
        ids: &mut Vec<u32>,
        steps: &Steps<'_>,
    ) -> Result<(), EncodeError> {
        if text.len() <= long::LONG {
            return self.implementation.encode(text, special, ids);
        }
        match self.implementation.takes_steps() {
            true => self.implementation.encode_in_steps(text, special, ids, steps),
            false => long::encode_beside(&self.implementation, text, special, ids, steps),
        }
    }

    /// Tokenizes a short text, so that the caches of this thread are allocated before its first request.
    pub fn warm(&self) {
        let _ = self.implementation.encode("Hello, 세계!", true, &mut Vec::new());
    }

    /// Returns a remark for the log and `inspect` if the reference is in use, or if a faster implementation gave other IDs than
    /// the reference.
    pub fn remark(&self) -> Option<String> {
        let slow = self.implementation.name() == HfTokenizer::NAME;
        if !slow && !self.refused.iter().any(|refused| refused.differs) {
            return None;
        }
        let reasons: Vec<String> = self.refused.iter().map(|r| format!("{}: {}", r.name, r.reason)).collect();
        Some(format!("is tokenized by {}, not by a faster one ({})", self.implementation.name(), reasons.join("; ")))
    }
}

/// Returns `candidate`, or the next implementation that can read the file, if its IDs are those of the reference.
fn agreeing(
    mut candidate: Option<Arc<dyn Tokenize>>,
    mut candidates: impl Iterator<Item = Candidate>,
    json: &[u8],
    reference: &HfTokenizer,
    vocabulary: &Vocabulary,
    refused: &mut Vec<Refused>,
) -> Option<Arc<dyn Tokenize>> {
    while let Some(implementation) = candidate {
        // A separate thread, so that its caches are freed when the thread ends, and a panic only refuses the implementation.
        let compare = || probe::difference(reference, &*implementation, vocabulary);
        let difference = thread::scope(|scope| join(scope.spawn(|| panics::catch(compare))));
        match difference.unwrap_or_else(|panic| Some(panic.to_string())) {
            None => return Some(implementation),
            Some(reason) => refused.push(Refused { name: implementation.name(), reason, differs: true }),
        }
        candidate = first(&mut candidates, json, refused);
    }
    None
}

/// Loads the next candidate that can read the file.
fn first(
    candidates: &mut impl Iterator<Item = Candidate>,
    json: &[u8],
    refused: &mut Vec<Refused>,
) -> Option<Arc<dyn Tokenize>> {
    candidates.find_map(|candidate| {
        let loaded = thread::scope(|scope| join(scope.spawn(|| panics::catch(|| (candidate.load)(json)))));
        let reason = match loaded {
            Ok(Ok(implementation)) => return Some(implementation),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        refused.push(Refused { name: candidate.name, reason, differs: false });
        None
    })
}

/// Waits for the thread and returns its result, or the message of its panic.
fn join<T>(thread: ScopedJoinHandle<'_, Result<T, Panicked>>) -> Result<T, Panicked> {
    thread.join().unwrap_or_else(|_| Err(Panicked(String::new())))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Adds an id to texts that hold `trigger`; panics on an empty one.
    struct Wrong {
        right: HfTokenizer,
        trigger: &'static str,
    }

    impl Tokenize for Wrong {
        fn encode_in_steps(
            &self,
            text: &str,
            special: bool,
            ids: &mut Vec<u32>,
            _steps: &Steps<'_>,
        ) -> Result<(), EncodeError> {
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
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/checkpoints/llama/tokenizer.json"))
    }

    fn choose(load: Load) -> Choice {
        let json = std::fs::read(path()).unwrap();
        let candidates = [Candidate { name: "wrong", load }];
        Tokenizer::choose(&json, || HfTokenizer::from_json(&json), &candidates).unwrap().choice
    }

    fn wrong(json: &[u8], trigger: &'static str) -> Result<Arc<dyn Tokenize>, DefinitionError> {
        Ok(Arc::new(Wrong { right: HfTokenizer::from_json(json).unwrap(), trigger }))
    }

    #[test]
    fn a_candidate_that_differs_is_refused_and_named() {
        for load in [(|json| wrong(json, "안녕")) as Load, |json| wrong(json, "</s>"), |json| wrong(json, "\u{301}")]
        {
            let choice = choose(load);
            assert_eq!(choice.implementation.name(), "tokenizers");
            let remark = choice.remark().unwrap();
            assert!(remark.starts_with("is tokenized by tokenizers, not by a faster one (wrong: "), "{remark}");
        }
    }

    #[test]
    fn a_candidate_that_fails_or_panics_is_refused() {
        let choice = choose(|_| Err(DefinitionError::unsupported("no such model")));
        assert_eq!(choice.remark().unwrap(), "is tokenized by tokenizers, not by a faster one (wrong: no such model)");
        assert_eq!(choose(|_| panic!("at load")).refused[0].reason, "panicked: at load");
        let refused = &choose(|json| wrong(json, "")).refused[0];
        assert_eq!((refused.reason.as_str(), refused.differs), ("panicked: cannot do it", true));
    }

    /// An implementation without steps runs on a separate thread.
    #[test]
    fn long_texts_take_steps_whatever_tokenizes_them() {
        use crate::yield_point::Stopped;
        let json = std::fs::read(path()).unwrap();
        let text = "hello world, 안녕 ".repeat(20_000);
        let stepless = choose(|json| wrong(json, "not in any probe text"));
        let able: Arc<dyn Tokenize> = Arc::new(SentencePieceBpe::from_json(&json).unwrap());
        let able = Choice { implementation: able, refused: Vec::new() };
        for choice in [stepless, able] {
            let (mut expected, mut found) = (Vec::new(), Vec::new());
            choice.implementation.encode(&text, true, &mut expected).unwrap();
            let steps = std::cell::Cell::new(0);
            let reached = |_| {
                steps.set(steps.get() + 1);
                Ok(())
            };
            choice.encode_in_steps(&text, true, &mut found, &Steps::new(&reached)).unwrap();
            assert!(found == expected && steps.get() > 10, "{}", steps.get());
            let stop = |_| Err(Stopped);
            let stopped = choice.encode_in_steps(&text, true, &mut Vec::new(), &Steps::new(&stop));
            assert_eq!(stopped, Err(EncodeError::Stopped(Stopped)));
            // A text that was stopped halfway leaves nothing behind in the buffers.
            found.clear();
            choice.encode_in_steps("hello", false, &mut found, &Steps::new(&reached)).unwrap();
            expected.clear();
            choice.implementation.encode("hello", false, &mut expected).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_candidate_that_agrees_is_taken() {
        let choice = choose(|json| wrong(json, "not in any probe text"));
        assert_eq!((choice.implementation.name(), choice.remark()), ("wrong", None));
    }
}
