//! Measures how close a table comes to its teacher on held-out texts, which the table was not fitted to.

use rayon::prelude::*;
use serde::Serialize;

use super::Source;
use super::spool::Spooled;
use super::texts::{Occurrences, TokenCounts};
use crate::eval::metrics::{cosine, spearman};

/// The largest number of texts that are measured. This many texts determine three digits. The first held-out texts of
/// the corpus are taken.
const MEASURED: usize = 20_000;
/// The number of other texts that each text is compared with.
const PARTNERS: usize = 8;

/// The measures of a fit. Each is a mean over held-out texts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Report {
    /// The number of texts that were measured.
    pub texts: usize,
    /// The mean cosine of a text's vector and its target `Z` when only the linear map is applied. The checkpoint's own
    /// vectors cannot be compared, because they lie in another space than the teacher's.
    pub cosine_before: f64,
    /// The mean cosine of a text's vector and its target `Z` with the fitted rows.
    pub cosine_after: f64,
    /// Spearman's rank correlation of the cosines of pairs of texts: the cosines by the checkpoint's own vectors with
    /// the cosines by the teacher's. This measure needs no map between the two spaces.
    pub correlation_before: f64,
    /// Spearman's rank correlation of the cosines of pairs of texts: the cosines by the fitted table with the cosines
    /// by the teacher's vectors.
    pub correlation_after: f64,
}

/// The smallest decrease that counts as a loss. Reports have four digits, so a smaller decrease could not be seen.
const NOTICED: f64 = 5e-5;

/// The smallest number of texts that has pairs to compare.
const COMPARABLE: usize = 2;

impl Report {
    /// Returns the measures that are lower after the fit than before the fit. A single text has no pair to compare, so
    /// the result is empty for it.
    pub fn losses(&self) -> Vec<Loss> {
        let all = [
            Loss { measure: "cosine to the teacher", before: self.cosine_before, after: self.cosine_after },
            Loss { measure: "correlation of cosines", before: self.correlation_before, after: self.correlation_after },
        ];
        let worse = |loss: &Loss| self.texts >= COMPARABLE && loss.before - loss.after > NOTICED;
        all.into_iter().filter(worse).collect()
    }
}

/// A measure that the fit made worse.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The name of the measure.
    pub measure: &'static str,
    /// The value with the old rows.
    pub before: f64,
    /// The value with the new rows.
    pub after: f64,
}

/// The measures of one table.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    texts: usize,
    cosine: f64,
    correlation: f64,
    source_correlation: f64,
}

impl Measured {
    pub fn and_after(self, after: Option<Self>) -> Report {
        let after = after.unwrap_or(self);
        Report {
            texts: self.texts,
            cosine_before: self.cosine,
            cosine_after: after.cosine,
            correlation_before: self.source_correlation,
            correlation_after: after.correlation,
        }
    }
}

/// Compares the table with the target and with the teacher. `rows` holds the fitted rows of the tokens that occur in
/// the corpus. Returns `None` if no text was held out.
pub fn measure(
    source: &Source<'_>,
    counts: &TokenCounts,
    rows: &[f32],
    target: &Spooled,
    teacher: &Spooled,
) -> Option<Measured> {
    let dimensions = target.table.dimensions();
    let texts: Vec<usize> = (0..counts.len()).filter(|&text| counts.is_held_out(text)).take(MEASURED).collect();
    if texts.is_empty() {
        return None;
    }
    let own: Vec<Vec<f32>> =
        texts.par_iter().map(|&text| source.vector(&counts.ids(text).collect::<Vec<_>>())).collect();
    let fitted: Vec<Vec<f32>> = texts.par_iter().map(|&text| sum(rows, counts.text(text), dimensions)).collect();
    let wanted = |spool: &Spooled| -> Vec<Vec<f32>> { texts.iter().map(|&text| spool.row(text).collect()).collect() };
    let cosines: f64 = fitted.iter().zip(wanted(target)).map(|(vector, wanted)| cosine(vector, &wanted)).sum();
    let pairs = pairs(texts.len());
    let similarities = |vectors: &[Vec<f32>]| -> Vec<f64> {
        let cosine = |&(a, b): &(usize, usize)| Some(cosine(vectors.get(a)?, vectors.get(b)?));
        pairs.par_iter().filter_map(cosine).collect()
    };
    let theirs = similarities(&wanted(teacher));
    Some(Measured {
        texts: texts.len(),
        cosine: cosines / texts.len() as f64,
        correlation: spearman(&similarities(&fitted), &theirs),
        source_correlation: spearman(&similarities(&own), &theirs),
    })
}

/// Returns pairs of texts at small and at large distances in the corpus: neighboring texts tend to be similar, and
/// distant ones tend to differ.
fn pairs(texts: usize) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for partner in 0..PARTNERS {
        let distance = 1 + partner * (texts.saturating_sub(1)) / (2 * PARTNERS);
        if distance < texts {
            pairs.extend((0..texts).map(|text| (text, (text + distance) % texts)));
        }
    }
    pairs
}

fn sum(rows: &[f32], columns: Occurrences<'_>, dimensions: usize) -> Vec<f32> {
    let mut sum = vec![0.0; dimensions];
    for (column, weight) in columns.iter() {
        let start = column as usize * dimensions;
        for (sum, x) in sum.iter_mut().zip(rows.get(start..start + dimensions).unwrap_or_default()) {
            *sum += weight * x;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::{Report, pairs};

    #[test]
    fn no_text_is_its_own_partner() {
        for texts in [1, 2, 3, 7, 100] {
            let pairs = pairs(texts);
            assert!(pairs.iter().all(|&(a, b)| a != b && a < texts && b < texts), "{texts}: {pairs:?}");
            assert_eq!(pairs.is_empty(), texts == 1);
        }
    }

    #[test]
    fn a_measure_that_fell_by_a_digit_that_is_printed_is_a_loss() {
        let report = Report {
            texts: 9,
            cosine_before: 0.5,
            cosine_after: 0.5 - 1e-6,
            correlation_before: 0.3,
            correlation_after: 0.2999,
        };
        let losses: Vec<&str> = report.losses().iter().map(|loss| loss.measure).collect();
        assert_eq!(losses, ["correlation of cosines"]);
        assert!(Report { correlation_after: 0.4, ..report }.losses().is_empty());
        assert_eq!(Report { cosine_after: 0.1, ..report }.losses().len(), 2);
        assert_eq!(Report { texts: 1, ..report }.losses(), []);
    }
}
