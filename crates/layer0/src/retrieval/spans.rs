//! Finds the part of a document that matches a query best, so that it can be highlighted.
//!
//! The text is cut between words into segments of about 64 bytes, which are some 16 tokens. Each run of [`WINDOW`] segments is a window. Its
//! score is the weighted share of the query's tokens that it covers, with the similarities and the weights of the [soft](super::soft) score:
//!
//! ```text
//! coverage(window)  =  sum over the query's tokens t of  w(t) min(1, x(t, window))
//! ```
//!
//! Of the best window, segments at either end that add nothing are left out.

use std::ops::Range;

use layer0_tokenizers::yield_point::{Stopped, YieldPoint};

use super::soft::SoftMatches;
use super::terms::is_unspaced;
use crate::embedder::{Embedder, Input};
use crate::error::EmbedError;

/// The number of segments of a window.
const WINDOW: usize = 4;
/// From how many bytes on a segment ends at the next space, or at the next character of a script without spaces.
const SEGMENT: usize = 64;
/// From how many bytes on a segment ends at any character.
const LONGEST_SEGMENT: usize = 128;
/// The number of segments whose tokens are compared at a time.
const SEGMENTS_AT_A_TIME: usize = 256;

/// Returns the bytes of `text` that match the query of `matches` best, or `None` if nothing in the text matches.
///
/// # Errors
/// When a device fails, the table's file was changed, or `at` ends the work.
pub fn best_span(
    embedder: &Embedder,
    matches: &SoftMatches,
    text: &str,
    at: &dyn YieldPoint,
) -> Result<Option<Range<usize>>, EmbedError> {
    let segments = segments(text, at)?;
    let width = matches.weights().len();
    if width == 0 {
        return Ok(None);
    }
    let weights = matches.weights();
    // The soft term frequencies of each segment, `[segments, width]`.
    let mut frequencies: Vec<f32> = Vec::with_capacity(segments.len() * width);
    for segments in segments.chunks(SEGMENTS_AT_A_TIME) {
        let mut tokens = Vec::with_capacity(segments.len());
        for segment in segments {
            let input = Input::Text(text.get(segment.clone()).unwrap_or_default().to_owned());
            tokens.push(embedder.tokens_in_steps(0, &input, at)?);
            at.reached()?;
        }
        let ids: Vec<&[u32]> = tokens.iter().map(|tokens| embedder.without_template(tokens.ids())).collect();
        frequencies.extend(matches.frequencies_of(embedder, &ids, at)?);
    }
    let coverage = |window: Range<usize>| {
        let rows = frequencies.get(window.start * width..window.end * width).unwrap_or_default();
        let mut sums = vec![0.0f32; width];
        for row in rows.chunks(width) {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
        weights.iter().zip(sums).map(|(weight, x)| weight * f64::from(x.min(1.0))).sum::<f64>()
    };
    let last = segments.len().saturating_sub(WINDOW);
    let mut best: (Range<usize>, f64) = (0..0, 0.0);
    for start in 0..=last {
        if start % SEGMENTS_AT_A_TIME == 0 {
            at.reached()?;
        }
        let window = start..(start + WINDOW).min(segments.len());
        let covered = coverage(window.clone());
        if covered > best.1 {
            best = (window, covered);
        }
    }
    let (mut window, covered) = best;
    while window.len() > 1 && coverage(window.start + 1..window.end) >= covered {
        window.start += 1;
    }
    while window.len() > 1 && coverage(window.start..window.end - 1) >= covered {
        window.end -= 1;
    }
    let found = segments.get(window).unwrap_or_default();
    let (Some(first), Some(last)) = (found.first(), found.last()) else { return Ok(None) };
    let span = text.get(first.start..last.end).unwrap_or_default();
    let start = first.start + span.len() - span.trim_start().len();
    Ok(Some(start..start + span.trim().len()))
}

/// Cuts a text into segments that together are the whole text.
fn segments(text: &str, at: &dyn YieldPoint) -> Result<Vec<Range<usize>>, Stopped> {
    let mut segments = Vec::new();
    let mut start = 0;
    for (place, c) in text.char_indices() {
        let length = place - start;
        if length >= LONGEST_SEGMENT || length >= SEGMENT && (c.is_whitespace() || is_unspaced(c)) {
            segments.push(start..place);
            start = place;
            if segments.len() % SEGMENTS_AT_A_TIME == 0 {
                at.reached()?;
            }
        }
    }
    if start < text.len() {
        segments.push(start..text.len());
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use layer0_tokenizers::yield_point::Undisturbed;

    use super::*;

    #[test]
    fn segments_end_between_words_and_are_the_whole_text() {
        for text in ["", "short", &"some words in a row ".repeat(30), &"漢字仮名交じり文".repeat(40), &"x".repeat(1000)]
        {
            let segments = segments(text, &Undisturbed).unwrap();
            assert_eq!(segments.iter().map(|segment| &text[segment.clone()]).collect::<String>(), text);
            assert!(segments.iter().all(|segment| segment.len() <= LONGEST_SEGMENT + 4));
            let cuts_a_word = |segment: &Range<usize>| {
                let next = text[segment.end..].chars().next();
                text.is_ascii() && text.contains(' ') && next.is_some_and(|c| c != ' ')
            };
            assert!(!segments.iter().any(cuts_a_word), "{segments:?}");
        }
    }
}
