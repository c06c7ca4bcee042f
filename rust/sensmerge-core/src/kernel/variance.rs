//! The variance over models, entry by entry.

use super::elect::LANES;
use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// `out_j = Σ_i (x_ij − m_j)² / K` with the mean `m_j = Σ_i x_ij / K`, over the K rows i of `rows`,
    /// each of `out.len()` entries. Where all K entries are equal the result is exactly 0.
    ///
    /// # Panics
    /// If `rows` is not a whole number of rows.
    pub fn variance<T: Real>(rows: &[T], out: &mut [T]) {
        let length = out.len();
        if length == 0 {
            return;
        }
        assert!(rows.len().is_multiple_of(length));
        let (strips, rest) = out.as_chunks_mut::<LANES>();
        let whole = strips.len() * LANES;
        for (place, out) in strips.iter_mut().enumerate() {
            *out = spread::<LANES, T>(rows, length, place * LANES);
        }
        for (place, out) in rest.iter_mut().enumerate() {
            [*out] = spread::<1, T>(rows, length, whole + place);
        }
    }
}

/// The variances of the `N` entries from `start` on. Entries are first reduced by that of the first
/// row, so that equal ones become 0 and large ones with small differences lose no digits.
#[inline(always)]
fn spread<const N: usize, T: Real>(rows: &[T], length: usize, start: usize) -> [T; N] {
    let count = T::from_f64((rows.len() / length) as f64);
    let first = &rows[start..][..N];
    let mut means = [T::ZERO; N];
    for row in rows.chunks_exact(length) {
        let entries = &row[start..][..N];
        for lane in 0..N {
            means[lane] += entries[lane] - first[lane];
        }
    }
    for mean in &mut means {
        *mean = *mean / count;
    }
    let mut squares = [T::ZERO; N];
    for row in rows.chunks_exact(length) {
        let entries = &row[start..][..N];
        for lane in 0..N {
            let deviation = (entries[lane] - first[lane]) - means[lane];
            squares[lane] += deviation * deviation;
        }
    }
    squares.map(|square| square / count)
}

widest! {
    /// Set the entries of a row to 0 where `scores` is 0.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn keep_scored<T: Real>(row: &mut [T], scores: &[T]) {
        assert_eq!(row.len(), scores.len());
        for (entry, &score) in row.iter_mut().zip(scores) {
            *entry = entry.only_if(score != T::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, finite, rows, same, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_in_float64((length, rows, weights) in rows(finite())) {
            let mut out = vec![7.0; length];
            variance(&rows, &mut out);
            let count = weights.len() as f64;
            for j in 0..length {
                let column: Vec<f64> =
                    (0..weights.len()).map(|i| f64::from(rows[i * length + j])).collect();
                let mean = column.iter().sum::<f64>() / count;
                let expected = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
                prop_assert!((f64::from(out[j]) - expected).abs() <= 1e-5 * expected + 1e-12);
                if column.iter().all(|&x| x == column[0]) {
                    prop_assert_eq!(out[j], 0.0);
                }
            }
        }

        #[test]
        fn rows_are_kept_where_they_score(values in vector(any())) {
            let scores: Vec<f32> = (0..values.len()).map(|j| [0.0, 1.5, f32::NAN][j % 3]).collect();
            let mut kept = values.clone();
            keep_scored(&mut kept, &scores);
            let expected: Vec<f32> = (0..values.len())
                .map(|j| if j % 3 == 0 { 0.0 } else { values[j] })
                .collect();
            prop_assert!(same(&kept, &expected));
        }
    }
}
