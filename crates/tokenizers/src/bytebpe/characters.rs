//! Characters that can start as one token instead of their bytes. In texts other than English, most merges join the bytes of
//! characters.
//!
//! The bytes of a character merge into the character's token unless a merge of a lower rank joins some of them to a neighbor
//! first. Which merges could do so is known from the merge table: they take a part of the character, and the byte beside it is
//! known. If no such merge applies, the bytes merge among other symbols as they would alone. If additionally no merge of a lower
//! rank takes the character's token, nothing happens sooner when the character starts as that token.
//!
//! For example, let `é` be the bytes `C3 A9`, with the ranks `20 C3` 0, `C3 A9` 1 and `éz` 2. `é` starts as one token in `éa`,
//! and in `éz`. In ` é`, the space would take the byte `C3` first, so the bytes are merged.

use bytemuck::{Pod, Zeroable};
use foldhash::{HashMap, HashMapExt};

use crate::bpe::merges::{Merges, NONE, Workspace};
use crate::compiled::{CompiledError, Reader, Writer};

/// A set of bytes, with a bit for each byte.
type ByteSet = [u64; 4];

pub struct Characters {
    /// For each code point, how it may start.
    starts: Vec<Start>,
    /// The distinct sets of bytes.
    sets: Vec<ByteSet>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Start {
    /// The token of the character, or `NONE` if its bytes always have to be merged.
    token: u32,
    /// The bytes before and behind the character that its own bytes may merge with first, as indexes in `sets`.
    before: u16,
    behind: u16,
}

const NO_START: Start = Start { token: NONE, before: 0, behind: 0 };

impl Characters {
    /// Creates the table from the tokens' bytes and the merges `(left, right, result)` in the order of their ranks. `table` holds
    /// the same merges.
    pub fn new(tokens: &HashMap<u32, Vec<u8>>, merges: &[(u32, u32, u32)], table: &Merges) -> Self {
        let by_bytes: HashMap<&[u8], u32> = tokens.iter().map(|(&id, bytes)| (bytes.as_slice(), id)).collect();
        let mut last_ranks: HashMap<u32, u32> = HashMap::new();
        let mut found: Vec<(char, u32)> = Vec::new();
        let (mut symbols, mut workspace) = (Vec::new(), Workspace::default());
        for (&id, bytes) in tokens {
            let Some(character) = only_character(bytes).filter(|c| !c.is_ascii()) else { continue };
            symbols.clear();
            symbols.extend(bytes.chunks(1).filter_map(|byte| by_bytes.get(byte)));
            let last = table.apply_by_heap(&mut symbols, &mut workspace);
            if symbols == [id] {
                last_ranks.insert(id, last);
                found.push((character, id));
            }
        }

        let mut beside = Beside::default();
        for (rank, &(left, right, _)) in (0..).zip(merges) {
            for part in [left, right] {
                if last_ranks.get(&part).is_some_and(|&last| rank <= last) {
                    last_ranks.remove(&part);
                }
            }
            if let (Some(left_bytes), Some(right_bytes)) = (tokens.get(&left), tokens.get(&right))
                && let (Some(&last), Some(&first)) = (left_bytes.last(), right_bytes.first())
            {
                if is_cut_off(right_bytes) {
                    beside.before.entry(right).or_default().push((rank, last));
                }
                if left_bytes.iter().all(|byte| is_continuation(*byte)) {
                    beside.behind.entry(left).or_default().push((rank, first));
                }
            }
        }

        let mut this = Self { starts: Vec::new(), sets: Vec::new() };
        let mut places: HashMap<ByteSet, u16> = HashMap::new();
        for (character, id) in found {
            let (Some(&last), Some(bytes)) = (last_ranks.get(&id), tokens.get(&id)) else { continue };
            let mut sets: [ByteSet; 2] = Default::default();
            for cut in 1..bytes.len() {
                let Some((front, rear)) = bytes.split_at_checked(cut) else { continue };
                for (set, (piece, beside)) in sets.iter_mut().zip([(front, &beside.before), (rear, &beside.behind)]) {
                    let ranked = by_bytes.get(piece).and_then(|piece| beside.get(piece)).map_or(&[][..], Vec::as_slice);
                    for &(_, byte) in ranked.iter().take_while(|(rank, _)| *rank < last) {
                        insert(set, byte);
                    }
                }
            }
            let [before, behind] = sets.map(|set| {
                let next = u16::try_from(places.len()).ok();
                match places.get(&set) {
                    Some(&place) => Some(place),
                    None => next.inspect(|&next| {
                        places.insert(set, next);
                        this.sets.push(set);
                    }),
                }
            });
            let (Some(before), Some(behind)) = (before, behind) else { continue };
            let at = character as usize;
            if this.starts.len() <= at {
                this.starts.resize(at + 1, NO_START);
            }
            if let Some(start) = this.starts.get_mut(at) {
                *start = Start { token: id, before, behind };
            }
        }
        this
    }

