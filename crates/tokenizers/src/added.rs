//! Finds the added tokens in a text: the leftmost match first, and the longest of those that begin at the same position.

use std::ops::Range;

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};

use crate::DefinitionError;
use crate::yield_point::{Steps, Stopped};

/// The range of a token in the text, and the token's ID.
type Found = Option<(Range<usize>, u32)>;

pub struct AddedTokens {
    automaton: AhoCorasick,
    ids: Vec<u32>,
    /// The bytes that added tokens begin with.
    begins: Vec<u8>,
    /// For each byte, whether an added token begins with it.
    is_begin: [bool; 256],
}

impl AddedTokens {
    /// Creates the matcher, or returns `None` if there are no tokens.
    ///
    /// # Errors
    /// When the tokens are too many for an automaton.
    pub fn new(tokens: &[(String, u32)]) -> Result<Option<Self>, DefinitionError> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Anchored)
            .build(tokens.iter().map(|(content, _)| content))
            .map_err(|e| DefinitionError::too_large(format!("the added tokens make no automaton: {e}")))?;
        let mut is_begin = [false; 256];
        for (content, _) in tokens {
            if let Some(place) = content.bytes().next().and_then(|byte| is_begin.get_mut(usize::from(byte))) {
                *place = true;
            }
        }
        let begins = (0..=u8::MAX).zip(is_begin).filter_map(|(byte, begins)| begins.then_some(byte)).collect();
        Ok(Some(Self { automaton, ids: tokens.iter().map(|&(_, id)| id).collect(), begins, is_begin }))
    }

    /// Finds the next token at or after `from`. At least `made` tokens precede it; `steps` is told this number.
    pub fn next(&self, text: &str, mut from: usize, made: usize, steps: &Steps<'_>) -> Result<Found, Stopped> {
        while let Some(rest) = text.as_bytes().get(from..)
            && let Some(begin) = self.begin(rest)
        {
            from += begin;
            let input = Input::new(text).range(from..).anchored(Anchored::Yes);
            if let Some(found) = self.automaton.find(input) {
                return Ok(self.ids.get(found.pattern().as_usize()).map(|&id| (found.range(), id)));
            }
            from += 1;
            steps.take(1, made)?;
        }
        Ok(None)
    }

    /// Returns the next position at which a token may begin.
    fn begin(&self, rest: &[u8]) -> Option<usize> {
        match *self.begins {
            [one] => memchr::memchr(one, rest),
            [one, two] => memchr::memchr2(one, two, rest),
            [one, two, three] => memchr::memchr3(one, two, three, rest),
            _ => rest.iter().position(|&byte| self.is_begin.get(usize::from(byte)).is_some_and(|&begins| begins)),
        }
    }
}

/// Appends the token IDs of `text`: added tokens get their own IDs, and the text between them is passed to `piece`.
pub fn around(
    added: Option<&AddedTokens>,
    text: &str,
    ids: &mut Vec<u32>,
    steps: &Steps<'_>,
    mut piece: impl FnMut(&str, &mut Vec<u32>) -> Result<(), Stopped>,
) -> Result<(), Stopped> {
    let mut from = 0;
    while let Some((place, id)) = added.map_or(Ok(None), |added| added.next(text, from, ids.len(), steps))? {
        piece(text.get(from..place.start).unwrap_or_default(), ids)?;
        ids.push(id);
        from = place.end;
        steps.take(1, ids.len())?;
    }
    piece(text.get(from..).unwrap_or_default(), ids)
}
