//! Means over the experts that changed an entry, and how many did (RAM, arXiv 2601.13572).
//!
//! An expert changed an entry if the magnitude of its task vector there is above a threshold of the
//! expert's. NaN counts as a change, so that it reaches the output.

use super::elect::LANES;
use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// `out_j = Σ_i δ_ij / c_j` over the `c_j` rows i that changed entry j, added in row order; where
    /// `c_j` is 1, `f_i δ_ij` with the factor of the row. Where no row changed it, 0. `deltas` holds one
    /// row of `out.len()` entries per threshold.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn mean_of_changed<T: Real>(
        deltas: &[T],
        thresholds: &[T],
        factors: &[T],
        out: &mut [T],
    ) {
        let length = out.len();
        assert_eq!(deltas.len(), thresholds.len() * length);
        assert_eq!(factors.len(), thresholds.len());
        let (strips, rest) = out.as_chunks_mut::<LANES>();
        let whole = strips.len() * LANES;
        for (place, out) in strips.iter_mut().enumerate() {
            *out = mean(deltas, thresholds, factors, length, place * LANES);
        }
        for (place, out) in rest.iter_mut().enumerate() {
            [*out] = mean(deltas, thresholds, factors, length, whole + place);
        }
    }
}

/// The means of the `N` entries from `start` on.
#[inline(always)]
fn mean<const N: usize, T: Real>(
    deltas: &[T],
    thresholds: &[T],
    factors: &[T],
    length: usize,
    start: usize,
) -> [T; N] {
    let (mut sums, mut scaled, mut counts) = ([T::ZERO; N], [T::ZERO; N], [T::ZERO; N]);
    for (row, (&threshold, &factor)) in thresholds.iter().zip(factors).enumerate() {
        let deltas = &deltas[row * length + start..][..N];
        for lane in 0..N {
            let changed = changed(deltas[lane], threshold);
            sums[lane] += deltas[lane].only_if(changed);
            scaled[lane] += (factor * deltas[lane]).only_if(changed);
            counts[lane] += T::ONE.only_if(changed);
        }
    }
    for lane in 0..N {
        let divisor = if counts[lane] > T::ONE { counts[lane] } else { T::ONE };
        let one = counts[lane] == T::ONE;
        sums[lane] = if one { scaled[lane] } else { sums[lane] / divisor };
    }
    sums
}

widest! {
    /// Add to `alone[i]` the number of entries that row i alone changed, and to `shared[i]` the number of
    /// those that it changed as others did. Rows have `length` entries.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn count_changed<T: Real>(
        deltas: &[T],
        thresholds: &[T],
        length: usize,
        alone: &mut [u64],
        shared: &mut [u64],
    ) {
        assert_eq!(deltas.len(), thresholds.len() * length);
        assert_eq!((alone.len(), shared.len()), (thresholds.len(), thresholds.len()));
        let whole = length - length % LANES;
        for start in (0..whole).step_by(LANES) {
            count::<LANES, T>(deltas, thresholds, length, start, alone, shared);
        }
        for start in whole..length {
            count::<1, T>(deltas, thresholds, length, start, alone, shared);
        }
    }
}

/// The counts of the `N` entries from `start` on.
#[inline(always)]
fn count<const N: usize, T: Real>(
    deltas: &[T],
    thresholds: &[T],
    length: usize,
    start: usize,
    alone: &mut [u64],
    shared: &mut [u64],
) {
    let mut counts = [0_u32; N];
    for (row, &threshold) in thresholds.iter().enumerate() {
        let deltas = &deltas[row * length + start..][..N];
        for lane in 0..N {
            counts[lane] += u32::from(changed(deltas[lane], threshold));
        }
    }
    let counters = alone.iter_mut().zip(shared);
    for (row, (&threshold, (alone, shared))) in thresholds.iter().zip(counters).enumerate() {
        let deltas = &deltas[row * length + start..][..N];
        let (mut ones, mut others) = (0, 0);
        for lane in 0..N {
            let changed = changed(deltas[lane], threshold);
            ones += u32::from(changed & (counts[lane] == 1));
            others += u32::from(changed & (counts[lane] > 1));
        }
        *alone += u64::from(ones);
        *shared += u64::from(others);
    }
}

#[inline(always)]
#[expect(clippy::eq_op, reason = "only NaN differs from itself")]
fn changed<T: Real>(delta: T, threshold: T) -> bool {
    (delta.abs() > threshold) | (delta != delta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, rows, same};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_one_entry_at_a_time((length, rows, weights) in rows(any()), least in 0.0_f32..1.0) {
            let models = weights.len();
            let thresholds: Vec<f32> = (0..models).map(|i| least * (i + 1) as f32).collect();
            let mut out = vec![7.0; length];
            mean_of_changed(&rows, &thresholds, &weights, &mut out);
            let (mut alone, mut shared) = (vec![1; models], vec![2; models]);
            count_changed(&rows, &thresholds, length, &mut alone, &mut shared);
            let (mut ones, mut others) = (vec![1; models], vec![2; models]);
            for (j, &found) in out.iter().enumerate() {
                let entry = |i: usize| rows[i * length + j];
                let changes = |&i: &usize| entry(i).is_nan() || entry(i).abs() > thresholds[i];
                let changed: Vec<usize> = (0..models).filter(changes).collect();
                let expected = match changed[..] {
                    [] => 0.0,
                    // A sum that starts at +0 has no other zero.
                    [one] => 0.0 + weights[one] * entry(one),
                    _ => changed.iter().map(|&i| entry(i)).sum::<f32>() / changed.len() as f32,
                };
                prop_assert!(same(&[found], &[expected]) || (found == 0.0 && expected == 0.0));
                for i in &changed {
                    if changed.len() == 1 { ones[*i] += 1 } else { others[*i] += 1 }
                }
            }
            prop_assert_eq!((alone, shared), (ones, others));
        }
    }
}
