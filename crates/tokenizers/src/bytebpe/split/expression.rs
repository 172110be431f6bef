//! Split expressions: the regular expressions by which byte-level tokenizers cut a text into words.
//!
//! An expression is a list of alternatives. At each position of a text, the first alternative that matches there gives the next word.
//! For example, these alternatives of cl100k_base cut `" don't  go"` into `" don"`, `"'t"`, `" "` and `" go"`:
//!
//! | alternative | matches |
//! |---|---|
//! | `'(?i:[sdmt]\|ll\|ve\|re)` | `'t` |
//! | `[^\r\n\p{L}\p{N}]?\p{L}+` | ` don`, ` go` |
//! | `\s+(?!\S)` | the first of the two spaces: it leaves the last one to the word that follows |
//!
//! Nearly all alternatives are a few classes of code points one after the other, each with a count ([`Run`]): those are read from the
//! expression, whatever the classes are. Contractions and white space with a look-ahead are recognized by their text.

use super::decode;
use super::sets::{Bits, Sets};
use crate::DefinitionError;

/// The alternatives in their order.
pub struct Expression {
    alternatives: Vec<Alternative>,
    /// White space, `\s`.
    space: Bits,
    /// The union of the sets that the alternatives begin with.
    begins: Bits,
}

struct Alternative {
    /// The sets of which one holds the first code point of every match.
    begins: Bits,
    kind: Kind,
}

enum Kind {
    /// An apostrophe and some letters: [`contraction`].
    Contraction(Case),
    /// One run, perhaps behind one code point of `prefix`, and behind it a run that may be empty: `[^\r\n\p{L}\p{N}]?\p{L}+`.
    Simple { prefix: Bits, run: Run, tail: Option<Run> },
    /// Any other runs of code points, and a contraction behind them where `contraction` is set and there is one.
    Runs { runs: Vec<Run>, contraction: bool },
    /// `\s+(?!\S)`: white space up to the end of the text; elsewhere without its last character, if it has more than one.
    SpaceBeforeSpace,
    /// `\s+$`: white space up to the end of the text.
    SpaceAtEnd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Any,
}

/// At least `least` and at most `most` code points of a set; as many as there are, if what follows matches then.
#[derive(Clone, Copy)]
struct Run {
    set: Bits,
    least: usize,
    most: usize,
    /// Gives no code point back to let what follows match.
    possessive: bool,
    /// Whether it takes any number of letters of ASCII.
    takes_ascii_letters: bool,
}

/// Contractions as expressions begin with them.
const CONTRACTIONS: [(&str, Case); 4] = [
    ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", Case::Any),
    ("'(?i:[sdmt]|ll|ve|re)", Case::Any),
    ("'s|'t|'re|'ve|'m|'ll|'d", Case::Lower),
    ("'(?:[sdmt]|ll|ve|re)", Case::Lower),
];

/// A contraction as alternatives end with it.
const CONTRACTION_BEHIND: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";

/// The largest count that an expression may name.
const MOST: usize = 64;

impl Expression {
    /// Reads a regular expression.
    ///
    /// # Errors
    /// When a part of it is not reproduced here.
    pub fn parse(expression: &str, sets: &mut Sets) -> Result<Self, DefinitionError> {
        let mut alternatives = Vec::new();
        let mut rest = expression;
        loop {
            let known = CONTRACTIONS.iter().find_map(|(text, case)| {
                let behind = rest.strip_prefix(text)?;
                (behind.is_empty() || behind.starts_with('|')).then_some((behind, *case))
            });
            let behind = match known {
                Some((behind, case)) => {
                    alternatives.push(Alternative { begins: sets.class("'")?, kind: Kind::Contraction(case) });
                    behind
                }
                None => {
                    let (alternative, behind) = rest.split_at_checked(alternative_end(rest)).unwrap_or((rest, ""));
                    alternatives.push(Alternative::parse(alternative, sets)?);
                    behind
                }
            };
            match behind.strip_prefix('|') {
                Some(next) => rest = next,
                None => break,
            }
        }
        Self::new(alternatives, sets)
    }

