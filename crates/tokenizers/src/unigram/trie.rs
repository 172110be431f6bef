//! A double-array trie over the bytes of the pieces.
//!
//! Source: Aoe, "An Efficient Digital Search Algorithm by Using a Double-Array Structure", 1989; XOR in place of addition
//! and blocks of 256 as in <https://github.com/s-yata/darts-clone>.

/// A node's child for a byte is at the index `base ^ byte`. No two nodes have the same base, so the byte in a unit tells whether
/// the unit is the child, or belongs to another node.
///
/// A unit is `base << 32 | value << 8 | byte`. The value is the ID of a piece plus 1, or 0 if no piece ends at the node.
pub struct Trie {
    units: Vec<u64>,
}

/// A unit without a node. UTF-8 never contains this byte.
const VACANT: u64 = 0xFF;

/// The number of pieces that a trie can hold.
pub const MAX_PIECES: usize = (1 << 24) - 1;

/// The number of blocks of 256 units that are searched for room before a block is added. A larger number makes the trie smaller
/// and slower to build.
const OPEN_BLOCKS: usize = 12;

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Node(u64);

/// The first eight bytes of a piece, all of its bytes, and its ID.
type Keyed<'p> = (u64, &'p [u8], u32);

/// The pieces of a node that continue with the same byte.
type Group<'k, 'p> = (u8, &'k [Keyed<'p>]);

impl Node {
    /// The piece that ends at this node.
    #[inline]
    pub fn id(self) -> Option<u32> {
        ((self.0 >> 8) as u32 & 0xFF_FFFF).checked_sub(1)
    }
}

impl Trie {
    /// Creates the trie from pieces with their IDs, which are below [`MAX_PIECES`]. If a piece comes twice, the later one counts.
    pub fn new(pieces: &[(&[u8], u32)]) -> Self {
        // The pieces are compared by their first eight bytes, which are adjacent in memory. Few pieces share them.
        let mut sorted: Vec<Keyed<'_>> = pieces
            .iter()
            .filter(|(piece, _)| !piece.is_empty())
            .map(|&(piece, id)| {
                let mut start = [0; 8];
                start.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
                (u64::from_be_bytes(start), piece, id)
            })
            .collect();
        // Equal pieces are sorted by ID, and the last one is kept.
        sorted.sort_unstable();
        let mut room = Room::default();
        let mut trie = Self { units: Vec::new() };
        let root = trie.grow(&mut room);
        trie.occupy(&mut room, root, VACANT);
        // While the trie is being built, the base 0 means that a node has no children.
        if let Some(block) = room.blocks.first_mut() {
            block.bases.set(0);
        }
        let mut open = vec![(root, 0, &*sorted)];
        let mut groups: Vec<Group<'_, '_>> = Vec::new();
        while let Some((node, depth, mut range)) = open.pop() {
            groups.clear();
            while let Some(byte) = range.first().and_then(|(_, piece, _)| piece.get(depth).copied()) {
                let end = range.partition_point(|(_, piece, _)| piece.get(depth).is_some_and(|&b| b <= byte));
                let (group, rest) = range.split_at(end);
                groups.push((byte, group));
                range = rest;
            }
            if groups.is_empty() {
                continue;
            }
            let base = trie.place(&mut room, &groups);
            if let Some(unit) = trie.units.get_mut(node) {
                *unit = *unit & 0xFFFF_FFFF | (base as u64) << 32;
            }
            for &(byte, group) in &groups {
                let ended = group.iter().take_while(|(_, piece, _)| piece.len() == depth + 1).count();
                let (ends, longer) = group.split_at(ended);
                let value = ends.last().map_or(0, |&(_, _, id)| u64::from(id) + 1);
                trie.occupy(&mut room, base ^ usize::from(byte), value << 8 | u64::from(byte));
                if !longer.is_empty() {
                    open.push((base ^ usize::from(byte), depth + 1, longer));
                }
            }
        }
        // The base of a leaf points to units without nodes.
        let vacant = trie.grow(&mut room) as u64;
        for unit in &mut trie.units {
            if *unit >> 32 == 0 {
                *unit |= vacant << 32;
            }
        }
        trie
    }

