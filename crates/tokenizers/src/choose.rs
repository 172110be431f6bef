//! Chooses the fastest tokenizer that gives the same IDs as the reference.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};

use super::bounds;
use super::bytebpe::ByteBpe;
#[cfg(feature = "fastokens")]
use super::fastokens::Fastokens;
use super::panics;
use super::pieces::Pieces;
use super::probe;
use super::reference::HfTokenizer;
use super::spbpe::SentencePieceBpe;
use super::unigram::Unigram;
use super::{EncodeError, Tokenize, Vocabulary, long};
use crate::TokenizerError;
use crate::yield_point::Steps;

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
    /// The search for a faster implementation, if there are implementations that have not been tried yet.
    search: Option<Search>,
}

/// The chosen implementation of a tokenizer.
#[derive(Debug)]
pub struct Choice {
    /// The implementation.
    pub implementation: Arc<dyn Tokenize>,
    /// A slower implementation that supports steps. It tokenizes long texts if `implementation` does not support steps.
    in_steps: Option<Arc<dyn Tokenize>>,
    /// The faster implementations that were not chosen, with the reasons.
    pub refused: Vec<Refused>,
}

/// The implementations that are still to be tried because they take longer to load than the reference. Another implementation
/// serves in the meantime. [`Search::run`] tries them.
#[must_use]
#[derive(Debug)]
#[doc(hidden)]
pub struct Search {
    json: Vec<u8>,
    /// The implementation to use if no candidate gives the IDs of the reference.
    fallback: Arc<dyn Tokenize>,
    reference: Arc<HfTokenizer>,
    vocabulary: Vocabulary,
    refused: Vec<Refused>,
    candidates: Vec<Candidate>,
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

/// A function that loads an implementation from a tokenizer.json. The error says what is not supported.
type Load = fn(&[u8]) -> Result<Arc<dyn Tokenize>, String>;

#[derive(Debug, Clone, Copy)]
struct Candidate {
    name: &'static str,
    load: Load,
}

/// The implementations that load no slower than the reference, fastest first. They are loaded at the same time as the reference.
const AT_ONCE: &[Candidate] = &[
    Candidate { name: SentencePieceBpe::NAME, load: |json| Ok(Arc::new(SentencePieceBpe::from_json(json)?)) },
    Candidate { name: ByteBpe::NAME, load: |json| Ok(Arc::new(ByteBpe::from_json(json)?)) },
    Candidate { name: Unigram::NAME, load: |json| Ok(Arc::new(Unigram::from_json(json)?)) },
];

/// The implementations that are left to a [`Search`]. fastokens takes a second longer to load than the reference and up to 100 MB
/// of caches for each thread. Once its caches are filled, it is up to twice as fast as [`ByteBpe`] on English; on other languages
/// it is about as fast.
const LATER: &[Candidate] = &[
    #[cfg(feature = "fastokens")]
    Candidate { name: Fastokens::NAME, load: |json| Ok(Arc::new(Fastokens::from_json(json)?)) },
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
    /// Reads a tokenizer.json. Loads the reference and the implementations that load no slower, and compares the first
    /// implementation that can read the file with the reference on the probe texts. Implementations that take longer to load wait
    /// for [`Tokenizer::settle`].
    ///
    /// # Errors
    /// When the file is missing, or is not a tokenizer.json.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        bounds::check(json)?;
        Self::choose(json, || HfTokenizer::from_json(json), AT_ONCE, LATER)
    }

    /// Like [`Tokenizer::from_json`], for a tokenizer that was built in memory.
    ///
    /// # Errors
    /// When the tokenizer cannot be written as a tokenizer.json.
    pub fn from_reference(reference: HfTokenizer) -> Result<Self, TokenizerError> {
        let json = reference.to_json()?;
        let chosen = Self::choose(json.as_bytes(), || Ok(reference), AT_ONCE, LATER)?;
        Ok(Self { rebuilt: Some(json.into()), ..chosen })
    }

