//! The slices in which worker threads tokenize inputs and write responses.

use std::ops::Range;

/// The limits of a pooling slice: how many table numbers it reads (about 1 ms at 4 billion per second), and how many
/// bytes of response it writes, so that the pieces stay small.
pub const POOL_SLICE: usize = 4 << 20;
pub const WRITE_SLICE: usize = 64 << 10;

/// The same limits for a device, which reads far more in that time, and for which every call costs tens of
/// microseconds.
pub const DEVICE_POOL_SLICE: usize = 1 << 30;
pub const DEVICE_WRITE_SLICE: usize = 4 << 20;

/// Splits items of the given sizes into ranges. A range holds at least one item; further items are added while their
/// total size is at most `max`.
pub fn split_by_size(sizes: impl Iterator<Item = usize>, max: usize) -> Vec<Range<usize>> {
    let mut slices: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (i, size) in sizes.enumerate() {
        match slices.last_mut() {
            Some(last) if filled + size <= max => {
                last.end = i + 1;
                filled += size;
            }
            _ => {
                slices.push(i..i + 1);
                filled = size;
            }
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::split_by_size;

    #[test]
    fn slices_cover_every_item_once_and_hold_at_most_the_limit_or_one_item() {
        assert!(split_by_size(std::iter::empty(), 10).is_empty());
        assert_eq!(split_by_size([0, 0, 11].into_iter(), 10), [0..2, 2..3]);
        assert_eq!(split_by_size([4, 6, 1, 100, 3, 3].into_iter(), 10), [0..2, 2..3, 3..4, 4..6]);
    }
}
