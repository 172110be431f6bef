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
//! Words of ASCII letters, of which most texts consist, take none of these steps: [`Splitter::quick`] tells their length from a table,
//! which is made by asking the steps.

mod expression;
mod sets;

use std::hint::select_unpredictable;

use serde_json::Value;

use super::decode;
use crate::json::kind;
use expression::Expression;
use sets::Sets;

/// The expression of a `ByteLevel` pre-tokenizer with `use_regex`: GPT-2's.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The most steps of a pre-tokenizer.
const MAX_STEPS: usize = 8;

/// The bit of a letter, which is a word alone and with letters behind it.
const LETTER: u8 = 1;
/// The bit of a byte that is a word with letters behind it.
const BEFORE_LETTERS: u8 = 2;
/// The bit of a byte that is a word before a space.
const ALONE: u8 = 4;

pub struct Splitter {
    sets: Sets,
    steps: Vec<Expression>,
    /// What the word is that begins with a byte, if it is all ASCII: bits of [`LETTER`] and the like.
    begins: [u8; 256],
    /// The cases in which [`Splitter::quick`] must not answer.
    caution: Caution,
}

/// For each step, where the piece ends in which the last word was found. Kept while the words of one text are found in order.
pub type Ends = [usize; MAX_STEPS];

#[derive(Default, Clone, Copy)]
struct Caution {
    /// Letters of ASCII make one word only if all but the first are in lower case.
    case: bool,
    /// An apostrophe behind letters may belong to their word.
    apostrophe: bool,
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
        let mut this = Self { sets, steps, begins: [0; 256], caution: Caution::default() };
        this.learn();
        Ok(this)
    }

    /// The length of the word that `window` begins with, if it can be told without the steps: most words of ASCII. Behind the end of the
    /// text, the window has zeros.
    #[inline]
    pub fn quick(&self, window: &[u8; 32]) -> Option<usize> {
        let [first, eight @ .., _, _, _, _, _, _, _] = window;
        let (eight, rest) = eight.split_first_chunk()?;
        let begins = *self.begins.get(usize::from(*first))?;
        let (front, rear) = (ascii_letters(*eight), ascii_letters(*rest.first_chunk()?));
        let letters = select_unpredictable(front == 8, 8 + rear, front);
        let behind = *window.get(1 + letters)?;
        if behind >= 0x80 || letters == 16 {
            return None;
        }
        if behind == b'\'' && self.caution.apostrophe {
            return None;
        }
        if letters == 0 {
            return (begins & LETTER != 0 || begins & ALONE != 0 && behind == b' ').then_some(1);
        }
        if self.caution.case {
            // Behind a space the first letter may be in either case, behind a letter none may be in upper case.
            let from = if begins & LETTER != 0 { 1 } else { 2 };
            if window.get(from..1 + letters)?.iter().any(u8::is_ascii_uppercase) {
                return None;
            }
        }
        (begins & (LETTER | BEFORE_LETTERS) != 0).then_some(1 + letters)
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

    /// Fills the table for [`Splitter::quick`] with what the steps say. They know the characters of ASCII by their sets alone, but for
    /// what follows an apostrophe; so one letter of each case stands for all that are in the same sets.
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
        let mut caution = Caution::default();
        let mut begins = [0; 256];
        for (kinds, first) in begins.iter_mut().zip(ascii()).filter(|(_, first)| *first != '\'') {
            let is_letter = first.is_ascii_alphabetic();
            let lower = |letters| is_word_before_all(&format!("{first}{letters}"));
            if lower("k") && lower("kk") && (is_letter || lower("K") && lower("Kk")) && (!is_letter || lower("")) {
                *kinds |= if is_letter { LETTER } else { BEFORE_LETTERS };
                caution.case |= !(lower("K") && lower("kK") && lower("KK") && lower("Kk"));
                caution.apostrophe |= !(is_word(&format!("{first}k"), '\'') && length(&format!("{first}k's")) == 2);
            }
            let before = |rest: &str| length(&format!("{first} {rest}")) == 1;
            if !is_letter && ["", " ", "k", "1", ".", "\n", "'s", "\0", "é", "日"].into_iter().all(before) {
                *kinds |= ALONE;
            }
        }
        (self.begins, self.caution) = (begins, caution);
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