    /// Like [`Tokenizer::from_json`], for a tokenizer.json that was compiled into the program and is known to be good. For a Unigram
    /// model the reference is not loaded, because loading it would take most of the start-up time. Tests compare the two instead.
    ///
    /// # Errors
    /// When `json` is not a tokenizer.json.
    pub fn from_static_json(json: &'static str) -> Result<Self, TokenizerError> {
        if let Ok((implementation, vocabulary, pieces)) = Unigram::with_vocabulary(json.as_bytes()) {
            let choice = Choice::new(Arc::new(implementation), None, Vec::new());
            return Ok(Self { choice, vocabulary, pieces, rebuilt: Some(json.into()), search: None });
        }
        let reference = || HfTokenizer::from_json(json.as_bytes());
        let chosen = Self::choose(json.as_bytes(), reference, AT_ONCE, LATER)?;
        Ok(Self { rebuilt: Some(json.into()), ..chosen })
    }

    /// Runs the search for a faster implementation, if there is one. This may take seconds.
    #[must_use]
    pub fn settle(self) -> Self {
        let Self { choice, search, .. } = self;
        Self { choice: search.map_or(choice, Search::run), search: None, ..self }
    }

    /// Returns the current choice, and the search that [`Tokenizer::settle`] would run.
    pub fn split(self) -> (Choice, Option<Search>) {
        (self.choice, self.search)
    }

    fn choose(
        json: &[u8],
        reference: impl FnOnce() -> Result<HfTokenizer, TokenizerError> + Send,
        at_once: &[Candidate],
        later: &[Candidate],
    ) -> Result<Self, TokenizerError> {
        let mut refused = Vec::new();
        let mut candidates = at_once.iter().copied();
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
        let search_on = found.as_ref().is_none_or(|found| found.name() == ByteBpe::NAME);
        let reference = Arc::new(reference);
        let implementation = found.unwrap_or_else(|| Arc::clone(&reference) as Arc<dyn Tokenize>);
        let search = (search_on && !later.is_empty()).then(|| Search {
            json: json.to_owned(),
            fallback: Arc::clone(&implementation),
            reference,
            vocabulary: vocabulary.clone(),
            refused: refused.clone(),
            candidates: later.to_owned(),
        });
        let choice = Choice::new(implementation, None, refused);
        Ok(Self { choice, vocabulary, pieces, rebuilt: None, search })
    }
}

impl Search {
    /// Returns the fastest implementation that gives the IDs of the reference, or the current one if no candidate does.
    pub fn run(mut self) -> Choice {
        let mut candidates = std::mem::take(&mut self.candidates).into_iter();
        let candidate = first(&mut candidates, &self.json, &mut self.refused);
        self.choose(candidate, candidates)
    }

    /// Like [`Search::run`], but stops early and returns `None` once `is_wanted` returns false.
    pub fn run_while(mut self, is_wanted: impl Fn() -> bool) -> Option<Choice> {
        if !is_wanted() {
            return None;
        }
        let mut candidates = std::mem::take(&mut self.candidates).into_iter();
        let candidate = first(&mut candidates, &self.json, &mut self.refused);
        is_wanted().then(|| self.choose(candidate, candidates))
    }

    fn choose(mut self, candidate: Option<Arc<dyn Tokenize>>, candidates: impl Iterator<Item = Candidate>) -> Choice {
        let found = agreeing(candidate, candidates, &self.json, &self.reference, &self.vocabulary, &mut self.refused);
        match found {
            Some(found) => Choice::new(found, Some(self.fallback), self.refused),
            None => Choice::new(self.fallback, None, self.refused),
        }
    }
}

