//! Sign election: one sign for every entry (TIES, Yadav et al. 2023, §4.2).

use crate::dtype::Real;
use crate::processor::widest;

/// Entries computed at a time, so that their sums stay in registers.
pub(super) const LANES: usize = 16;

widest! {
    /// Set `signs[j]` to the sign, 1 or −1, of `Σ_i v_i δ_ij`, added in row order; to `zero_sign` where
    /// the sum is 0 or NaN. `votes` holds one `v_i` per row, and a row has `signs.len()` entries.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn elect_sign<T: Real>(deltas: &[T], votes: &[T], zero_sign: T, signs: &mut [T]) {
        let length = signs.len();
        assert_eq!(deltas.len(), votes.len() * length);
        let (strips, rest) = signs.as_chunks_mut::<LANES>();
        let whole = strips.len() * LANES;
        for (place, signs) in strips.iter_mut().enumerate() {
            let sums = vote::<LANES, T>(deltas, votes, length, place * LANES);
            for lane in 0..LANES {
                signs[lane] = sign(sums[lane], zero_sign);
            }
        }
        for (place, out) in rest.iter_mut().enumerate() {
            let [sum] = vote::<1, T>(deltas, votes, length, whole + place);
            *out = sign(sum, zero_sign);
        }
    }
}

widest! {
    /// The sum of all elected signs, where a sum of 0 or NaN counts as 0. Rows have `length` entries.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn sum_of_signs<T: Real>(deltas: &[T], votes: &[T], length: usize) -> i64 {
        assert_eq!(deltas.len(), votes.len() * length);
        let mut lanes = [0_i32; LANES];
        let whole = length - length % LANES;
        for start in (0..whole).step_by(LANES) {
            let sums = vote::<LANES, T>(deltas, votes, length, start);
            for lane in 0..LANES {
                let sum = sums[lane];
                lanes[lane] += i32::from(sum > T::ZERO) - i32::from(sum < T::ZERO);
            }
        }
        for place in whole..length {
            let [sum] = vote::<1, T>(deltas, votes, length, place);
            lanes[0] += i32::from(sum > T::ZERO) - i32::from(sum < T::ZERO);
        }
        lanes.iter().map(|&sum| i64::from(sum)).sum()
    }
}

/// `Σ_i v_i δ_ij` for the `N` entries from `start` on.
#[inline(always)]
fn vote<const N: usize, T: Real>(deltas: &[T], votes: &[T], length: usize, start: usize) -> [T; N] {
    let mut sums = [T::ZERO; N];
    for (row, &vote) in votes.iter().enumerate() {
        let deltas = &deltas[row * length + start..][..N];
        for lane in 0..N {
            sums[lane] += vote * deltas[lane];
        }
    }
    sums
}

#[inline(always)]
pub(super) fn sign<T: Real>(sum: T, zero_sign: T) -> T {
    let positive = if sum > T::ZERO { T::ONE } else { zero_sign };
    if sum < T::ZERO { T::ZERO - T::ONE } else { positive }
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
            for used in [&ones, &weights] {
                let mut signs = vec![9.0; length];
                elect_sign(&rows, used, zero, &mut signs);
                let mut total = 0;
                for (j, &sign) in signs.iter().enumerate() {
                    let sum = votes(&rows, used, length, j);
                    let expected =
                        if sum > 0.0 { 1.0 } else if sum < 0.0 { -1.0 } else { zero };
                    prop_assert_eq!(sign, expected);
                    total += i64::from(sum > 0.0) - i64::from(sum < 0.0);
                }
                prop_assert_eq!(sum_of_signs(&rows, used, length), total);
            }
        }
    }
}
