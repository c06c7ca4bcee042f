//! The disjoint sum and mean: only experts whose vote has the elected sign take part (TIES, Yadav et
//! al. 2023, §4.2).

use crate::dtype::Real;
use crate::processor::widest;

/// Entries merged at a time, so that their sums stay in registers.
const LANES: usize = 16;

/// The vote of an expert, whose sign is compared with the elected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// `w_i δ_ij`.
    Weighted,
    /// `δ_ij`.
    Unweighted,
}

/// The divisor of the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divisor {
    /// 1.
    One,
    /// The sum of the weights of the experts that take part.
    Weights,
    /// The same, or [`SMALLEST_DIVISOR`] where it is less. No weight is negative.
    AtLeastSmallest,
    /// The number of experts that take part.
    Count,
}

/// The least divisor of [`Divisor::AtLeastSmallest`].
pub const SMALLEST_DIVISOR: f64 = 1e-6;

widest! {
    /// `out_j = Σ_i w_i δ_ij / divisor` over the rows i whose vote agrees with `signs[j]` (1, −1 or 0),
    /// added in row order. `deltas` holds one row of `out.len()` entries per weight.
    ///
    /// A divisor of 0, as where no row agrees, is replaced by 1. A vote of 0 agrees with no sign, and
    /// nothing agrees with a sign of 0. A vote of NaN always takes part, so that it reaches the output.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn disjoint<T: Real>(
        deltas: &[T],
        weights: &[T],
        signs: &[T],
        agreement: Agreement,
        divisor: Divisor,
        out: &mut [T],
    ) {
        let length = out.len();
        assert_eq!(signs.len(), length);
        assert_eq!(deltas.len(), weights.len() * length);
        let (strips, rest) = out.as_chunks_mut::<LANES>();
        let (whole, rest_signs) = signs.as_chunks::<LANES>();
        let rows = Rows { deltas, weights, length, agreement, divisor };
        for (place, (out, signs)) in strips.iter_mut().zip(whole).enumerate() {
            *out = join(&rows, place * LANES, signs);
        }
        let start = length - rest.len();
        for (place, (out, &sign)) in rest.iter_mut().zip(rest_signs).enumerate() {
            [*out] = join(&rows, start + place, &[sign]);
        }
    }
}

struct Rows<'d, T> {
    deltas: &'d [T],
    weights: &'d [T],
    length: usize,
    agreement: Agreement,
    divisor: Divisor,
}

/// The merged values of the `N` entries from `start` on.
#[inline(always)]
fn join<const N: usize, T: Real>(rows: &Rows<T>, start: usize, signs: &[T; N]) -> [T; N] {
    let (mut sums, mut totals) = ([T::ZERO; N], [T::ZERO; N]);
    for (row, &weight) in rows.weights.iter().enumerate() {
        let share = if rows.divisor == Divisor::Count { T::ONE } else { weight };
        let vote = if rows.agreement == Agreement::Weighted { weight } else { T::ONE };
        let deltas = &rows.deltas[row * rows.length + start..][..N];
        for lane in 0..N {
            let agrees = agrees(vote * deltas[lane], signs[lane]);
            sums[lane] += (weight * deltas[lane]).only_if(agrees);
            totals[lane] += share.only_if(agrees);
        }
    }
    match rows.divisor {
        Divisor::One => {}
        Divisor::Weights | Divisor::Count => {
            for (sum, &total) in sums.iter_mut().zip(&totals) {
                *sum = *sum / if total == T::ZERO { T::ONE } else { total };
            }
        }
        Divisor::AtLeastSmallest => {
            let smallest = T::from_f64(SMALLEST_DIVISOR);
            for (sum, &total) in sums.iter_mut().zip(&totals) {
                *sum = *sum / if total < smallest { smallest } else { total };
            }
        }
    }
    sums
}

/// Whether a vote takes part: it has the sign, or it is NaN. With a sign of 0 the product is 0, or NaN
/// for an infinite vote, and the comparison is false either way.
#[inline(always)]
#[expect(clippy::eq_op, reason = "only NaN differs from itself")]
pub(super) fn agrees<T: Real>(vote: T, sign: T) -> bool {
    (vote * sign > T::ZERO) | (vote != vote)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, rows, same};
    use proptest::prelude::*;

    fn naive(
        column: &[f32],
        weights: &[f32],
        sign: f32,
        agreement: Agreement,
        divisor: Divisor,
    ) -> f32 {
        let (mut sum, mut share) = (0.0, 0.0);
        for (&delta, &weight) in column.iter().zip(weights) {
            let vote = if agreement == Agreement::Weighted { weight * delta } else { delta };
            let agrees = (sign > 0.0 && vote > 0.0) || (sign < 0.0 && vote < 0.0);
            if agrees || vote.is_nan() {
                sum += weight * delta;
                share += match divisor {
                    Divisor::One => 0.0,
                    Divisor::Weights | Divisor::AtLeastSmallest => weight,
                    Divisor::Count => 1.0,
                };
            }
        }
        match divisor {
            Divisor::One => sum,
            Divisor::AtLeastSmallest => sum / share.max(1e-6),
            Divisor::Weights | Divisor::Count if share == 0.0 => sum,
            Divisor::Weights | Divisor::Count => sum / share,
        }
    }

    proptest! {
        #[test]
        fn only_those_that_agree((length, rows, weights) in rows(any()), seed in 0..3_usize) {
            let signs: Vec<f32> = (0..length).map(|j| [1.0, -1.0, 0.0][(j * 7 + seed) % 3]).collect();
            for agreement in [Agreement::Weighted, Agreement::Unweighted] {
                for divisor in
                    [Divisor::One, Divisor::Weights, Divisor::AtLeastSmallest, Divisor::Count]
                {
                    let mut out = vec![7.0; length];
                    disjoint(&rows, &weights, &signs, agreement, divisor, &mut out);
                    for j in 0..length {
                        let column: Vec<f32> =
                            (0..weights.len()).map(|i| rows[i * length + j]).collect();
                        let expected = naive(&column, &weights, signs[j], agreement, divisor);
                        prop_assert!(same(&[out[j]], &[expected]), "{} {}", out[j], expected);
                    }
                }
            }
        }
    }
}
