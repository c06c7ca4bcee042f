//! Sign election: the sign in which an entry is merged (TIES, Yadav et al. 2023, §4.2).

use crate::dtype::Real;

/// Entries voted on at a time: their sums stay in registers or first-level cache.
const STRIDE: usize = 128;

/// Elect the sign of every entry: that of `Σ_i δ_ij`, or of `Σ_i w_i δ_ij` where `weights` are
/// given, added in row order. 1 and -1; a sum of 0 (or NaN) elects `zero_sign`.
///
/// # Panics
/// If the lengths do not match.
pub fn elect_sign<T: Real>(deltas: &[T], weights: Option<&[T]>, zero_sign: T, signs: &mut [T]) {
    let length = signs.len();
    for (start, signs) in (0..).step_by(STRIDE).zip(signs.chunks_mut(STRIDE)) {
        let sums = &mut [T::ZERO; STRIDE][..signs.len()];
        vote(deltas, weights, start, length, sums);
        for (sign, &sum) in signs.iter_mut().zip(&*sums) {
            let positive = if sum > T::ZERO { T::ONE } else { zero_sign };
            *sign = if sum < T::ZERO { T::ZERO - T::ONE } else { positive };
        }
    }
}

/// The sum of all elected signs, draws counting 0; rows are `length` entries long.
///
/// # Panics
/// If the lengths do not match.
#[must_use]
pub fn sum_of_signs<T: Real>(deltas: &[T], weights: Option<&[T]>, length: usize) -> i64 {
    let mut total = 0;
    for start in (0..length).step_by(STRIDE) {
        let sums = &mut [T::ZERO; STRIDE][..STRIDE.min(length - start)];
        vote(deltas, weights, start, length, sums);
        let sign = |&sum: &T| i32::from(sum > T::ZERO) - i32::from(sum < T::ZERO);
        total += i64::from(sums.iter().map(sign).sum::<i32>());
    }
    total
}

/// Add the votes of all rows for the entries from `start` on.
fn vote<T: Real>(deltas: &[T], weights: Option<&[T]>, start: usize, length: usize, sums: &mut [T]) {
    assert!(deltas.len().is_multiple_of(length), "rows do not match their length");
    for (row, deltas) in deltas.chunks_exact(length).enumerate() {
        let deltas = &deltas[start..start + sums.len()];
        match weights {
            None => sums.iter_mut().zip(deltas).for_each(|(sum, &delta)| *sum += delta),
            Some(weights) => {
                let weight = weights[row];
                sums.iter_mut().zip(deltas).for_each(|(sum, &delta)| *sum += weight * delta);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, rows};
    use proptest::prelude::*;

    fn votes(rows: &[f32], weights: &[f32], length: usize, j: usize) -> f32 {
        (0..weights.len()).fold(0.0, |sum, i| sum + weights[i] * rows[i * length + j])
    }

    proptest! {
        #[test]
        fn the_larger_sum_wins((length, rows, weights) in rows(any()), zero in -1..2_i8) {
            let zero = f32::from(zero);
            let ones = vec![1.0; weights.len()];
            for (given, used) in [(None, &ones), (Some(weights.as_slice()), &weights)] {
                let mut signs = vec![9.0; length];
                elect_sign(&rows, given, zero, &mut signs);
                let mut total = 0;
                for (j, &sign) in signs.iter().enumerate() {
                    let sum = votes(&rows, used, length, j);
                    let expected =
                        if sum > 0.0 { 1.0 } else if sum < 0.0 { -1.0 } else { zero };
                    prop_assert_eq!(sign, expected);
                    total += i64::from(sum > 0.0) - i64::from(sum < 0.0);
                }
                prop_assert_eq!(sum_of_signs(&rows, given, length), total);
            }
        }
    }
}
