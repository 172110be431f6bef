//! How a byte-level tokenizer cuts a text into words: its `pre_tokenizer`.
//!
//! A pre-tokenizer is a list of steps. Each one cuts the pieces that the step before it left; the pieces of the last one are the words.
//! Most tokenizers have one step, an [`Expression`]; StarCoder's takes single digits first, DeepSeek's numbers and then runs of Chinese
//! and Japanese. DeepSeek-V3's three steps cut `"価格 is 1234"` into
//!
//! | step | pieces |
//! |---|---|
//! | `\p{N}{1,3}` | `価格 is `, `123`, `4` |
//! | `[一-龥぀-ゟ゠-ヿ]+` | `価格`, ` is `, `123`, `4` |
//! | `...\|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+\|...` | `価格`, ` is`, ` `, `123`, `4` |
//!
//! Most words are found without these steps ([`Splitter::end_of_word`]): runs of letters by the next byte that is not part of a letter
//! ([`breaks`]), and short words of other characters of ASCII by a table ([`short`]). Both follow what the steps do with samples of
//! text, which are asked when the tokenizer is loaded.

mod breaks;
mod expression;
mod sets;
mod short;

use serde_json::Value;

use super::decode;
use crate::json::kind;
use breaks::{Breaks, Role};
use expression::Expression;
use sets::{Bits, Sets};
use short::ShortWords;

/// The expression of a `ByteLevel` pre-tokenizer with `use_regex`: GPT-2's.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The most steps of a pre-tokenizer.
const MAX_STEPS: usize = 8;

/// The bit of a letter of ASCII, which is a word alone and together with the letters behind it.
const LETTER: u8 = 1;
/// The bit of a byte that is a word together with the letters behind it.
const BEFORE_LETTERS: u8 = 2;
/// The bit of a byte that is a word alone before a space.
const ALONE: u8 = 4;
/// The bit of a byte that may belong to the word of the letters before it.
const MAY_CONTINUE: u8 = 8;
/// The bit of a space.
const SPACE: u8 = 16;
/// The bit of a byte that is not ASCII.
const BEYOND_ASCII: u8 = 32;

pub struct Splitter {
    sets: Sets,
    steps: Vec<Expression>,
    /// For each byte, its bits [`LETTER`] to [`BEYOND_ASCII`].
    kinds: [u8; 256],
    /// Whether a word ends before an upper-case letter behind a letter that is not in upper case.
    by_case: bool,
    /// The role of each code point in a run of letters, up to the last one that has one.
    roles: Vec<Role>,
    short: ShortWords,
}

/// For each step, where the piece ends in which the last word was found. Kept while the words of one text are found in order.
type Ends = [usize; MAX_STEPS];

/// What is kept while the words of one text are found.
#[derive(Default)]
pub struct Progress {
    breaks: Breaks,
    ends: Ends,
}

impl Progress {
    /// Begins with another text.
    pub fn begin(&mut self) {
        self.breaks.clear();
        self.ends = Ends::default();
    }
}