    pub fn write(&self, to: &mut Writer) {
        to.list(&self.starts);
        to.list(&self.sets);
    }

    /// Reads what [`Characters::write`] wrote.
    ///
    /// # Errors
    /// When a character starts as a token that the vocabulary lacks.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, CompiledError> {
        let (starts, sets) = (from.list::<Start>()?, from.list()?);
        from.check_ids(starts.iter().map(|start| start.token).filter(|&token| token != NONE))?;
        Ok(Self { starts, sets })
    }

    /// Returns the token that `character` may start as, in some context.
    pub fn token(&self, character: char) -> Option<u32> {
        self.starts.get(character as usize).map(|start| start.token).filter(|&token| token != NONE)
    }

    /// Returns the token that `character` may start as between these bytes. `None` for a byte stands for the begin or end of the
    /// word.
    #[inline]
    pub fn whole(&self, character: u32, before: Option<u8>, behind: Option<u8>) -> Option<u32> {
        let start = self.starts.get(character as usize).filter(|start| start.token != NONE)?;
        let free = |set: u16, byte: Option<u8>| {
            byte.is_none_or(|byte| self.sets.get(usize::from(set)).is_some_and(|set| !contains(set, byte)))
        };
        (free(start.before, before) && free(start.behind, behind)).then_some(start.token)
    }
}

/// The merges that take a part of a character: for each part, the rank of the merge and the byte beside the part, in the order of
/// the ranks.
#[derive(Default)]
struct Beside {
    before: HashMap<u32, Vec<(u32, u8)>>,
    behind: HashMap<u32, Vec<(u32, u8)>>,
}

fn insert(set: &mut ByteSet, byte: u8) {
    if let Some(part) = set.get_mut(usize::from(byte >> 6)) {
        *part |= 1 << (byte & 63);
    }
}

#[inline]
fn contains(set: &ByteSet, byte: u8) -> bool {
    set.get(usize::from(byte >> 6)).is_some_and(|part| part >> (byte & 63) & 1 == 1)
}

fn only_character(bytes: &[u8]) -> Option<char> {
    let mut characters = std::str::from_utf8(bytes).ok()?.chars();
    characters.next().filter(|_| characters.next().is_none())
}

/// Returns the character that the bytes begin with, if they begin with a whole one.
pub fn first_character(bytes: &[u8]) -> Option<char> {
    only_character(bytes.get(..length(*bytes.first()?))?)
}

/// Returns the character that the bytes end with, if they end with a whole one.
pub fn last_character(bytes: &[u8]) -> Option<char> {
    only_character(bytes.get(bytes.iter().rposition(|byte| !is_continuation(*byte))?..)?)
}

/// Returns the number of bytes of a character that begins with this byte.
fn length(first: u8) -> usize {
    match first {
        ..0xC0 => 1,
        0xC0..0xE0 => 2,
        0xE0..0xF0 => 3,
        0xF0.. => 4,
    }
}

fn is_continuation(byte: u8) -> bool {
    (0x80..0xC0).contains(&byte)
}

