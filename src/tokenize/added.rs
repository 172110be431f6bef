//! Added tokens in a text: the leftmost first, of those that begin there the longest.

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};

pub struct AddedTokens {
    automaton: AhoCorasick,
    ids: Vec<u32>,
    /// The bytes that tokens begin with.
    begins: Vec<u8>,
    /// The same by byte.
    is_begin: [bool; 256],
}

impl AddedTokens {
    /// `None` for no tokens.
    ///
    /// # Errors
    /// When there are too many for an automaton.
    pub fn new(tokens: &[(String, u32)]) -> Result<Option<Self>, String> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Anchored)
            .build(tokens.iter().map(|(content, _)| content))
            .map_err(|e| format!("the added tokens make no automaton: {e}"))?;
        let mut is_begin = [false; 256];
        for (content, _) in tokens {
            if let Some(place) = content.bytes().next().and_then(|byte| is_begin.get_mut(usize::from(byte))) {
                *place = true;
            }
        }
        let begins = (0..=u8::MAX).zip(is_begin).filter_map(|(byte, begins)| begins.then_some(byte)).collect();
        Ok(Some(Self { automaton, ids: tokens.iter().map(|&(_, id)| id).collect(), begins, is_begin }))
    }

    /// The next token at or after `from`: where it stands, and its id.
    pub fn next(&self, text: &str, mut from: usize) -> Option<(std::ops::Range<usize>, u32)> {
        loop {
            let rest = text.as_bytes().get(from..)?;
            from += self.begin(rest)?;
            let input = Input::new(text).range(from..).anchored(Anchored::Yes);
            if let Some(found) = self.automaton.find(input) {
                return Some((found.range(), self.ids.get(found.pattern().as_usize()).copied()?));
            }
            from += 1;
        }
    }

    /// Where a token may begin next.
    fn begin(&self, rest: &[u8]) -> Option<usize> {
        match *self.begins {
            [one] => memchr::memchr(one, rest),
            [one, two] => memchr::memchr2(one, two, rest),
            [one, two, three] => memchr::memchr3(one, two, three, rest),
            _ => rest.iter().position(|&byte| self.is_begin.get(usize::from(byte)).is_some_and(|&begins| begins)),
        }
    }
}

/// Appends the ids of `text`: of added tokens theirs, of what stands between those what `piece` appends.
pub fn around(added: Option<&AddedTokens>, text: &str, ids: &mut Vec<u32>, mut piece: impl FnMut(&str, &mut Vec<u32>)) {
    let mut from = 0;
    while let Some((place, id)) = added.and_then(|added| added.next(text, from)) {
        piece(text.get(from..place.start).unwrap_or_default(), ids);
        ids.push(id);
        from = place.end;
    }
    piece(text.get(from..).unwrap_or_default(), ids);
}