impl Splitter {
    /// Reads a `pre_tokenizer`.
    ///
    /// # Errors
    /// Names what in it is not reproduced here.
    pub fn new(pre_tokenizer: Option<&Value>) -> Result<Self, String> {
        let one = pre_tokenizer.map(std::slice::from_ref).unwrap_or_default();
        let list = match pre_tokenizer {
            Some(value) if kind(value) == "Sequence" => {
                value.get("pretokenizers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
            }
            _ => one,
        };
        let Some((last, list)) = list.split_last().filter(|(last, _)| kind(last) == "ByteLevel") else {
            return Err("the pre-tokenizer is not one that ends with ByteLevel".to_owned());
        };
        let mut sets = Sets::default();
        let mut steps = list.iter().map(|step| read_step(step, &mut sets)).collect::<Result<Vec<_>, _>>()?;
        if last.get("add_prefix_space") != Some(&Value::Bool(false)) {
            return Err("the pre-tokenizer adds a space before the text".to_owned());
        }
        if last.get("use_regex") != Some(&Value::Bool(false)) {
            steps.push(Expression::parse(GPT2, &mut sets)?);
        }
        if steps.is_empty() || steps.len() > MAX_STEPS {
            return Err(format!("the pre-tokenizer has {} steps that split", steps.len()));
        }
        let mut this =
            Self { sets, steps, kinds: [0; 256], by_case: false, roles: Vec::new(), short: ShortWords::default() };
        this.learn();
        Ok(this)
    }

    /// Returns the end of the word of `text` that begins at `start`. `padded` is the text followed by at least 64 zeros. `progress` is new
    /// for each text, whose words are found in order.
    #[inline]
    pub fn end_of_word(&self, text: &str, padded: &[u8], start: usize, progress: &mut Progress) -> usize {
        let Progress { breaks, ends } = progress;
        let Some(end) = breaks.next(start).or_else(|| self.find_breaks(padded, start, breaks)) else {
            return self.end(text, start, ends);
        };
        let kind = |at: usize| padded.get(at).and_then(|&byte| self.kinds.get(usize::from(byte))).copied().unwrap_or(0);
        let (first, behind) = (kind(start), kind(end));
        let is_letter = first & LETTER != 0 || first & BEYOND_ASCII != 0 && !breaks.is_break(start);
        let is_long = end - start > 1;
        // The conditions are joined without branches, because which one holds cannot be predicted.
        let is_letters = (is_letter | ((first & BEFORE_LETTERS != 0) & is_long)) & (behind & MAY_CONTINUE == 0);
        let is_alone = (first & ALONE != 0) & (behind & SPACE != 0) & !is_long;
        match is_letters | is_alone {
            true => end,
            false => {
                breaks.give_back();
                self.end_by_table(text, padded, start, ends)
            }
        }
    }

    #[inline(never)]
    fn end_by_table(&self, text: &str, padded: &[u8], start: usize, ends: &mut Ends) -> usize {
        let length = padded.get(start..).and_then(|bytes| self.short.length(bytes.first_chunk()?));
        length.map_or_else(|| self.end(text, start, ends), |length| start + length)
    }

    #[cold]
    fn find_breaks(&self, text: &[u8], start: usize, breaks: &mut Breaks) -> Option<usize> {
        let role = |code_point| self.roles.get(code_point as usize).copied().unwrap_or(Role::Other);
        match self.by_case {
            true => breaks.find(text, start, true, role),
            false => breaks.find(text, start, false, role),
        }
        breaks.next(start)
    }

    /// Where the word of `text` ends that begins at `start`. `ends` is `Ends::default()` for the first word.
    pub fn end(&self, text: &str, start: usize, ends: &mut Ends) -> usize {
        let mut limit = text.len();
        for (step, end) in self.steps.iter().zip(ends) {
            if *end <= start {
                *end = step.end(&self.sets, text.as_bytes().get(..limit).unwrap_or_default(), start).min(limit);
            }
            limit = *end;
        }
        limit
    }

    /// Fills the tables for [`Splitter::end_of_word`] with what the steps say. They know code points by their sets alone, but for what follows
    /// an apostrophe; so one letter of each case stands for all that are in the same sets.
    fn learn(&mut self) {
        let ascii = || (0..0x80_u8).map(char::from);
        let same = |letters: std::ops::RangeInclusive<char>| {
            let mut sets = letters.map(|letter| self.sets.of(u32::from(letter)));
            let first = sets.next();
            sets.all(|found| Some(found) == first)
        };
        if !same('a'..='z') || !same('A'..='Z') {
            return;
        }
        let length = |text: &str| self.end(text, 0, &mut Ends::default());
        let is_word = |word: &str, behind: char| {
            length(&format!("{word}{behind}k")) == word.len() && length(&format!("{word}{behind}")) == word.len()
        };
        let others: Vec<char> = ascii().filter(|c| !c.is_ascii_alphabetic() && *c != '\'').collect();
        let is_word_before_all =
            |word: &str| length(word) == word.len() && others.iter().all(|&behind| is_word(word, behind));
        let (mut any_case, mut camel_case, mut apostrophe) = (false, false, false);
        let mut kinds = [0; 256];
        for (kinds, first) in kinds.iter_mut().zip(ascii()).filter(|(_, first)| *first != '\'') {
            let is_letter = first.is_ascii_alphabetic();
            let lower = |letters: &str| is_word_before_all(&format!("{first}{letters}"));
            // No expression counts further than to 64.
            let is_run =
                lower("k") && lower("kk") && lower(&"k".repeat(70)) && (is_letter || lower("K") && lower("KKk"));
            if !is_run || is_letter && !lower("") {
                continue;
            }
            let is_any_case = lower("K") && lower("kK") && lower("KK") && lower("Kk");
            // The word ends before an upper-case letter behind a lower-case one.
            let cut = |letters: &str, at: usize| length(&format!("{first}{letters}")) == at;
            let is_upper = first.is_ascii_uppercase() || !is_letter;
            let is_camel = cut("kK", 2)
                && cut("kKk", 2)
                && cut("kkKK", 3)
                && (is_upper && lower("K") && lower("KK") && lower("Kk") && cut("KkK", 3) && cut("KkKk", 3)
                    || first.is_ascii_lowercase() && cut("K", 1) && cut("Kk", 1));
            any_case |= !is_camel;
            camel_case |= !is_any_case;
            *kinds |= if is_letter { LETTER } else { BEFORE_LETTERS };
            apostrophe |= !(is_word(&format!("{first}k"), '\'') && length(&format!("{first}k's")) == 2);
        }
        // The rule must be the same for all.
        if any_case && camel_case {
            return;
        }
        let by_case = camel_case;
        let all_letters = kinds.iter().filter(|&&kinds| kinds & LETTER != 0).count() == 52;
        let roles = if all_letters { self.learn_roles(by_case) } else { Vec::new() };
        let short = ShortWords::learn(&self.sets, length);
        for (kinds, byte) in kinds.iter_mut().zip(0..=u8::MAX) {
            if byte >= 0x80 || byte == b'\'' && apostrophe {
                *kinds |= MAY_CONTINUE;
            }
            if byte >= 0x80 {
                *kinds |= BEYOND_ASCII;
            }
            if byte == b' ' {
                *kinds |= SPACE;
            }
            if byte < 0x80 && short.length(&[byte, b' ', 0x80, 0x80]) == Some(1) {
                *kinds |= ALONE;
            }
        }
        (self.kinds, self.by_case, self.roles, self.short) = (kinds, by_case, roles, short);
    }

    /// Returns the roles of the code points beyond ASCII.
    fn learn_roles(&self, by_case: bool) -> Vec<Role> {
        let [lower, upper] = ['k', 'K'].map(|letter| self.sets.of(u32::from(letter)));
        let mut known: Vec<(Bits, Role)> = vec![(lower, Role::Lower)];
        if upper != lower {
            known.push((upper, if by_case { Role::Upper } else { Role::Lower }));
        }
        let mut roles = Vec::new();
        for code_point in '\u{80}'..=char::MAX {
            let bits = self.sets.of(u32::from(code_point));
            let role = match known.iter().find(|(known, _)| *known == bits) {
                Some(&(_, role)) => role,
                None => {
                    let role = if self.is_like_k(code_point) { Role::Lower } else { Role::Other };
                    known.push((bits, role));
                    role
                }
            };
            if role != Role::Other {
                roles.resize(code_point as usize, Role::Other);
                roles.push(role);
            }
        }
        roles
    }

    /// Returns whether texts with this code point are cut as texts with `k` in its place.
    fn is_like_k(&self, code_point: char) -> bool {
        // One code point for all that are in the same sets.
        let mut beside: Vec<(Bits, char)> = vec![(0, '\'')];
        for c in (0..0x80_u8).map(char::from).filter(|c| !c.is_ascii_alphabetic()) {
            let bits = self.sets.of(u32::from(c));
            if beside.iter().all(|(known, _)| *known != bits) {
                beside.push((bits, c));
            }
        }
        let letters = ['k', 'K', code_point];
        let words = letters
            .into_iter()
            .flat_map(|a| letters.into_iter().flat_map(move |b| letters.into_iter().map(move |c| [a, b, c])));
        let words: Vec<[char; 3]> = words.filter(|word| word.contains(&code_point)).collect();
        let cuts = |text: &str| {
            let (mut start, mut ends, mut cuts) = (0, Ends::default(), Vec::new());
            while start < text.len() {
                start = self.end(text, start, &mut ends);
                cuts.push(text.get(..start).unwrap_or_default().chars().count());
            }
            cuts
        };
        let long = [code_point; 70].iter().collect::<String>();
        cuts(&long) == cuts(&long.replace(code_point, "k"))
            && words.iter().all(|word| {
                beside.iter().all(|(_, before)| {
                    beside.iter().all(|(_, behind)| {
                        (1..=word.len()).all(|length| {
                            let word = word.iter().take(length);
                            let text: String = [before].into_iter().chain(word).chain([behind, &'k']).collect();
                            cuts(&text) == cuts(&text.replace(code_point, "k"))
                        })
                    })
                })
            })
    }
}

/// Reads a step before the last.
fn read_step(step: &Value, sets: &mut Sets) -> Result<Expression, String> {
    let is = |name: &str, expected: Value| step.get(name).is_some_and(|found| *found == expected);
    match kind(step) {
        "Digits" => {
            let most = if is("individual_digits", true.into()) { 1 } else { usize::MAX };
            Expression::run(sets.numeric()?, most, sets)
        }
        "Split" => {
            let expression = step.pointer("/pattern/Regex").and_then(Value::as_str);
            let expression = expression.ok_or("the pre-tokenizer splits by a string")?;
            let read = Expression::parse(expression, sets)?;
            // Where nothing stands between the matches, it is the same to keep what is between them and to drop it.
            let removes_the_rest = is("behavior", "Removed".into()) && is("invert", true.into());
            if is("behavior", "Isolated".into()) || removes_the_rest && read.covers(sets) {
                return Ok(read);
            }
            Err(format!("the pre-tokenizer splits with the behavior {}", step.get("behavior").unwrap_or(&Value::Null)))
        }
        other => Err(format!("the pre-tokenizer has a step {other}")),
    }
}

/// How many letters of ASCII these begin with.
#[inline]
fn ascii_letters(eight: [u8; 8]) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let eight = u64::from_le_bytes(eight);
    // In the highest bit of each byte, of its lower-case letter's seven bits: whether it is at least `a`, and beyond `z`.
    let lower = (eight | (0x20 * EACH)) & (0x7f * EACH);
    let (from_a, beyond_z) = (lower + (0x80 - 0x61) * EACH, lower + (0x80 - 0x7b) * EACH);
    let others = !(from_a & !beyond_z & !eight) & (0x80 * EACH);
    others.trailing_zeros() as usize / 8
}

#[cfg(test)]
mod tests;