    #[inline]
    pub fn root(&self) -> Node {
        Node(self.units.first().copied().unwrap_or(VACANT))
    }

    #[inline]
    pub fn child(&self, node: Node, byte: u8) -> Option<Node> {
        let at = (node.0 >> 32) as usize ^ usize::from(byte);
        self.units.get(at).filter(|&&unit| unit as u8 == byte).map(|&unit| Node(unit))
    }

    /// Adds a block and returns its start.
    fn grow(&mut self, room: &mut Room) -> usize {
        let start = self.units.len();
        self.units.resize(start + 256, VACANT);
        room.blocks.push(Block::default());
        start
    }

    fn occupy(&mut self, room: &mut Room, at: usize, unit: u64) {
        if let Some(place) = self.units.get_mut(at) {
            *place = unit;
        }
        if let Some(block) = room.blocks.get_mut(at / 256) {
            block.taken.set(at % 256);
        }
    }

    /// Finds a base that no other node has, with a vacant unit for each child.
    fn place(&mut self, room: &mut Room, children: &[Group<'_, '_>]) -> usize {
        let first = children.first().map_or(0, |&(byte, _)| usize::from(byte));
        let found = (room.closed..room.blocks.len()).find_map(|number| {
            let block = room.blocks.get_mut(number)?;
            let fits = |base: usize| {
                !block.bases.has(base) && children.iter().all(|&(byte, _)| !block.taken.has(base ^ usize::from(byte)))
            };
            let base = block.taken.vacant().map(|place| place ^ first).find(|&base| fits(base))?;
            block.bases.set(base);
            Some(number * 256 + base)
        });
        found.unwrap_or_else(|| {
            let start = self.grow(room);
            room.closed = room.blocks.len().saturating_sub(OPEN_BLOCKS).max(room.closed);
            if let Some(block) = room.blocks.last_mut() {
                block.bases.set(0);
            }
            start
        })
    }
}

/// The units and bases that are taken while a trie is being built.
#[derive(Default)]
struct Room {
    blocks: Vec<Block>,
    /// The first block to search. The blocks before it are nearly full.
    closed: usize,
}

#[derive(Default)]
struct Block {
    taken: Bits,
    bases: Bits,
}

#[derive(Default)]
struct Bits([u64; 4]);

impl Bits {
    fn has(&self, bit: usize) -> bool {
        self.0.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn set(&mut self, bit: usize) {
        if let Some(word) = self.0.get_mut(bit / 64) {
            *word |= 1 << (bit % 64);
        }
    }

    fn vacant(&self) -> impl Iterator<Item = usize> {
        self.0.iter().zip([0, 64, 128, 192]).flat_map(|(word, start)| {
            let mut vacant = !word;
            std::iter::from_fn(move || {
                let bit = vacant.trailing_zeros() as usize;
                vacant &= vacant.checked_sub(1)?;
                Some(start + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn find(trie: &Trie, text: &[u8]) -> Option<u32> {
        text.iter().try_fold(trie.root(), |node, &byte| trie.child(node, byte))?.id()
    }

    #[test]
    fn it_holds_what_it_was_given_and_nothing_else() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (letters, count) in [(2, 300), (3, 3_000), (200, 20_000)] {
            let mut text = || (0..rng.usize(1..7)).map(|_| rng.u8(..letters)).collect::<Vec<u8>>();
            let pieces: Vec<Vec<u8>> = (0..count).map(|_| text()).collect();
            let others: Vec<Vec<u8>> = (0..count).map(|_| text()).collect();
            let numbered: Vec<(&[u8], u32)> = pieces.iter().map(Vec::as_slice).zip(0..).collect();
            let expected: HashMap<&[u8], u32> = numbered.iter().copied().collect();
            let trie = Trie::new(&numbered);
            for text in pieces.iter().chain(&others) {
                assert_eq!(find(&trie, text), expected.get(text.as_slice()).copied(), "{text:?}");
            }
            assert!(trie.units.len() < 256 * 16 + 8 * count, "{}", trie.units.len());
        }
        assert_eq!(find(&Trie::new(&[]), b"a"), None);
        assert_eq!(find(&Trie::new(&[(b"", 0), (b"\0", 1)]), b"\0"), Some(1));
    }
}