/// Returns whether the bytes are the beginning of a character, but not all of it.
fn is_cut_off(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((&first @ 0xC2.., rest)) => bytes.len() < length(first) && rest.iter().all(|byte| is_continuation(*byte)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::Alphabet;
    use crate::bpe::early::EarlyMerges;
    use crate::bytebpe::Bytes;

    /// The IDs 0 to 255 are the bytes. Merged tokens follow from 256 on.
    struct Model {
        tokens: HashMap<u32, Vec<u8>>,
        merges: Vec<(u32, u32, u32)>,
    }

    impl Model {
        fn new(merges: &[(&[u8], &[u8])]) -> Self {
            let mut this = Self { tokens: (0..256).map(|id| (id, vec![id as u8])).collect(), merges: Vec::new() };
            for (left, right) in merges {
                let whole = [*left, *right].concat();
                let id = |bytes: &[u8]| this.tokens.iter().find(|(_, found)| *found == bytes).map(|(&id, _)| id);
                let made = id(&whole).unwrap_or(this.tokens.len() as u32);
                this.merges.push((id(left).unwrap(), id(right).unwrap(), made));
                this.tokens.insert(made, whole);
            }
            this
        }

        fn characters(&self) -> Characters {
            Characters::new(&self.tokens, &self.merges, &Merges::new(&self.merges).unwrap())
        }

        fn token(&self, text: &str) -> u32 {
            *self.tokens.iter().find(|(_, bytes)| *bytes == text.as_bytes()).unwrap().0
        }
    }

    const E: &[u8] = "é".as_bytes();

    #[test]
    fn a_character_is_whole_but_beside_what_takes_its_parts_first() {
        let (c3, a9) = E.split_at(1);
        let model = Model::new(&[(b" ", c3), (c3, a9), (b"x", c3), (a9, b"y"), (E, b"z")]);
        let characters = model.characters();
        let whole = Some(model.token("é"));
        assert_eq!(characters.whole('é' as u32, None, None), whole);
        assert_eq!(characters.whole('é' as u32, Some(b' '), Some(b'a')), None);
        assert_eq!(characters.whole('é' as u32, Some(b'x'), Some(b'y')), whole, "those come later");
        assert_eq!(characters.whole('é' as u32, Some(b'a'), Some(b'z')), whole);
        assert_eq!(characters.whole('è' as u32, None, None), None, "no token");
        let model = Model::new(&[(a9, b"y"), (c3, a9)]);
        assert_eq!(model.characters().whole('é' as u32, None, Some(b'y')), None);
        assert_eq!(model.characters().whole('é' as u32, Some(b'y'), None), Some(model.token("é")));
    }

    #[test]
    fn a_token_that_a_merge_takes_before_it_is_made_is_not_whole() {
        let (c3, a9) = E.split_at(1);
        let mut model = Model::new(&[(c3, a9), (E, b"z")]);
        assert!(model.characters().whole('é' as u32, None, None).is_some());
        model.merges.swap(0, 1);
        assert_eq!(model.characters().whole('é' as u32, None, None), None);
    }

    /// On models with random merges of a few bytes, a word merges to the same tokens from characters and from bytes, with early
    /// merges and without.
    #[test]
    fn words_merge_the_same_from_characters_as_from_bytes() {
        let mut rng = fastrand::Rng::with_seed(11);
        let alphabet = ["é", "è", "日", "旦", "a", " "];
        let (mut taken, mut early_merges) = (0, 0);
        for _ in 0..1_000 {
            let texts: Vec<String> = (0..30)
                .map(|_| (0..rng.usize(1..7)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect())
                .collect();
            // Trained in no sensible order: any two neighbours of any text may be the next merge.
            let mut model = Model::new(&[]);
            let mut split: Vec<Vec<Vec<u8>>> =
                texts.iter().map(|text| text.bytes().map(|byte| vec![byte]).collect()).collect();
            let mut merges: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            for _ in 0..rng.usize(1..25) {
                let word = rng.usize(..split.len());
                if split[word].len() < 2 {
                    continue;
                }
                let at = rng.usize(..split[word].len() - 1);
                let (left, right) = (split[word][at].clone(), split[word][at + 1].clone());
                split[word].splice(at..at + 2, [[&left[..], &right[..]].concat()]);
                if !merges.contains(&(left.clone(), right.clone())) {
                    merges.push((left, right));
                }
            }
            let borrowed: Vec<(&[u8], &[u8])> = merges.iter().map(|(a, b)| (&a[..], &b[..])).collect();
            model.merges.clear();
            let model = Model::new(&borrowed);
            let table = Merges::new(&model.merges).unwrap();
            let tokens = std::array::from_fn(|byte| byte as u32);
            let alphabet = Bytes { tokens, lacks_bytes: false, characters: model.characters() };
            let early = EarlyMerges::new(&model.merges, |token| alphabet.edges(&model.tokens[&token])).unwrap();
            let mut workspace = Default::default();
            for text in &texts {
                let mut expected: Vec<u32> = text.bytes().map(u32::from).collect();
                table.apply_by_heap(&mut expected, &mut workspace);
                let mut found = Vec::new();
                alphabet.symbols(text, &mut found);
                taken += text.len() - found.len();
                let count = early.reader().apply(&mut found);
                early_merges += found.len() - count;
                found.truncate(count);
                table.apply_by_heap(&mut found, &mut workspace);
                assert_eq!(found, expected, "{text:?} {:?}", model.merges);
            }
        }
        assert!(taken > 3_000 && early_merges > 3_000, "{taken} {early_merges}");
    }
}
