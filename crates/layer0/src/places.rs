//! Numbers the distinct tokens of texts.

use foldhash::{HashMap, HashMapExt};

/// Tokens are numbered in a table of all rows if there are at least this many tokens for each 16 rows. A table takes one read per token
/// where a hash map takes several, but it has to be cleared first.
const ROWS_PER_TOKEN: usize = 16;

/// For each token ID, its number. Numbers begin at 0, in the order in which tokens were first seen.
pub(crate) struct Places {
    /// The token IDs in the order of their numbers.
    ids: Vec<u32>,
    map: Map,
}

enum Map {
    /// The number plus 1 of each token ID. 0 stands for a token that has no number.
    Table(Vec<u32>),
    Hash(HashMap<u32, u32>),
}

impl Places {
    /// Creates an empty numbering for up to `tokens` tokens with IDs below `rows`.
    pub fn new(tokens: usize, rows: usize) -> Self {
        let map = match tokens.saturating_mul(ROWS_PER_TOKEN) >= rows {
            true => Map::Table(vec![0; rows]),
            false => Map::Hash(HashMap::with_capacity(tokens)),
        };
        Self { ids: Vec::new(), map }
    }

    /// Returns the largest number of bytes that a numbering of `tokens` tokens takes.
    pub fn bytes(tokens: usize, rows: usize) -> usize {
        /// The bytes that a hash map takes for one entry, with the space that it keeps free.
        const ENTRY: usize = 20;
        let map = rows.saturating_mul(size_of::<u32>()).min(tokens.saturating_mul(ROWS_PER_TOKEN * size_of::<u32>()));
        map.max(tokens.min(rows / ROWS_PER_TOKEN + 1).saturating_mul(ENTRY))
            .saturating_add(tokens.min(rows).saturating_mul(size_of::<u32>()))
    }

    /// Returns the number of a token, which is a new one if the token was not seen before. A token past the table has the number
    /// [`u32::MAX`].
    pub fn number(&mut self, id: u32) -> u32 {
        let next = self.ids.len() as u32;
        let number = match &mut self.map {
            Map::Table(numbers) => match numbers.get_mut(id as usize) {
                Some(number @ 0) => {
                    *number = next + 1;
                    next
                }
                Some(number) => *number - 1,
                None => u32::MAX,
            },
            Map::Hash(numbers) => *numbers.entry(id).or_insert(next),
        };
        if number == next {
            self.ids.push(id);
        }
        number
    }

    /// Whether the token has a number.
    pub fn contains(&self, id: u32) -> bool {
        match &self.map {
            Map::Table(numbers) => numbers.get(id as usize).is_some_and(|&number| number > 0),
            Map::Hash(numbers) => numbers.contains_key(&id),
        }
    }

    /// Returns the distinct tokens in the order of their numbers.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_numbered_in_the_order_of_their_first_occurrence() {
        for rows in [10, 1 << 20] {
            let mut places = Places::new(6, rows);
            assert_eq!(matches!(places.map, Map::Table(_)), rows == 10);
            assert_eq!([7, 3, 7, 0, 3, 9].map(|id| places.number(id)), [0, 1, 0, 2, 1, 3]);
            assert_eq!(places.ids(), [7, 3, 0, 9]);
            assert_eq!(
                [0, 1, 3, 9, 10, u32::MAX].map(|id| places.contains(id)),
                [true, false, true, true, false, false]
            );
        }
        let mut places = Places::new(1, 1);
        assert_eq!(places.number(5), u32::MAX, "an ID past the table has no number");
        assert!(places.ids().is_empty());
    }

    #[test]
    fn memory_is_bounded_by_the_table_and_by_the_tokens() {
        assert!(Places::bytes(10, 1 << 20) < 2000);
        assert!(Places::bytes(usize::MAX, 1000) < 20_000);
    }
}
