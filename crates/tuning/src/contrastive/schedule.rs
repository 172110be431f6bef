//! Decides which pairs a step trains on, and at which rate. Every decision is a function of the seed, the step and the
//! number of items that were drawn before, so a run that goes on after an interruption decides the same.

/// The number of pairs from which on a larger group is not drawn more often.
const LARGE_GROUP: f64 = 30_000.0;

/// A sequence of numbers that depends on the seed and the step alone.
pub fn random(seed: u64, step: u64, purpose: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(mix(mix(mix(seed) ^ step) ^ purpose))
}

/// The chances that a step draws each group.
#[derive(Debug, Clone)]
pub struct Groups {
    /// The sums of the weights up to each group.
    cumulative: Vec<f64>,
}

impl Groups {
    /// A group of `n` items with the weight `w` is drawn with a probability proportional to `w sqrt(min(n, 30,000))`.
    /// `None` stands for a group that is never drawn.
    pub fn new(groups: impl Iterator<Item = Option<(usize, f64)>>) -> Self {
        let mut sum = 0.0;
        let mut add = |group: Option<(usize, f64)>| {
            sum += group.map_or(0.0, |(items, weight)| weight * (items as f64).min(LARGE_GROUP).sqrt());
            sum
        };
        Self { cumulative: groups.map(&mut add).collect() }
    }

    /// Returns whether there is a group that can be drawn.
    pub fn is_empty(&self) -> bool {
        self.cumulative.last().is_none_or(|sum| *sum <= 0.0)
    }

    /// Draws a group.
    pub fn draw(&self, random: &mut fastrand::Rng) -> usize {
        let total = self.cumulative.last().copied().unwrap_or(0.0);
        let at = random.f64() * total;
        self.cumulative.partition_point(|sum| *sum <= at).min(self.cumulative.len().saturating_sub(1))
    }
}

/// Returns the item of a group of `items` that is drawn after `drawn` others. The items come in a random order, all
/// once before any comes again.
///
/// The order is a Feistel network over the smallest square of a power of two that holds all numbers; numbers past the
/// last item are encrypted again (Black and Rogaway 2002, <https://doi.org/10.1007/3-540-45760-7_9>). It takes no
/// memory, whatever the size of the group.
pub fn item(seed: u64, group: usize, drawn: u64, items: usize) -> usize {
    let items = (items as u64).max(1);
    let (round, mut number) = (drawn / items, drawn % items);
    let key = mix(mix(mix(seed) ^ group as u64) ^ round);
    let bits = (64 - (items - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << bits) - 1;
    loop {
        let (mut left, mut right) = (number >> bits, number & mask);
        for step in 0..4u64 {
            (left, right) = (right, left ^ (mix(key ^ (step << 60) ^ right) & mask));
        }
        number = left << bits | right;
        if number < items {
            return usize::try_from(number).unwrap_or(0);
        }
    }
}

/// Returns the rate of a step: it rises over the first `warm_up` steps, and falls to zero over all of them.
pub fn rate(rate: f32, step: u64, warm_up: u64, steps: u64) -> f32 {
    let rising = (step + 1) as f64 / warm_up.max(1) as f64;
    let falling = 1.0 - step as f64 / steps.max(1) as f64;
    (f64::from(rate) * rising.min(1.0) * falling) as f32
}

/// The finalizer of splitmix64 (Steele, Lea and Flood 2014, <https://doi.org/10.1145/2714064.2660195>).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_drawn_once_before_any_is_drawn_again() {
        for items in [1, 2, 3, 5, 16, 17, 1000] {
            for round in 0..3u64 {
                let drawn = |n: usize| item(7, 1, round * items as u64 + n as u64, items);
                let mut order: Vec<usize> = (0..items).map(drawn).collect();
                let shuffled = order.clone();
                order.sort_unstable();
                assert!(order.into_iter().eq(0..items), "{items}");
                assert!(items < 16 || !shuffled.is_sorted());
            }
        }
        let order = |seed, group, round: u64| {
            (0..1000u64).map(|n| item(seed, group, round * 1000 + n, 1000)).collect::<Vec<_>>()
        };
        let first = order(7, 1, 0);
        assert!(first != order(8, 1, 0) && first != order(7, 2, 0) && first != order(7, 1, 1));
    }

    #[test]
    fn groups_are_drawn_by_their_weights_and_the_roots_of_their_sizes() {
        let groups = [Some((100, 1.0)), None, Some((400, 2.0)), Some((900_000, 0.0)), Some((30_000_000, 0.1))];
        let chances = [10.0, 0.0, 40.0, 0.0, 0.1 * LARGE_GROUP.sqrt()];
        let groups = Groups::new(groups.into_iter());
        let mut random = random(1, 2, 3);
        let mut counts = [0.0f64; 5];
        (0..100_000).for_each(|_| counts[groups.draw(&mut random)] += 1.0);
        let total: f64 = chances.iter().sum();
        for (count, chance) in counts.iter().zip(chances) {
            assert!((count / 1e5 - chance / total).abs() < 0.01, "{counts:?}");
        }
        assert!(Groups::new([None, Some((5, 0.0))].into_iter()).is_empty() && !groups.is_empty());
    }

    #[test]
    fn the_rate_rises_and_then_falls_to_zero() {
        assert_eq!((rate(1.0, 0, 50, 1000), rate(1.0, 49, 50, 1000)), (0.02, 0.951));
        assert_eq!((rate(2.0, 500, 50, 1000), rate(1.0, 1000, 50, 1000)), (1.0, 0.0));
        assert_eq!(rate(1.0, 0, 0, 0), 1.0);
    }
}
