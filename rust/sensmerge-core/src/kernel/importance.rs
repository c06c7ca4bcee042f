//! Means in which every entry of every row has a weight of its own.

use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// `out_j = Σ_i w_i (f_ij + ε) x_ij / Σ_i w_i (f_ij + ε)`, added in row order, where `f` are the
    /// `importances`; where the divisor is 0, `Σ_i w_i x_ij / Σ_i w_i`. The divisors are left in `sums`.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn importance_mean<T: Real>(
        rows: &[T],
        importances: &[T],
        weights: &[T],
        epsilon: T,
        sums: &mut [T],
        out: &mut [T],
    ) {
        let length = out.len();
        assert_eq!((rows.len(), importances.len()), (weights.len() * length, rows.len()));
        assert_eq!(sums.len(), length);
        out.fill(T::ZERO);
        sums.fill(T::ZERO);
        if length == 0 {
            return;
        }
        let by_row = rows.chunks_exact(length).zip(importances.chunks_exact(length));
        for ((row, importances), &weight) in by_row.zip(weights) {
            let entries = out.iter_mut().zip(sums.iter_mut()).zip(row.iter().zip(importances));
            for ((out, sum), (&x, &importance)) in entries {
                let share = weight * (importance + epsilon);
                *sum += share;
                *out += share * x;
            }
        }
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            *out = *out / sum;
        }
        if sums.contains(&T::ZERO) {
            without_importance(rows, weights, sums, out);
        }
    }
}

widest! {
    /// `x_j ← (f_j + ε) (x_j − out_j) / sum_j`: the derivative of a row's [`importance_mean`] `out`, with
    /// the divisors `sums`, by the row's weight; 0 where the divisor is 0.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn importance_slope<T: Real>(
        row: &mut [T],
        importances: &[T],
        epsilon: T,
        sums: &[T],
        out: &[T],
    ) {
        assert_eq!((row.len(), importances.len(), sums.len()), (out.len(), out.len(), out.len()));
        let entries = row.iter_mut().zip(importances).zip(sums.iter().zip(out));
        for ((x, &importance), (&sum, &out)) in entries {
            let slope = (importance + epsilon) * (*x - out) / sum;
            *x = if sum == T::ZERO { T::ZERO } else { slope };
        }
    }
}

/// The weighted mean of the entries whose divisor is 0.
fn without_importance<T: Real>(rows: &[T], weights: &[T], sums: &[T], out: &mut [T]) {
    let length = out.len();
    let mut divisor = T::ZERO;
    for &weight in weights {
        divisor += weight;
    }
    for (place, (out, &sum)) in out.iter_mut().zip(sums).enumerate() {
        if sum == T::ZERO {
            let mut total = T::ZERO;
            for (row, &weight) in rows.chunks_exact(length).zip(weights) {
                total += weight * row[place];
            }
            *out = total / divisor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, rows, same};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_entry_has_its_own_mean((length, rows, weights) in rows(any()), epsilon in 0.0_f32..1.0) {
            let importances: Vec<f32> = rows.iter().rev().map(|x| x.abs() % 3.0).collect();
            let (mut sums, mut out) = (vec![1.0; length], vec![1.0; length]);
            importance_mean(&rows, &importances, &weights, epsilon, &mut sums, &mut out);
            for j in 0..length {
                let (mut sum, mut divisor) = (0.0_f32, 0.0_f32);
                for i in 0..weights.len() {
                    let share = weights[i] * (importances[i * length + j] + epsilon);
                    divisor += share;
                    sum += share * rows[i * length + j];
                }
                prop_assume!(divisor != 0.0);
                prop_assert!(same(&[out[j]], &[sum / divisor]));
            }
            let mut row = rows[..length].to_vec();
            importance_slope(&mut row, &importances[..length], epsilon, &sums, &out);
            for j in 0..length {
                let expected = (importances[j] + epsilon) * (rows[j] - out[j]) / sums[j];
                prop_assert!(same(&[row[j]], &[expected]));
            }
        }
    }

    #[test]
    fn what_is_unimportant_to_all_is_a_plain_mean() {
        let (rows, weights) = ([1.0_f32, 2.0, 5.0, 10.0], [3.0, 1.0]);
        let importances = [0.0, 1.0, 0.0, 0.0];
        let (mut sums, mut out) = ([0.0; 2], [0.0; 2]);
        importance_mean(&rows, &importances, &weights, 0.0, &mut sums, &mut out);
        assert_eq!(out, [2.0, 2.0]);
        // There no weight of one model changes anything by its importance.
        let mut row = [1.0, 2.0];
        importance_slope(&mut row, &importances[..2], 0.0, &[0.0, 3.0], &out);
        assert_eq!(row, [0.0, 0.0]);
    }
}
