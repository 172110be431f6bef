//! Finds the pairs of a batch that share a text, which must not be negatives of each other.

use sha2::{Digest, Sha256};

/// Returns a digest of a text's letters and digits, in lower case. Two texts with the same digest count as equal. A
/// text without letters and digits is compared as it is.
pub fn digest(text: &str) -> u64 {
    let mut hash = Sha256::new();
    let mut buffer = [0; 4];
    let mut is_empty = true;
    for c in text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase) {
        hash.update(c.encode_utf8(&mut buffer));
        is_empty = false;
    }
    if is_empty {
        hash.update(text.trim());
    }
    hash.finalize().iter().take(8).fold(0u64, |digest, &byte| digest << 8 | u64::from(byte))
}

/// Returns `(i, j)` for all pairs `i != j` of which a side of `i` equals a side of `j`, in both orders. `sides` has the
/// digests of each pair's two texts.
pub fn shared(sides: &[[u64; 2]]) -> Vec<(u32, u32)> {
    let mut texts: Vec<(u64, u32)> =
        (0..).zip(sides).flat_map(|(pair, digests)| digests.map(|digest| (digest, pair))).collect();
    texts.sort_unstable();
    texts.dedup();
    let mut masked = Vec::new();
    for same in texts.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
        for &(_, i) in same {
            masked.extend(same.iter().filter(|other| other.1 != i).map(|&(_, j)| (i, j)));
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared_by_their_letters_and_digits() {
        assert_eq!(digest("Guten Tag!"), digest(" guten, tag"));
        assert_eq!(digest("ÉTÉ 7"), digest("été7"));
        assert_ne!(digest("tag 7"), digest("tag 8"));
        assert_ne!(digest("?!"), digest("..."));
        assert_ne!(digest("?!"), digest(""));
    }

    #[test]
    fn pairs_that_share_a_text_on_any_side_are_found_in_both_orders() {
        // Pairs 0 and 2 have the same anchor, the positive of 1 is the anchor of 3, and 4 shares nothing, although its
        // two sides are equal.
        let masked = shared(&[[1, 2], [3, 4], [1, 5], [4, 6], [9, 9]]);
        let expected = [(0, 2), (2, 0), (1, 3), (3, 1)];
        assert_eq!(masked.len(), 4);
        assert!(expected.iter().all(|pair| masked.contains(pair)), "{masked:?}");
    }
}