impl Choice {
    fn new(implementation: Arc<dyn Tokenize>, slower: Option<Arc<dyn Tokenize>>, refused: Vec<Refused>) -> Self {
        let in_steps = slower.filter(|slower| slower.takes_steps() && !implementation.takes_steps());
        Self { implementation, in_steps, refused }
    }

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
        let able = self.in_steps.as_ref().unwrap_or(&self.implementation);
        match able.takes_steps() {
            true => able.encode_in_steps(text, special, ids, steps),
            false => long::encode_beside(able, text, special, ids, steps),
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
        match thread::scope(|scope| join(scope.spawn(|| panics::catch(compare)))).unwrap_or_else(Some) {
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
        let loaded = thread::scope(|scope| join(scope.spawn(|| panics::catch(|| (candidate.load)(json)))))
            .and_then(|loaded| loaded);
        loaded.map_err(|reason| refused.push(Refused { name: candidate.name, reason, differs: false })).ok()
    })
}

/// Waits for the thread and returns its result, or the message of its panic.
fn join<T>(thread: ScopedJoinHandle<'_, Result<T, String>>) -> Result<T, String> {
    thread.join().unwrap_or_else(|_| Err(String::new())).map_err(|message| format!("panicked: {message}"))
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
        fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
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

    /// Chooses with the candidate loaded at once and loaded later: both must give the same result.
    fn choose(load: Load) -> Choice {
        let json = std::fs::read(path()).unwrap();
        let reference = || HfTokenizer::from_json(&json);
        let candidates = [Candidate { name: "wrong", load }];
        let at_once = Tokenizer::choose(&json, reference, &candidates, &[]).unwrap().choice;
        let later = Tokenizer::choose(&json, reference, &[], &candidates).unwrap();
        assert_eq!((later.choice.implementation.name(), &later.choice.refused), ("tokenizers", &Vec::new()));
        let later = later.settle().choice;
        assert_eq!(later.refused, at_once.refused);
        assert_eq!(later.implementation.name(), at_once.implementation.name());
        later
    }

    fn wrong(json: &[u8], trigger: &'static str) -> Result<Arc<dyn Tokenize>, String> {
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
        let choice = choose(|_| Err("no such model".to_owned()));
        assert_eq!(choice.remark().unwrap(), "is tokenized by tokenizers, not by a faster one (wrong: no such model)");
        assert_eq!(choose(|_| panic!("at load")).refused[0].reason, "panicked: at load");
        let refused = &choose(|json| wrong(json, "")).refused[0];
        assert_eq!((refused.reason.as_str(), refused.differs), ("panicked: cannot do it", true));
    }

    /// An implementation without steps runs on a separate thread, unless a slower implementation supports steps.
    #[test]
    fn long_texts_take_steps_whatever_tokenizes_them() {
        use crate::yield_point::Stopped;
        let json = std::fs::read(path()).unwrap();
        let text = "hello world, 안녕 ".repeat(20_000);
        let stepless = choose(|json| wrong(json, "not in any probe text"));
        let able: Arc<dyn Tokenize> = Arc::new(SentencePieceBpe::from_json(&json).unwrap());
        let both = Choice::new(Arc::clone(&stepless.implementation), Some(able), Vec::new());
        for choice in [stepless, both] {
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
    fn a_search_that_is_no_longer_wanted_ends_before_its_next_step() {
        let json = std::fs::read(path()).unwrap();
        let candidates = [Candidate { name: "wrong", load: |json| wrong(json, "not in any probe text") }];
        for (looks, found) in [(0, false), (1, false), (2, true)] {
            let reference = || HfTokenizer::from_json(&json);
            let search = Tokenizer::choose(&json, reference, &[], &candidates).unwrap().split().1.unwrap();
            let looked = std::cell::Cell::new(0);
            let choice = search.run_while(|| looked.replace(looked.get() + 1) < looks);
            assert_eq!((choice.is_some(), looked.get()), (found, (looks + 1).min(2)));
        }
    }

    #[test]
    fn a_candidate_that_agrees_is_taken() {
        let choice = choose(|json| wrong(json, "not in any probe text"));
        assert_eq!((choice.implementation.name(), choice.remark()), ("wrong", None));
    }
}
