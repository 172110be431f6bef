//! Finds the positions at which a text can be cut without changing its tokens.
//!
//! For example, if the merges are `l o`, `lo w` and `▁ low`, then `l` may join `o`, `o` may join `w`, and `▁` may join `l`. No
//! merge joins a token that ends with `w` to a token that begins with `▁`. So `▁low▁low` can be cut between `w` and `▁`, and each
//! half merges to the tokens that it has in the whole text.

use crate::compiled::{CompiledError, Reader, Writer};

/// The pairs of characters that can be on the two sides of a merge.
///
/// The first token that spans a position in a text comes from a merge whose left part ends with the character before the
/// position, and whose right part begins with the character behind it. If no merge of the model does, no token spans the
/// position. Merges on the two sides do not affect each other, so each side can be tokenized alone with the same result.
pub struct Joins {
    /// For two characters of ASCII: bit `y` of entry `x`.
    ascii: [u128; 128],
    /// For other characters, one bit for each hash of a pair. A cleared bit is a proof that the pair cannot join. A set bit may
    /// belong to another pair, which only makes a word longer.
    filter: Vec<u64>,
    shift: u32,
}

impl Joins {
    pub fn new(pairs: impl ExactSizeIterator<Item = (char, char)>) -> Self {
        // At least 32 bits for each pair, so that at most one of 32 other pairs passes.
        let bits = (32 * pairs.len()).next_power_of_two().clamp(1 << 10, 1 << 30);
        let mut joins = Self { ascii: [0; 128], filter: vec![0; bits / 64], shift: u64::BITS - bits.trailing_zeros() };
        for (x, y) in pairs {
            if y.is_ascii()
                && let Some(row) = joins.ascii.get_mut(x as usize)
            {
                *row |= 1 << y as u32;
            } else {
                let (word, bit) = joins.place(x, y);
                if let Some(word) = joins.filter.get_mut(word) {
                    *word |= bit;
                }
            }
        }
        joins
    }

    pub fn write(&self, to: &mut Writer) {
        to.list(&self.ascii.map(u128::to_le_bytes));
        to.list(&self.filter);
    }

    /// Reads what [`Joins::write`] wrote.
    ///
    /// # Errors
    /// When the parts do not have the lengths that they are written with.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, CompiledError> {
        let (ascii, filter) = (from.list::<[u8; 16]>()?, from.list::<u64>()?);
        let ascii: Option<[[u8; 16]; 128]> = ascii.try_into().ok();
        let bits = 64 * filter.len();
        match ascii.filter(|_| bits.is_power_of_two() && bits <= 1 << 30) {
            Some(ascii) => {
                Ok(Self { ascii: ascii.map(u128::from_le_bytes), filter, shift: u64::BITS - bits.trailing_zeros() })
            }
            None => Err(CompiledError::Damaged("the pairs that join do not have their length")),
        }
    }

    fn place(&self, x: char, y: char) -> (usize, u64) {
        let hash = (u64::from(x) << 21 | u64::from(y)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift;
        ((hash / 64) as usize, 1 << (hash % 64))
    }

    /// Returns whether a token may span the position between `x` and `y`.
    #[inline]
    pub fn may_join(&self, x: char, y: char) -> bool {
        match self.ascii.get(x as usize) {
            Some(row) if y.is_ascii() => row >> y as u32 & 1 == 1,
            _ => {
                let (word, bit) = self.place(x, y);
                self.filter.get(word).is_some_and(|word| word & bit != 0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_joins_is_never_missed_and_few_others_pass() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut draw = |limit| (0..limit).map(|_| (rng.char(..), rng.char(..'\u{250}'))).collect::<Vec<_>>();
        let (pairs, others) = (draw(5_000), draw(50_000));
        let joins = Joins::new(pairs.iter().copied());
        assert!(pairs.iter().all(|&(x, y)| joins.may_join(x, y)));
        let passing = others.iter().filter(|&&(x, y)| joins.may_join(x, y) && !pairs.contains(&(x, y))).count();
        assert!(passing < others.len() / 20, "{passing}");
    }

    #[test]
    fn among_ascii_it_is_exact() {
        let joins = Joins::new([('a', 'b'), (' ', '~'), ('\0', '\u{7f}')].into_iter());
        let found: Vec<(char, char)> = ('\0'..='\u{7f}')
            .flat_map(|x| ('\0'..='\u{7f}').map(move |y| (x, y)))
            .filter(|&(x, y)| joins.may_join(x, y))
            .collect();
        assert_eq!(found, [('\0', '\u{7f}'), (' ', '~'), ('a', 'b')]);
    }
}
