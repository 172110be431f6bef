//! Pooling on the CPU: gathers rows from the table as stored, scales them and adds them.

use super::counts::{CountWeights, WeightedTokens};
use super::kernel::{self, GROUP, Kernel};
use super::tail::LexicalTail;
use super::{Comparison, Pooling};
use crate::error::EmbedError;
use crate::norm::CollapsedNorm;
use crate::table::{EmbeddingTable, for_each};
use layer0_tokenizers::yield_point::{Stopped, Undisturbed, YieldPoint};

/// The number of groups that are added in f32. Their sums are added in f64, so the rounding error does not grow with the length
/// of the text.
const GROUPS_OF_A_BLOCK: usize = 32;

/// Pools rows of a table in memory or in a memory map.
#[derive(Debug, Clone)]
pub struct CpuPooling {
    pub(super) table: EmbeddingTable,
    pub(super) norm: CollapsedNorm,
    counts: CountWeights,
    tail: Option<LexicalTail>,
    kernel: Kernel,
}

impl CpuPooling {
    pub fn new(table: EmbeddingTable, norm: CollapsedNorm) -> Self {
        Self { table, norm, counts: CountWeights::default(), tail: None, kernel: kernel::best() }
    }

    /// Returns the same pooling with an exponent of token counts: a token that occurs `n` times in a text weighs `n^exponent`. The exponent
    /// is 1 otherwise.
    #[must_use]
    pub fn with_token_count_exponent(self, exponent: f64) -> Self {
        Self { counts: CountWeights::new(exponent), ..self }
    }

    /// Returns the same pooling with a lexical tail of `dimensions` columns after those of the table. The tail of a token has `weight` times
    /// the length of the token's vector. The method reads the whole table once, on `threads` threads.
    #[must_use]
    pub fn with_lexical_tail(mut self, dimensions: usize, weight: f64, threads: usize) -> Self {
        self.tail = (dimensions > 0).then(|| LexicalTail::new(dimensions, weight, &self.lengths(threads)));
        self
    }

    /// Returns the length of each token's vector, `[rows]`.
    fn lengths(&self, threads: usize) -> Vec<f64> {
        let mut lengths = vec![0.0; self.table.rows()];
        let share = lengths.len().div_ceil(threads.max(1)).max(1);
        std::thread::scope(|scope| {
            for (part, lengths) in lengths.chunks_mut(share).enumerate() {
                scope.spawn(move || {
                    let mut vector = vec![0.0; self.table.dimensions()];
                    for (id, length) in (part * share..).zip(lengths) {
                        let id = u32::try_from(id).unwrap_or(u32::MAX);
                        // Nothing stops this work.
                        let _ = self.mean_of_rows(&WeightedTokens::equal(&[id]), &mut vector, &Undisturbed);
                        *length = self.kernel.squares(&vector).sqrt();
                    }
                });
            }
        });
        lengths
    }

    /// Returns the setting that only the CPU supports, with its value, or `None` if a device computes the same vectors.
    pub(super) fn only_on_the_cpu(&self) -> Option<String> {
        if let Some(tail) = &self.tail {
            return Some(format!("lexical_dimensions = {}", tail.dimensions));
        }
        (!self.counts.is_linear()).then(|| format!("token_count_exponent = {}", self.counts.exponent()))
    }