    /// One alternative: a run of `set` of at least one and at most `most` code points.
    ///
    /// # Errors
    /// When there are too many sets.
    pub fn run(set: Bits, most: usize, sets: &mut Sets) -> Result<Self, DefinitionError> {
        let run = Run { set, least: 1, most, possessive: false, takes_ascii_letters: false };
        Self::new(vec![Alternative { begins: set, kind: Kind::Simple { prefix: 0, run, tail: None } }], sets)
    }

    fn new(alternatives: Vec<Alternative>, sets: &mut Sets) -> Result<Self, DefinitionError> {
        let begins = alternatives.iter().fold(0, |all, alternative| all | alternative.begins);
        Ok(Self { alternatives, space: sets.class(r"\s")?, begins })
    }

    /// Whether every code point is a match, or part of one: the matches of a text then are the whole text.
    pub fn covers(&self, sets: &Sets) -> bool {
        let alone = |alternative: &Alternative| match &alternative.kind {
            Kind::Simple { run, .. } if run.least == 1 => run.set,
            Kind::Runs { runs, .. } => {
                let mut needed = runs.iter().filter(|run| run.least > 0);
                needed.next().filter(|run| run.least == 1 && needed.next().is_none()).map_or(0, |run| run.set)
            }
            _ => 0,
        };
        let covered = self.alternatives.iter().fold(0, |all, alternative| all | alone(alternative));
        ('\0'..=char::MAX).all(|c| sets.of(c as u32) & covered != 0)
    }

    /// Whether the expression is `\s+$` alone.
    fn is_space_at_end(&self) -> bool {
        matches!(self.alternatives.as_slice(), [Alternative { kind: Kind::SpaceAtEnd, .. }])
    }

    /// Where the word of `text` ends that begins at `start`: the end of the match there, or the begin of the next one.
    #[inline]
    pub fn end(&self, sets: &Sets, text: &[u8], start: usize) -> usize {
        if self.is_space_at_end() {
            return self.end_before_space_at_end(sets, text, start);
        }
        let mut at = start;
        while let Some((code_point, next)) = decode(text, at) {
            let bits = sets.of(code_point);
            if bits & self.begins != 0
                && let Some(end) = self.matched(sets, text, (at, next), bits)
            {
                return if at == start { end } else { at };
            }
            at = next;
        }
        text.len()
    }

    /// As [`Expression::end`], of `\s+$`. Looked for from behind, so that many spaces in the middle of a text are passed once.
    fn end_before_space_at_end(&self, sets: &Sets, text: &[u8], start: usize) -> usize {
        let mut begin = text.len();
        while begin > start {
            let before = previous(text, begin);
            if decode(text, before).is_none_or(|(code_point, _)| sets.of(code_point) & self.space == 0) {
                break;
            }
            begin = before;
        }
        if begin > start { begin } else { text.len() }
    }

    /// The end of the match at `at` if there is one. Its first code point ends at `next`, and `bits` are the sets that hold it.
    #[inline]
    fn matched(&self, sets: &Sets, text: &[u8], (at, next): (usize, usize), bits: Bits) -> Option<usize> {
        let second = decode(text, next).map_or(0, |(code_point, _)| sets.of(code_point));
        self.alternatives.iter().filter(|alternative| alternative.begins & bits != 0).find_map(|alternative| {
            match &alternative.kind {
                Kind::Contraction(case) => contraction(text, at, *case),
                Kind::Simple { prefix, run, tail } => {
                    let (begin, count) = match bits & prefix != 0 && second & run.set != 0 {
                        true => (next, 0),
                        false if bits & run.set != 0 => (next, 1),
                        false => return None,
                    };
                    let end = run.take(sets, text, begin, count).0;
                    Some(tail.as_ref().map_or(end, |tail| tail.take(sets, text, end, 0).0))
                }
                Kind::Runs { runs, contraction: false } => runs_end(sets, runs, text, at),
                Kind::Runs { runs, contraction: true } => {
                    let end = runs_end(sets, runs, text, at)?;
                    Some(contraction(text, end, Case::Any).unwrap_or(end))
                }
                Kind::SpaceBeforeSpace => {
                    let (last, end) = self.space(sets, text, at);
                    if end == text.len() { Some(end) } else { (last > at).then_some(last) }
                }
                Kind::SpaceAtEnd => Some(self.space(sets, text, at).1).filter(|&end| end == text.len()),
            }
        })
    }

