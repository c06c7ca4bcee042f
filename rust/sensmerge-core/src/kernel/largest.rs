//! The entry of the largest magnitude among several rows (`MagMax`, Marczak et al. 2024), or among those of
//! an elected sign (EMR-Merging, Huang et al. 2024).

use super::disjoint::agrees;
use super::elect::LANES;
use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// `out_j = w_i δ_ij` of the row i where its magnitude is largest, of equal ones the first. NaN counts
    /// as larger than any number. `deltas` holds one row of `out.len()` entries per weight.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn largest<T: Real>(deltas: &[T], weights: &[T], out: &mut [T]) {
        let length = out.len();
        assert_eq!(deltas.len(), weights.len() * length);
        let rows = Rows { deltas, weights, length };
        let (strips, rest) = out.as_chunks_mut::<LANES>();
        let whole = strips.len() * LANES;
        for (place, out) in strips.iter_mut().enumerate() {
            *out = pick(&rows, place * LANES, |_, _| true);
        }
        for (place, out) in rest.iter_mut().enumerate() {
            [*out] = pick(&rows, whole + place, |_, _| true);
        }
    }
}

widest! {
    /// The same among the rows whose `w_i δ_ij` has the sign `signs[j]`, 1 or −1; 0 where none has it.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn largest_agreeing<T: Real>(
        deltas: &[T],
        weights: &[T],
        signs: &[T],
        out: &mut [T],
    ) {
        let length = out.len();
        assert_eq!(signs.len(), length);
        assert_eq!(deltas.len(), weights.len() * length);
        let rows = Rows { deltas, weights, length };
        let (strips, rest) = out.as_chunks_mut::<LANES>();
        let (whole, rest_signs) = signs.as_chunks::<LANES>();
        for (place, (out, signs)) in strips.iter_mut().zip(whole).enumerate() {
            *out = pick(&rows, place * LANES, |lane, vote| agrees(vote, signs[lane]));
        }
        let start = length - rest.len();
        for (place, (out, &sign)) in rest.iter_mut().zip(rest_signs).enumerate() {
            [*out] = pick(&rows, start + place, |_, vote| agrees(vote, sign));
        }
    }
}

struct Rows<'d, T> {
    deltas: &'d [T],
    weights: &'d [T],
    length: usize,
}

/// The picked values of the `N` entries from `start` on. `takes_part` is called with the lane and the
/// weighted entry.
#[inline(always)]
fn pick<const N: usize, T: Real>(
    rows: &Rows<T>,
    start: usize,
    takes_part: impl Fn(usize, T) -> bool,
) -> [T; N] {
    let mut found = [T::ZERO; N];
    for (row, &weight) in rows.weights.iter().enumerate() {
        let deltas = &rows.deltas[row * rows.length + start..][..N];
        for lane in 0..N {
            let vote = weight * deltas[lane];
            let larger = vote.magnitude() > found[lane].magnitude();
            found[lane] = if larger & takes_part(lane, vote) { vote } else { found[lane] };
        }
    }
    found
}

widest! {
    /// Replace row i of `deltas` by `∂out_j/∂w_i`, where `out` is the result of [`largest`], or of
    /// [`largest_agreeing`] if there are signs: `δ_ij` in the row that was picked, 0 in the others.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn largest_derivative<T: Real>(deltas: &mut [T], weights: &[T], signs: Option<&[T]>) {
        let length = deltas.len() / weights.len().max(1);
        assert_eq!(deltas.len(), weights.len() * length);
        assert!(signs.is_none_or(|signs| signs.len() == length));
        for j in 0..length {
            let (mut found, mut picked) = (T::ZERO, weights.len());
            for (row, &weight) in weights.iter().enumerate() {
                let vote = weight * deltas[row * length + j];
                let takes_part = signs.is_none_or(|signs| agrees(vote, signs[j]));
                if takes_part && vote.magnitude() > found.magnitude() {
                    (found, picked) = (vote, row);
                }
            }
            for row in 0..weights.len() {
                let delta = &mut deltas[row * length + j];
                *delta = delta.only_if(row == picked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, rows, same};
    use proptest::prelude::*;

    /// The row that is picked for entry `j`; none if all candidates are 0.
    fn naive(rows: &[f32], weights: &[f32], length: usize, j: usize, sign: f32) -> Option<usize> {
        let vote = |i: usize| weights[i] * rows[i * length + j];
        let candidates = (0..weights.len()).filter(|&i| {
            let vote = vote(i);
            vote.is_nan() || sign == 0.0 || (vote > 0.0) == (sign > 0.0)
        });
        let size = |i: usize| if vote(i).is_nan() { f64::INFINITY } else { vote(i).abs().into() };
        let mut found: Option<usize> = None;
        for i in candidates {
            let nan = found.is_some_and(|found| vote(found).is_nan());
            let larger = size(i) > found.map_or(0.0, size) || vote(i).is_nan();
            if larger && !nan {
                found = Some(i);
            }
        }
        found
    }

    proptest! {
        #[test]
        fn the_first_of_the_largest((length, rows, weights) in rows(any()), seed in 0..2_usize) {
            let signs: Vec<f32> = (0..length).map(|j| [1.0, -1.0][(j * 7 + seed) % 2]).collect();
            let (mut out, mut agreeing) = (vec![7.0; length], vec![7.0; length]);
            largest(&rows, &weights, &mut out);
            largest_agreeing(&rows, &weights, &signs, &mut agreeing);
            let mut derivative = rows.clone();
            largest_derivative(&mut derivative, &weights, None);
            let mut of_agreeing = rows.clone();
            largest_derivative(&mut of_agreeing, &weights, Some(&signs));
            for j in 0..length {
                let picked = naive(&rows, &weights, length, j, 0.0);
                let of = |picked: Option<usize>| {
                    picked.map_or(0.0, |i| weights[i] * rows[i * length + j])
                };
                prop_assert!(same(&[out[j]], &[of(picked)]), "{} {:?}", out[j], picked);
                let of_sign = naive(&rows, &weights, length, j, signs[j]);
                prop_assert!(same(&[agreeing[j]], &[of(of_sign)]));
                for i in 0..weights.len() {
                    let kept = |picked| if picked == Some(i) { rows[i * length + j] } else { 0.0 };
                    prop_assert!(same(&[derivative[i * length + j]], &[kept(picked)]));
                    prop_assert!(same(&[of_agreeing[i * length + j]], &[kept(of_sign)]));
                }
            }
        }
    }
}