    /// Returns the same pooling with another kernel, to compare kernels.
    pub fn with_kernel(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// Calls `f` with the tokens of one text and their weights.
    fn weigh<R>(
        &self,
        ids: &[u32],
        at: &dyn YieldPoint,
        f: impl FnOnce(&WeightedTokens<'_>) -> Result<R, Stopped>,
    ) -> Result<R, Stopped> {
        self.counts.weigh(ids, self.table.rows(), at, f)
    }

    /// Writes the weighted mean of the tokens of one text to `out`: the columns of the table, and then those of the tail.
    fn mean_of(&self, tokens: &WeightedTokens<'_>, out: &mut [f32], at: &dyn YieldPoint) -> Result<(), Stopped> {
        let Some(tail) = &self.tail else { return self.mean_of_rows(tokens, out, at) };
        let (rows, rest) = out.split_at_mut(out.len().min(self.table.dimensions()));
        self.mean_of_rows(tokens, rows, at)?;
        tail.mean(self.kernel, tokens, rest, at)
    }

    /// Writes the weighted mean of the rows of one text's tokens to `out`.
    fn mean_of_rows(&self, tokens: &WeightedTokens<'_>, out: &mut [f32], at: &dyn YieldPoint) -> Result<(), Stopped> {
        out.fill(0.0);
        // The sums of the blocks before the one in `out`.
        let mut totals: Vec<f64> = Vec::new();
        let mut in_block = 0;
        let (mut groups, mut weights) = (tokens.ids.chunks(GROUP), tokens.weights.chunks(GROUP));
        // The groups take turns in two places, because copying a group takes as long as adding a short row.
        let mut places = [Rows::default(), Rows::default()];
        let [mut now, mut next] = places.each_mut();
        self.fill(next, groups.next(), weights.next());
        while !next.is_empty() {
            std::mem::swap(&mut now, &mut next);
            self.fill(next, groups.next(), weights.next());
            let (rows, scales) = now.get();
            self.kernel.add(self.table.dtype(), rows, scales, next.get().0, out);
            in_block += 1;
            if in_block == GROUPS_OF_A_BLOCK && !next.is_empty() {
                in_block = 0;
                totals.resize(out.len(), 0.0);
                for (total, sum) in totals.iter_mut().zip(&mut *out) {
                    *total += f64::from(std::mem::take(sum));
                }
                at.reached()?;
            }
        }
        let mut share = 1.0 / tokens.total.max(1.0) as f32;
        if !totals.is_empty() {
            for (total, sum) in totals.iter().zip(&mut *out) {
                *sum = ((total + f64::from(*sum)) / tokens.total) as f32;
            }
            share = 1.0;
        }
        self.kernel.order(self.table.dtype(), out);
        self.finish(tokens, share, out);
        Ok(())
    }

    /// Returns the weighted mean of each correction's scalars, with its direction.
    fn corrections<'a>(&'a self, tokens: &'a WeightedTokens<'_>) -> impl Iterator<Item = (f64, &'a [f32])> {
        self.norm.corrections.iter().map(|correction| {
            let weighted =
                |(id, weight): (u32, f32)| Some(f64::from(weight) * f64::from(*correction.per_row.get(id as usize)?));
            let sum = tokens.iter().filter_map(weighted).sum::<f64>();
            (sum / tokens.total.max(1.0), correction.direction.as_slice())
        })
    }

    /// Replaces `group` by the rows of up to [`GROUP`] IDs with their scales, which are multiplied by the weights if there are any. An ID past
    /// the table gives an empty row.
    #[inline]
    fn fill<'a>(&'a self, group: &mut Rows<'a>, ids: Option<&[u32]>, weights: Option<&[f32]>) {
        let ids = ids.unwrap_or_default();
        group.count = ids.len().min(GROUP);
        for ((row, scale), &id) in group.rows.iter_mut().zip(&mut group.scales).zip(ids) {
            *row = self.table.row(id).unwrap_or_default();
            *scale = self.norm.scale.get(id as usize).copied().unwrap_or_default();
        }
        for (scale, weight) in group.scales.iter_mut().zip(weights.unwrap_or_default()) {
            *scale *= weight;
        }
    }

    /// Returns the weighted mean of the tokens of one text, computed in f64.
    fn exact_mean_of(
        &self,
        tokens: &WeightedTokens<'_>,
        dimensions: usize,
        at: &dyn YieldPoint,
    ) -> Result<Vec<f64>, Stopped> {
        let columns = dimensions.min(self.table.dimensions());
        let mut totals = vec![0.0f64; columns];
        let mut row = vec![0.0f32; columns];
        for (index, (id, weight)) in (1..).zip(tokens.iter()) {
            let scale = f64::from(self.norm.scale.get(id as usize).copied().unwrap_or_default()) * f64::from(weight);
            for_each(self.table.dtype(), self.table.row(id).unwrap_or_default(), &mut row, |to, x| *to = x);
            for (total, &x) in totals.iter_mut().zip(&row) {
                *total += scale * f64::from(x);
            }
            if index % (GROUP * GROUPS_OF_A_BLOCK) == 0 || index == tokens.ids.len() {
                at.reached()?;
            }
        }
        for (total, &weight) in totals.iter_mut().zip(&self.norm.weight) {
            *total = *total / tokens.total.max(1.0) * f64::from(weight);
        }
        for (mean, direction) in self.corrections(tokens) {
            for (total, &direction) in totals.iter_mut().zip(direction) {
                *total += mean * f64::from(direction);
            }
        }
        for (total, &b) in totals.iter_mut().zip(self.norm.bias.iter().flatten()) {
            *total += f64::from(b);
        }
        if let Some(tail) = &self.tail {
            totals.extend(tail.exact_mean(tokens, dimensions - columns, at)?);
        }
        Ok(totals)
    }

