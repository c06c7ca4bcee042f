//! Scores from significances: a softmax over the models, and a score of its own for what is significant within
//! a model (WIDEN, Yu et al. 2024).

use super::elementary::exp;
use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// `scores_ij = e^|x_ij| / Σ_k e^|x_kj|`, and `calibrated` instead where `|x_ij|` is above the
    /// threshold of row i. `values` and `scores` hold one row of `length` entries per threshold.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn calibrated_softmax<T: Real>(
        values: &[T],
        thresholds: &[T],
        calibrated: T,
        length: usize,
        scores: &mut [T],
    ) {
        assert_eq!(values.len(), thresholds.len() * length);
        assert_eq!(scores.len(), values.len());
        for j in 0..length {
            let size = |row: usize| values[row * length + j].abs();
            let rows = 0..thresholds.len();
            let larger = |high: T, row| if size(row) > high { size(row) } else { high };
            let high = rows.clone().fold(T::ZERO, larger).to_f64();
            let power = |row: usize| exp(size(row).to_f64() - high);
            let total: f64 = rows.clone().map(power).sum();
            for row in rows {
                let above = size(row) > thresholds[row];
                let share = T::from_f64(power(row) / total);
                scores[row * length + j] = if above { calibrated } else { share };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{finite, rows};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_and_the_score_of_what_is_above(
            (length, rows, weights) in rows(finite()), threshold in 0.0_f32..4.0,
        ) {
            let thresholds: Vec<f32> = weights.iter().map(|weight| threshold + weight.abs()).collect();
            let mut scores = vec![7.0; rows.len()];
            calibrated_softmax(&rows, &thresholds, 1.5, length, &mut scores);
            for j in 0..length {
                let sizes: Vec<f64> =
                    (0..weights.len()).map(|i| f64::from(rows[i * length + j].abs())).collect();
                let total: f64 = sizes.iter().map(|size| size.exp()).sum();
                for (i, size) in sizes.iter().enumerate() {
                    let above = *size > f64::from(thresholds[i]);
                    let expected = if above { 1.5 } else { size.exp() / total };
                    let found = f64::from(scores[i * length + j]);
                    prop_assert!((found - expected).abs() < 1e-6, "{found} {expected}");
                }
            }
        }
    }
}