    /// Where the last code point of the white space at `at` begins, and where it ends.
    fn space(&self, sets: &Sets, text: &[u8], at: usize) -> (usize, usize) {
        let (mut last, mut end) = (at, at);
        while let Some((code_point, next)) = decode(text, end)
            && sets.of(code_point) & self.space != 0
        {
            (last, end) = (end, next);
        }
        (last, end)
    }
}

impl Alternative {
    fn parse(text: &str, sets: &mut Sets) -> Result<Self, DefinitionError> {
        let space = |kind, sets: &mut Sets| Ok(Self { begins: sets.class(r"\s")?, kind });
        match text {
            r"\s+(?!\S)" => return space(Kind::SpaceBeforeSpace, sets),
            r"\s+$" | r"\s++$" => return space(Kind::SpaceAtEnd, sets),
            _ => {}
        }
        let (text, contraction) = match text.strip_suffix(CONTRACTION_BEHIND) {
            Some(text) => (text, true),
            None => (text, false),
        };
        let mut runs = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (run, behind) = Run::parse(rest, sets)?;
            runs.push(run);
            rest = behind;
        }
        let first = runs.iter().position(|run: &Run| run.least > 0);
        let Some(first) = first else { return Err(refused(text)) };
        // Two runs of any length, and nothing needed behind them: their ends are found in linear time.
        let mut behind =
            runs.iter().skip_while(|run| run.most <= MOST).skip(1).skip_while(|run| run.most <= MOST).skip(1);
        if behind.any(|run| run.least > 0 || run.most > MOST && runs.len() > 3) {
            return Err(refused(text));
        }
        let begins = runs.iter().take(first + 1).fold(0, |all, run| all | run.set);
        Ok(Self { begins, kind: if contraction { Kind::Runs { runs, contraction } } else { simple(runs) } })
    }
}

impl Run {
    /// Reads one class with its quantifier; also returns what follows.
    fn parse<'t>(text: &'t str, sets: &mut Sets) -> Result<(Self, &'t str), DefinitionError> {
        let (class, rest) = text.split_at_checked(class_end(text)).ok_or_else(|| refused(text))?;
        let set = match class {
            "." | "^" | "$" | "(" | ")" | "|" | "*" | "+" | "?" | "{" | "" => return Err(refused(text)),
            _ => sets.class(class)?,
        };
        let (least, most, rest) = match rest.as_bytes().first() {
            Some(b'?') => (0, 1, rest.get(1..)),
            Some(b'*') => (0, usize::MAX, rest.get(1..)),
            Some(b'+') => (1, usize::MAX, rest.get(1..)),
            Some(b'{') => {
                let (counts, behind) =
                    rest.get(1..).and_then(|rest| rest.split_once('}')).ok_or_else(|| refused(text))?;
                let count = |digits: &str| digits.parse().ok().filter(|count| (1..=MOST).contains(count));
                let (least, most) = match counts.split_once(',') {
                    Some((least, "")) => (count(least), Some(usize::MAX)),
                    Some((least, most)) => (count(least), count(most)),
                    None => (count(counts), count(counts)),
                };
                let (Some(least), Some(most)) = (least, most) else { return Err(refused(text)) };
                (least, most, Some(behind))
            }
            _ => (1, 1, Some(rest)),
        };
        let rest = rest.unwrap_or_default();
        let quantified = (least, most) != (1, 1);
        let (possessive, rest) = match rest.strip_prefix('+') {
            Some(rest) if quantified => (true, rest),
            _ => (false, rest),
        };
        if rest.starts_with('?') && quantified || least > most {
            return Err(refused(text));
        }
        let takes_ascii_letters = most > MOST && ('A'..='Z').chain('a'..='z').all(|c| sets.of(c as u32) & set != 0);
        Ok((Self { set, least, most, possessive, takes_ascii_letters }, rest))
    }

    /// Returns the end of the run of which `count` code points precede `at`, and the number of code points that the run then has.
    #[inline]
    fn take(&self, sets: &Sets, text: &[u8], mut at: usize, mut count: usize) -> (usize, usize) {
        while count < self.most {
            if self.takes_ascii_letters
                && let Some(eight) = text.get(at..).and_then(<[u8]>::first_chunk)
            {
                let letters = super::ascii_letters(*eight);
                at += letters;
                count += letters;
                if letters == 8 {
                    continue;
                }
            }
            match decode(text, at) {
                Some((code_point, next)) if sets.of(code_point) & self.set != 0 => at = next,
                _ => break,
            }
            count += 1;
        }
        (at, count)
    }
}