    /// Turns sums into the mean: multiplies by `share` and the norm's weight, and adds the corrections and the bias.
    fn finish(&self, tokens: &WeightedTokens<'_>, share: f32, out: &mut [f32]) {
        if tokens.ids.is_empty() {
            return;
        }
        self.kernel.weigh(out, &self.norm.weight, share);
        for (mean, direction) in self.corrections(tokens) {
            let mean = mean as f32;
            for (x, direction) in out.iter_mut().zip(direction) {
                *x += mean * direction;
            }
        }
        for (x, b) in out.iter_mut().zip(self.norm.bias.iter().flatten()) {
            *x += b;
        }
    }
}

/// A group of rows, with their scales.
#[derive(Default, Clone, Copy)]
struct Rows<'a> {
    rows: [&'a [u8]; GROUP],
    scales: [f32; GROUP],
    count: usize,
}

impl Rows<'_> {
    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn get(&self) -> (&[&[u8]], &[f32]) {
        (self.rows.get(..self.count).unwrap_or_default(), self.scales.get(..self.count).unwrap_or_default())
    }
}

impl Pooling for CpuPooling {
    fn mean(&self, texts: &[&[u32]], dimensions: usize, out: &mut [f32]) -> Result<(), EmbedError> {
        self.mean_in_steps(texts, dimensions, out, &Undisturbed)
    }

    fn mean_in_steps(
        &self,
        texts: &[&[u32]],
        dimensions: usize,
        out: &mut [f32],
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        for (ids, out) in texts.iter().zip(out.chunks_mut(dimensions.max(1))) {
            self.weigh(ids, at, |tokens| self.mean_of(tokens, out, at))?;
        }
        Ok(())
    }

    fn exact_mean(&self, ids: &[u32], dimensions: usize, at: &dyn YieldPoint) -> Result<Option<Vec<f64>>, Stopped> {
        self.weigh(ids, at, |tokens| self.exact_mean_of(tokens, dimensions, at)).map(Some)
    }

