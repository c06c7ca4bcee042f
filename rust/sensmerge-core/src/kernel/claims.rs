//! Sums of the entries that several experts claim (Consensus Task Arithmetic, Wang et al. 2024).
//!
//! With `v_ij = w_i δ_ij` and `V_j = Σ_i v_ij`, expert i claims entry j if `|v_ij| > f_i |V_j − v_ij|`: if its
//! own part outweighs what the others add. Where that difference is NaN, it counts as claimed, so that NaN
//! reaches the output.

use super::elect::LANES;
use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// `out_j = V_j` where at least `least` rows claim entry j, else 0. `deltas` holds one row of
    /// `out.len()` entries per weight, and `factors` one `f_i` per weight.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn claimed_sum<T: Real>(
        deltas: &[T],
        weights: &[T],
        factors: &[T],
        least: T,
        out: &mut [T],
    ) {
        let length = out.len();
        assert_eq!(deltas.len(), weights.len() * length);
        assert_eq!(factors.len(), weights.len());
        let (strips, rest) = out.as_chunks_mut::<LANES>();
        let whole = strips.len() * LANES;
        for (place, out) in strips.iter_mut().enumerate() {
            let start = place * LANES;
            let (sums, counts) = claims::<LANES, T>(deltas, weights, factors, length, start);
            for lane in 0..LANES {
                out[lane] = sums[lane].only_if(counts[lane] >= least);
            }
        }
        for (place, out) in rest.iter_mut().enumerate() {
            let ([sum], [count]) = claims::<1, T>(deltas, weights, factors, length, whole + place);
            *out = sum.only_if(count >= least);
        }
    }
}

widest! {
    /// Set the entries of all rows to 0 where fewer than `least` rows claim them: `∂out_j/∂w_i` of
    /// [`claimed_sum`] for the same arguments, with the claims held fixed.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn keep_claimed<T: Real>(deltas: &mut [T], weights: &[T], factors: &[T], least: T) {
        let length = deltas.len() / weights.len().max(1);
        assert_eq!(deltas.len(), weights.len() * length);
        assert_eq!(factors.len(), weights.len());
        for j in 0..length {
            let (_, [count]) = claims::<1, T>(deltas, weights, factors, length, j);
            for row in 0..weights.len() {
                let delta = &mut deltas[row * length + j];
                *delta = delta.only_if(count >= least);
            }
        }
    }
}

/// The sums of the `N` entries from `start` on, and how many rows claim each.
#[inline(always)]
fn claims<const N: usize, T: Real>(
    deltas: &[T],
    weights: &[T],
    factors: &[T],
    length: usize,
    start: usize,
) -> ([T; N], [T; N]) {
    let (mut sums, mut counts) = ([T::ZERO; N], [T::ZERO; N]);
    for (row, &weight) in weights.iter().enumerate() {
        let deltas = &deltas[row * length + start..][..N];
        for lane in 0..N {
            sums[lane] += weight * deltas[lane];
        }
    }
    for (row, (&weight, &factor)) in weights.iter().zip(factors).enumerate() {
        let deltas = &deltas[row * length + start..][..N];
        for lane in 0..N {
            let own = weight * deltas[lane];
            let others = factor * (sums[lane] - own).abs();
            counts[lane] += T::ONE.only_if(outweighs(own.abs(), others));
        }
    }
    (sums, counts)
}

#[inline(always)]
#[expect(clippy::eq_op, reason = "only NaN differs from itself")]
fn outweighs<T: Real>(own: T, others: T) -> bool {
    (own > others) | (others != others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, rows, same};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_enough_rows_claim(
            (length, rows, weights) in rows(any()), factor in 0.0_f32..1.5, least in 0..4_u8,
        ) {
            let factors: Vec<f32> = (0..weights.len()).map(|i| factor + i as f32 / 8.0).collect();
            let least = f32::from(least);
            let mut out = vec![7.0; length];
            claimed_sum(&rows, &weights, &factors, least, &mut out);
            let mut kept = rows.clone();
            keep_claimed(&mut kept, &weights, &factors, least);
            for j in 0..length {
                let votes: Vec<f32> =
                    weights.iter().enumerate().map(|(i, w)| w * rows[i * length + j]).collect();
                let sum = votes.iter().fold(0.0, |sum, vote| sum + vote);
                let claims = votes.iter().zip(&factors).filter(|(vote, factor)| {
                    let others = *factor * (sum - *vote).abs();
                    others.is_nan() || vote.abs() > others
                });
                let enough = claims.count() as f32 >= least;
                let expected = sum.only_if(enough);
                prop_assert!(same(&[out[j]], &[expected]));
                for i in 0..weights.len() {
                    let place = i * length + j;
                    let expected = rows[place].only_if(enough);
                    prop_assert!(same(&[kept[place]], &[expected]));
                }
            }
        }
    }
}
