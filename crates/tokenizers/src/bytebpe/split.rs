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
//! Most words are found without these steps ([`Splitter::end_of_word`]): many words at once by the classes of neighboring bytes
//! ([`breaks`]), and short words of other characters of ASCII by a table ([`short`]). Both follow what the steps do with samples of
//! text, which are asked when the tokenizer is loaded.

mod breaks;
mod expression;
mod sets;
mod short;

use serde_json::Value;

use super::decode;
use crate::DefinitionError;
use crate::json::kind;
use breaks::{Breaks, Role, Rules};
use expression::Expression;
use sets::{Bits, Sets};
use short::ShortWords;

/// The expression of a `ByteLevel` pre-tokenizer with `use_regex`: GPT-2's.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The most steps of a pre-tokenizer.
const MAX_STEPS: usize = 8;

pub struct Splitter {
    sets: Sets,
    steps: Vec<Expression>,
    /// The rules by which most words are found, if the steps follow such rules.
    rules: Option<Rules>,
    /// The role of each code point beyond ASCII, up to the last one that has one.
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
    pub fn new(pre_tokenizer: Option<&Value>) -> Result<Self, DefinitionError> {
        let one = pre_tokenizer.map(std::slice::from_ref).unwrap_or_default();
        let list = match pre_tokenizer {
            Some(value) if kind(value) == "Sequence" => {
                value.get("pretokenizers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
            }
            _ => one,
        };
        let Some((last, list)) = list.split_last().filter(|(last, _)| kind(last) == "ByteLevel") else {
            return Err(DefinitionError::unsupported("the pre-tokenizer is not one that ends with ByteLevel"));
        };
        let mut sets = Sets::default();
        let mut steps = list.iter().map(|step| read_step(step, &mut sets)).collect::<Result<Vec<_>, _>>()?;
        if last.get("add_prefix_space") != Some(&Value::Bool(false)) {
            return Err(DefinitionError::unsupported("the pre-tokenizer adds a space before the text"));
        }
        if last.get("use_regex") != Some(&Value::Bool(false)) {
            steps.push(Expression::parse(GPT2, &mut sets)?);
        }
        if steps.is_empty() || steps.len() > MAX_STEPS {
            return Err(DefinitionError::unsupported(format!(
                "the pre-tokenizer has {} steps that split",
                steps.len()
            )));
        }
        let mut this = Self { sets, steps, rules: None, roles: Vec::new(), short: ShortWords::default() };
        this.learn();
        Ok(this)
    }

    /// Returns the end of the word of `text` that begins at `start`. `padded` is the text followed by at least 64 zeros. `progress` is new
    /// for each text, whose words are found in order.
    #[inline]
    pub fn end_of_word(&self, text: &str, padded: &[u8], start: usize, progress: &mut Progress) -> usize {
        let Progress { breaks, ends } = progress;
        let Some(rules) = &self.rules else { return self.end_by_table(text, padded, start, ends) };
        let found = breaks.next(start).or_else(|| self.find_breaks(rules, text.len(), padded, start, breaks));
        match found {
            Some((end, true)) => end,
            Some((_, false)) => {
                breaks.give_back();
                self.end_by_table(text, padded, start, ends)
            }
            None => self.end(text, start, ends),
        }
    }

    #[inline(never)]
    fn end_by_table(&self, text: &str, padded: &[u8], start: usize, ends: &mut Ends) -> usize {
        let length = padded.get(start..).and_then(|bytes| self.short.length(bytes.first_chunk()?));
        length.map_or_else(|| self.end(text, start, ends), |length| start + length)
    }

    #[cold]
    fn find_breaks(
        &self,
        rules: &Rules,
        length: usize,
        padded: &[u8],
        start: usize,
        breaks: &mut Breaks,
    ) -> Option<(usize, bool)> {
        let role = |code_point| self.roles.get(code_point as usize).copied().unwrap_or(Role::Other);
        breaks.find(padded, length, start, rules, role);
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
        let same = |letters: std::ops::RangeInclusive<char>| {
            let mut sets = letters.map(|letter| self.sets.of(u32::from(letter)));
            let first = sets.next();
            sets.all(|found| Some(found) == first)
        };
        if !same('a'..='z') || !same('A'..='Z') || !same('0'..='9') {
            return;
        }
        let length = |text: &str| self.end(text, 0, &mut Ends::default());
        let short = ShortWords::learn(&self.sets, length);
        let rules = Rules::learn(&self.sets, length);
        if self.follow(&rules) {
            self.roles = self.learn_roles(rules.by_case);
            self.rules = Some(rules);
        }
        self.short = short;
    }

    /// Returns whether the steps follow the rules in short texts.
    fn follow(&self, rules: &Rules) -> bool {
        let samples = rules.samples(&self.sets);
        let count = samples.len();
        let few = samples.len().min(6);
        // A place behind the last sample stands for no character.
        let all = (count + 1).pow(3);
        let mut texts = (0..all + few.pow(4)).map(|number| match number.checked_sub(all) {
            None => [number % (count + 1), number / (count + 1) % (count + 1), number / (count + 1).pow(2), count],
            Some(number) => [number % few, number / few % few, number / few.pow(2) % few, number / few.pow(3)],
        });
        let long = ["s".repeat(70), "K".repeat(70), "1".repeat(70), ".".repeat(70), " ".repeat(70)];
        let mut breaks = Breaks::default();
        let mut follows = |text: &str| {
            let padded = [text.as_bytes(), &[0; 64]].concat();
            breaks.find(&padded, text.len(), 0, rules, |_| Role::Other);
            let (mut start, mut ends) = (0, Ends::default());
            while start < text.len() {
                let end = self.end(text, start, &mut ends);
                match breaks.next(start) {
                    Some((found, certain)) if !certain || found == end => breaks.give_back(),
                    _ => return false,
                }
                start = end;
            }
            true
        };
        let spell = |places: [usize; 4]| places.into_iter().filter_map(|place| samples.get(place)).collect::<String>();
        long.iter().all(|text| follows(text)) && texts.all(|places| follows(&spell(places)))
    }

    /// Returns the roles of the code points beyond ASCII.
    fn learn_roles(&self, by_case: bool) -> Vec<Role> {
        let [lower, upper, mark] = ['k', 'K', '.'].map(|c| self.sets.of(u32::from(c)));
        let mut known: Vec<(Bits, Role)> = vec![(lower, Role::Lower), (mark, Role::Mark)];
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
fn read_step(step: &Value, sets: &mut Sets) -> Result<Expression, DefinitionError> {
    let is = |name: &str, expected: Value| step.get(name).is_some_and(|found| *found == expected);
    match kind(step) {
        "Digits" => {
            let most = if is("individual_digits", true.into()) { 1 } else { usize::MAX };
            Expression::run(sets.numeric()?, most, sets)
        }
        "Split" => {
            let expression = step.pointer("/pattern/Regex").and_then(Value::as_str);
            let expression =
                expression.ok_or_else(|| DefinitionError::unsupported("the pre-tokenizer splits by a string"))?;
            let read = Expression::parse(expression, sets)?;
            // Where nothing stands between the matches, it is the same to keep what is between them and to drop it.
            let removes_the_rest = is("behavior", "Removed".into()) && is("invert", true.into());
            if is("behavior", "Isolated".into()) || removes_the_rest && read.covers(sets) {
                return Ok(read);
            }
            Err(DefinitionError::unsupported(format!(
                "the pre-tokenizer splits with the behavior {}",
                step.get("behavior").unwrap_or(&Value::Null)
            )))
        }
        other => Err(DefinitionError::unsupported(format!("the pre-tokenizer has a step {other}"))),
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
