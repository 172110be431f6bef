//! Quantizes rows to 8-bit or 4-bit integers with one scale per row.

/// The shares of a row's largest absolute value that are tried as the range of four bits. Clipping a few outliers makes
/// the steps finer for all other values.
const INT4_SPANS: [f32; 7] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7];
const INT4_MAX: f32 = 7.0;
const INT8_MAX: f32 = 127.0;

/// Returns the scale, and the values as two's complement bytes.
pub fn int8(row: &[f32]) -> (f32, Vec<u8>) {
    let scale = largest(row) / INT8_MAX;
    (scale, row.iter().map(|&x| (step(x, scale, INT8_MAX) as i8).cast_unsigned()).collect())
}

/// Returns the scale and two columns per byte (`table.rs`, `Int4`). The scale is the candidate with the smallest
/// squared error.
pub fn int4(row: &[f32]) -> (f32, Vec<u8>) {
    let scale = int4_scale(row);
    let nibble = |x: f32| (step(x, scale, INT4_MAX) + 8.0) as u8;
    let bytes = row.chunks(2).map(|pair| match *pair {
        [even, odd] => nibble(even) | nibble(odd) << 4,
        [even] => nibble(even) | nibble(0.0) << 4,
        _ => nibble(0.0),
    });
    (scale, bytes.collect())
}

fn int4_scale(row: &[f32]) -> f32 {
    let largest = largest(row);
    let scales = INT4_SPANS.map(|span| span * largest / INT4_MAX);
    let error = |scale: f32| -> f32 {
        row.iter().map(|&x| x - scale * step(x, scale, INT4_MAX)).map(|error| error * error).sum()
    };
    let best = scales.into_iter().map(|scale| (scale, error(scale))).min_by(|a, b| a.1.total_cmp(&b.1));
    best.map_or(0.0, |(scale, _)| scale)
}

/// Replaces the numbers of a row by the multiples of its scale that [`int8`] stores.
pub fn round_int8(row: &mut [f32]) {
    let scale = largest(row) / INT8_MAX;
    row.iter_mut().for_each(|x| *x = scale * step(*x, scale, INT8_MAX));
}

/// Replaces the numbers of a row by the multiples of its scale that [`int4`] stores.
pub fn round_int4(row: &mut [f32]) {
    let scale = int4_scale(row);
    row.iter_mut().for_each(|x| *x = scale * step(*x, scale, INT4_MAX));
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |max, x| x.abs().max(max))
}

/// Returns the integer in `-max ..= max` that is nearest to `x / scale`.
fn step(x: f32, scale: f32, max: f32) -> f32 {
    if scale > 0.0 { (x / scale).round_ties_even().clamp(-max, max) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer0::table::{EmbeddingTable, TableDtype};

    fn decoded(dtype: TableDtype, (scale, bytes): (f32, Vec<u8>), dimensions: usize) -> (f32, Vec<f32>) {
        let table = EmbeddingTable::quantized(bytes.into(), dtype, dimensions, vec![scale]).unwrap();
        let mut row = vec![0.0; dimensions];
        assert!(table.read_row(0, &mut row));
        (scale, row)
    }

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * 3.0).collect()
    }

    #[test]
    fn int8_is_within_half_a_step() {
        for n in [1, 2, 7, 64] {
            let row = wave(n);
            let (scale, back) = decoded(TableDtype::Int8, int8(&row), n);
            assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() <= scale * 0.501), "{row:?} {back:?}");
        }
    }

    #[test]
    fn int4_is_within_half_a_step_but_for_what_it_cuts() {
        for n in [1, 2, 7, 64] {
            let row = wave(n);
            let (scale, back) = decoded(TableDtype::Int4, int4(&row), n);
            for (a, b) in row.iter().zip(&back) {
                let cut = a.clamp(-7.0 * scale, 7.0 * scale);
                assert!((cut - b).abs() <= scale * 0.501, "{a} {b} {scale}");
            }
        }
    }

    #[test]
    fn int4_takes_the_span_of_least_error() {
        let mut row = wave(200);
        row[0] = 5.0;
        let (scale, back) = decoded(TableDtype::Int4, int4(&row), 200);
        let error = |back: &[f32]| row.iter().zip(back).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let full: Vec<f32> = row.iter().map(|&x| (x * 7.0 / 5.0).round_ties_even() * 5.0 / 7.0).collect();
        assert!(scale < 5.0 / 7.0 && error(&back) < error(&full));
    }

    #[test]
    fn rounded_rows_are_the_rows_that_are_read_back() {
        for n in [1, 2, 7, 64, 200] {
            let row = wave(n);
            let (mut eight, mut four) = (row.clone(), row.clone());
            round_int8(&mut eight);
            round_int4(&mut four);
            assert_eq!(eight, decoded(TableDtype::Int8, int8(&row), n).1);
            assert_eq!(four, decoded(TableDtype::Int4, int4(&row), n).1);
        }
    }

    #[test]
    fn integers_of_a_step_and_zeros_come_back_exactly() {
        let row: Vec<f32> = (-7..=7).map(|i| i as f32 * 0.25).collect();
        assert_eq!(decoded(TableDtype::Int4, int4(&row), 15), (0.25, row));
        assert_eq!(decoded(TableDtype::Int4, int4(&[0.0; 3]), 3).1, [0.0; 3]);
        assert_eq!(decoded(TableDtype::Int8, int8(&[0.0; 3]), 3).1, [0.0; 3]);
    }
}