/// The simplest kind that these runs are.
fn simple(runs: Vec<Run>) -> Kind {
    let is_prefix = |run: &Run| (run.least, run.most, run.possessive) == (0, 1, false);
    let mut rest = runs.iter().copied().peekable();
    let prefix = rest.next_if(is_prefix).map_or(0, |run| run.set);
    match (rest.next().filter(|run| run.least == 1), rest.next(), rest.next()) {
        (Some(run), None, None) => Kind::Simple { prefix, run, tail: None },
        (Some(run), Some(tail), None) if tail.least == 0 => Kind::Simple { prefix, run, tail: Some(tail) },
        _ => Kind::Runs { runs, contraction: false },
    }
}

/// Where the match of `runs` at `at` ends.
#[inline]
fn runs_end(sets: &Sets, runs: &[Run], text: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    for run in runs {
        let (next, count) = run.take(sets, text, end, 0);
        if count < run.least {
            return runs_end_giving_back(sets, runs, text, at);
        }
        end = next;
    }
    Some(end)
}

/// As [`runs_end`]. Where a run does not match, the one before it is made shorter.
fn runs_end_giving_back(sets: &Sets, runs: &[Run], text: &[u8], at: usize) -> Option<usize> {
    let Some((run, rest)) = runs.split_first() else { return Some(at) };
    let (mut end, mut count) = run.take(sets, text, at, 0);
    while count >= run.least {
        if let Some(end) = runs_end_giving_back(sets, rest, text, end) {
            return Some(end);
        }
        if run.possessive || count == 0 {
            return None;
        }
        end = previous(text, end);
        count -= 1;
    }
    None
}

/// Where the code point before `at` begins, in UTF-8.
fn previous(text: &[u8], at: usize) -> usize {
    let before = text.get(..at).unwrap_or_default();
    before.iter().rposition(|byte| !(0x80..0xC0).contains(byte)).unwrap_or_default()
}

/// The end of the contraction at `at`: an apostrophe and `s`, `t`, `m`, `d`, `re`, `ve` or `ll`. `ſ` is a case of `s`.
#[inline]
fn contraction(text: &[u8], at: usize, case: Case) -> Option<usize> {
    let letter = |offset: usize| {
        let byte = text.get(at + offset).copied();
        if case == Case::Any { byte.map(|byte| byte.to_ascii_lowercase()) } else { byte }
    };
    if text.get(at) != Some(&b'\'') {
        return None;
    }
    match (letter(1)?, letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 3),
        (0xC5, Some(0xBF)) if case == Case::Any => Some(at + 3),
        _ => None,
    }
}

/// Where the first alternative of an expression ends: at the first `|` that is in no group and no class.
fn alternative_end(expression: &str) -> usize {
    let (mut classes, mut groups, mut escaped) = (0_usize, 0_usize, false);
    for (at, byte) in expression.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'[' => classes += 1,
            b']' => classes = classes.saturating_sub(1),
            b'(' if classes == 0 => groups += 1,
            b')' if classes == 0 => groups = groups.saturating_sub(1),
            b'|' if classes == 0 && groups == 0 => return at,
            _ => {}
        }
    }
    expression.len()
}

/// Where the class that `text` begins with ends: `[...]`, an escape such as `\s` or `\p{L}`, or one character.
fn class_end(text: &str) -> usize {
    let first = text.chars().next().map_or(0, char::len_utf8);
    if text.starts_with('\\') {
        let named = text.starts_with(r"\p{") || text.starts_with(r"\P{");
        let end = if named { text.find('}').map(|at| at + 1) } else { text.chars().nth(1).map(|c| 1 + c.len_utf8()) };
        return end.unwrap_or(first);
    }
    if !text.starts_with('[') {
        return first;
    }
    let (mut classes, mut escaped) = (0_usize, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'[' => classes += 1,
            b']' => classes = classes.saturating_sub(1),
            _ => {}
        }
        if classes == 0 {
            return at + 1;
        }
    }
    first
}

fn refused(part: &str) -> DefinitionError {
    DefinitionError::unsupported(format!(
        "the pre-tokenizer splits by a regular expression of which {part:?} is not reproduced"
    ))
}