    fn comparison(&self, ids: &[u32], units: &[f32]) -> Option<Comparison<'_>> {
        Comparison::new(&self.table, &self.norm, self.kernel, ids, units)
    }

    fn device(&self) -> String {
        format!("cpu ({})", self.kernel.name)
    }

    fn reads_the_table(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::norm::Correction;
    use crate::pooling::normalize;
    use crate::table::TableDtype;

    const WIDTH: usize = 37;

    fn pooling(rows: &[f32], corrections: Vec<Correction>) -> CpuPooling {
        let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
        let count = rows.len() / WIDTH;
        let table = EmbeddingTable::new(bytes.into(), TableDtype::F32, count, WIDTH).unwrap();
        let scale = (0..count).map(|row| 0.1 + row as f32 * 0.37).collect();
        CpuPooling::new(
            table,
            CollapsedNorm { scale, weight: vec![1.7; WIDTH], bias: Some(vec![0.3; WIDTH]), corrections },
        )
    }

    fn random(count: usize, rng: &mut fastrand::Rng) -> Vec<f32> {
        (0..count).map(|_| rng.f32() - 0.5).collect()
    }

    /// One token repeated, so that all rounding errors have the same sign, and random tokens.
    #[test]
    fn long_texts_are_as_exact_as_short_ones_on_every_kernel() {
        let mut rng = fastrand::Rng::with_seed(11);
        let numbers = random(5 * WIDTH, &mut rng);
        let correction = Correction { per_row: random(5, &mut rng), direction: random(WIDTH, &mut rng) };
        let any: Vec<u32> = (0..100_000).map(|_| rng.u32(..5)).collect();
        for kernel in kernel::available() {
            let pooling = pooling(&numbers, vec![correction.clone()]).with_kernel(kernel);
            for ids in [&any[..], &vec![3; 400_000], &[3; 257], &any[..1000]] {
                let mut found = vec![0.0; WIDTH];
                pooling.mean(&[ids], WIDTH, &mut found).unwrap();
                let exact = pooling.exact_mean(ids, WIDTH, &Undisturbed).unwrap().unwrap();
                let length = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
                normalize(&mut found).unwrap();
                for (found, exact) in found.iter().zip(&exact) {
                    assert!((f64::from(*found) - exact / length).abs() < 5e-7, "{}: {}", kernel.name, ids.len());
                }
            }
        }
    }

    #[test]
    fn short_texts_are_added_as_one_block() {
        let mut rng = fastrand::Rng::with_seed(12);
        let pooling = pooling(&random(9 * WIDTH, &mut rng), Vec::new());
        let ids: Vec<u32> = (0..256).map(|_| rng.u32(..9)).collect();
        let mut sums = vec![0.0; WIDTH];
        for ids in ids.chunks(GROUP) {
            let mut rows = Rows::default();
            pooling.fill(&mut rows, Some(ids), None);
            pooling.kernel.add(TableDtype::F32, rows.get().0, rows.get().1, &[], &mut sums);
        }
        let expected: Vec<f32> = sums.iter().map(|x| x * (1.7 * (1.0 / 256.0)) + 0.3).collect();
        let mut found = vec![0.0; WIDTH];
        pooling.mean(&[&ids], WIDTH, &mut found).unwrap();
        assert_eq!(found, expected);
    }

    /// The mean as a loop over the IDs of one text, in the order in which it was defined before tokens had weights.
    fn plain_mean(pooling: &CpuPooling, ids: &[u32]) -> Vec<f32> {
        let (mut totals, mut sums) = (vec![0.0f64; WIDTH], vec![0.0f32; WIDTH]);
        let blocks: Vec<&[u32]> = ids.chunks(GROUP * GROUPS_OF_A_BLOCK).collect();
        for (i, block) in blocks.iter().enumerate() {
            for ids in block.chunks(GROUP) {
                let rows: Vec<&[u8]> = ids.iter().map(|&id| pooling.table.row(id).unwrap()).collect();
                let scales: Vec<f32> = ids.iter().map(|&id| pooling.norm.scale[id as usize]).collect();
                pooling.kernel.add(TableDtype::F32, &rows, &scales, &[], &mut sums);
            }
            if i + 1 < blocks.len() {
                totals.iter_mut().zip(&mut sums).for_each(|(total, sum)| *total += f64::from(std::mem::take(sum)));
            }
        }
        let mut share = 1.0 / ids.len() as f32;
        if blocks.len() > 1 {
            sums = totals.iter().zip(&sums).map(|(t, s)| ((t + f64::from(*s)) / ids.len() as f64) as f32).collect();
            share = 1.0;
        }
        let correction = &pooling.norm.corrections[0];
        let along = ids.iter().map(|&id| f64::from(correction.per_row[id as usize])).sum::<f64>() / ids.len() as f64;
        let finished = |(x, direction): (&f32, &f32)| x * (1.7 * share) + along as f32 * direction + 0.3;
        sums.iter().zip(&correction.direction).map(finished).collect()
    }

    #[test]
    fn the_exponent_one_gives_the_bits_of_the_plain_mean() {
        let mut rng = fastrand::Rng::with_seed(13);
        let correction = Correction { per_row: random(9, &mut rng), direction: random(WIDTH, &mut rng) };
        let pooling = pooling(&random(9 * WIDTH, &mut rng), vec![correction]).with_token_count_exponent(1.0);
        for length in [1, 2, 7, 8, 9, 127, 128, 129, 256, 257, 512, 513, 3000] {
            let ids: Vec<u32> = (0..length).map(|_| rng.u32(..9)).collect();
            let mut found = vec![9.0; WIDTH];
            pooling.mean(&[&ids], WIDTH, &mut found).unwrap();
            assert_eq!(found, plain_mean(&pooling, &ids), "{length}");
        }
    }

    proptest! {
        /// The weighted mean by its definition, in f64, on every kernel, for short texts and for long ones, alone and in a batch.
        #[test]
        fn tokens_weigh_a_power_of_their_counts(
            seed in any::<u64>(), length in prop_oneof![1usize..40, 100usize..400], rows in 1u32..60,
            exponent in prop_oneof![Just(0.0), Just(0.5), Just(0.7), Just(1.0), 0.0f64..1.0],
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let numbers = random(rows as usize * WIDTH, &mut rng);
            let correction = Correction { per_row: random(rows as usize, &mut rng), direction: random(WIDTH, &mut rng) };
            let ids: Vec<u32> = (0..length).map(|_| rng.u32(..rows)).collect();
            let mut counts = vec![0u32; rows as usize];
            ids.iter().for_each(|&id| counts[id as usize] += 1);
            let weights: Vec<f64> =
                counts.iter().map(|&n| if n == 0 { 0.0 } else { f64::from(n).powf(exponent) }).collect();
            let total: f64 = weights.iter().sum();
            let pooled = pooling(&numbers, vec![correction.clone()]).with_token_count_exponent(exponent);
            let expected: Vec<f64> = (0..WIDTH)
                .map(|column| {
                    let along = f64::from(correction.direction[column]);
                    let sum: f64 = weights
                        .iter()
                        .enumerate()
                        .map(|(row, weight)| {
                            let scaled = f64::from(numbers[row * WIDTH + column]) * f64::from(pooled.norm.scale[row]);
                            weight * (scaled * f64::from(1.7f32) + along * f64::from(correction.per_row[row]))
                        })
                        .sum();
                    sum / total + f64::from(0.3f32)
                })
                .collect();
            let exact = pooled.exact_mean(&ids, WIDTH, &Undisturbed).unwrap().unwrap();
            for (exact, expected) in exact.iter().zip(&expected) {
                prop_assert!((exact - expected).abs() < 1e-6 * (1.0 + f64::from(rows)), "{exact} {expected}");
            }
            for kernel in kernel::available() {
                let pooled = pooling(&numbers, vec![correction.clone()])
                    .with_token_count_exponent(exponent)
                    .with_kernel(kernel);
                let (mut alone, mut batch) = (vec![0.0; WIDTH], vec![0.0; 3 * WIDTH]);
                pooled.mean(&[&ids], WIDTH, &mut alone).unwrap();
                pooled.mean(&[&ids[..1], &ids, &ids[..length / 2]], WIDTH, &mut batch).unwrap();
                prop_assert_eq!(&alone, &batch[WIDTH..2 * WIDTH]);
                for (found, expected) in alone.iter().zip(&expected) {
                    prop_assert!((f64::from(*found) - expected).abs() < 1e-5 * (1.0 + f64::from(rows)), "{}", kernel.name);
                }
            }
        }
    }

    #[test]
    fn the_tail_follows_the_columns_of_the_table_by_the_lengths_of_the_tokens() {
        const TAIL: usize = 70;
        let mut rng = fastrand::Rng::with_seed(14);
        let correction = Correction { per_row: random(9, &mut rng), direction: random(WIDTH, &mut rng) };
        let plain = pooling(&random(9 * WIDTH, &mut rng), vec![correction]).with_token_count_exponent(0.5);
        let vector = |pooling: &CpuPooling, ids: &[u32], columns: usize| {
            let mut out = vec![9.0; columns];
            pooling.mean(&[ids], columns, &mut out).unwrap();
            out
        };
        for threads in [1, 2, 20] {
            let tailed = plain.clone().with_lexical_tail(TAIL, 0.8, threads);
            let ids = [3, 8, 3, 3, 1, 3];
            let found = vector(&tailed, &ids, WIDTH + TAIL);
            assert_eq!(found[..WIDTH], vector(&plain, &ids, WIDTH));
            assert_eq!(found[..WIDTH + 10], vector(&tailed, &ids, WIDTH + 10));
            assert_eq!(vector(&tailed, &ids, 5), vector(&plain, &ids, 5));
            for column in 0..TAIL {
                let of = |id: u32, weight: f64| {
                    let token = vector(&plain, &[id], WIDTH);
                    let length = token.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
                    weight * 0.8 * length / (TAIL as f64).sqrt() * f64::from(kernel::sign(id, column))
                };
                // Token 3 occurs four times, and 4^0.5 is 2.
                let expected = (of(3, 2.0) + of(8, 1.0) + of(1, 1.0)) / 4.0;
                assert!((f64::from(found[WIDTH + column]) - expected).abs() < 1e-6);
            }
            let exact = tailed.exact_mean(&ids, WIDTH + TAIL, &Undisturbed).unwrap().unwrap();
            assert_eq!(exact.len(), WIDTH + TAIL);
            assert!(exact.iter().zip(&found).all(|(exact, found)| (exact - f64::from(*found)).abs() < 1e-5));
            assert_eq!(tailed.exact_mean(&ids, 5, &Undisturbed).unwrap().unwrap().len(), 5);
        }
        assert!(plain.with_lexical_tail(0, 0.8, 1).tail.is_none());
    }

    #[test]
    fn a_long_text_can_be_stopped() {
        struct Stop;
        impl YieldPoint for Stop {
            fn reached(&self) -> Result<(), Stopped> {
                Err(Stopped)
            }
        }
        let pooling = pooling(&[1.0; WIDTH], Vec::new());
        let mut out = vec![0.0; WIDTH];
        assert_eq!(pooling.mean_in_steps(&[&[0; 256]], WIDTH, &mut out, &Stop), Ok(()));
        assert_eq!(pooling.mean_in_steps(&[&[0; 257]], WIDTH, &mut out, &Stop), Err(EmbedError::Stopped(Stopped)));
        assert_eq!(pooling.exact_mean(&[0], WIDTH, &Stop), Err(Stopped));
    }
}
