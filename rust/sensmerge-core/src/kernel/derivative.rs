//! Derivatives of merged entries by the weights of the merge.

use super::disjoint::{Agreement, Divisor, agrees};
use super::sum::sum;
use crate::dtype::Real;
use crate::processor::widest;

/// `Σ_j a_j b_j`: products and sums in float64, added in the fixed shape of [`sum`](super::sum).
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    sum(a, b, |a, b| a.to_f64() * b.to_f64())
}

widest! {
    /// Replace row i of `deltas` by `∂out_j/∂w_i`, where `out` is the result of
    /// [`disjoint`](super::disjoint::disjoint) for the same arguments and the signs are held fixed.
    ///
    /// With `m_ij` = 1 where row i takes part in entry j (else 0) and the divisor `d_j`, the derivative
    /// is `m_ij (δ_ij − out_j) / d_j` for [`Divisor::Weights`], and `m_ij δ_ij / d_j` for the others.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn disjoint_derivative<T: Real>(
        deltas: &mut [T],
        weights: &[T],
        signs: &[T],
        agreement: Agreement,
        divisor: Divisor,
        out: &[T],
    ) {
        let length = out.len();
        assert_eq!(signs.len(), length);
        assert_eq!(deltas.len(), weights.len() * length);
        for (j, (&sign, &out)) in signs.iter().zip(out).enumerate() {
            let vote = |weight: T| if agreement == Agreement::Weighted { weight } else { T::ONE };
            let takes_part = |delta: T, weight: T| agrees(vote(weight) * delta, sign);
            let mut total = T::ZERO;
            for (row, &weight) in weights.iter().enumerate() {
                let share = if divisor == Divisor::Count { T::ONE } else { weight };
                total += share.only_if(takes_part(deltas[row * length + j], weight));
            }
            let divides = divisor != Divisor::One && total != T::ZERO;
            let through = if divides && divisor == Divisor::Weights { out } else { T::ZERO };
            let total = if divides { total } else { T::ONE };
            for (row, &weight) in weights.iter().enumerate() {
                let delta = &mut deltas[row * length + j];
                let takes_part = takes_part(*delta, weight);
                *delta = ((*delta - through) / total).only_if(takes_part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::disjoint::disjoint;
    use crate::kernel::samples::{finite, rows, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_are_summed(a in vector(finite())) {
            let b: Vec<f32> = a.iter().rev().copied().collect();
            let terms = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b));
            let (expected, size) =
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            prop_assert!((dot(&a, &b) - expected).abs() <= 1e-12 * size);
        }

        #[test]
        fn as_finite_differences((length, rows, weights) in rows(finite()), seed in 0..3_usize) {
            let rows: Vec<f64> = rows.into_iter().map(f64::from).collect();
            // Weights of at least 0.5, so that their sums do not vanish.
            let weights: Vec<f64> = weights.iter().map(|&w| f64::from(w.abs()) + 0.5).collect();
            let signs: Vec<f64> =
                (0..length).map(|j| [1.0, -1.0, 0.0][(j * 7 + seed) % 3]).collect();
            for agreement in [Agreement::Weighted, Agreement::Unweighted] {
                for divisor in [Divisor::One, Divisor::Weights, Divisor::Count] {
                    let merged = |weights: &[f64]| {
                        let mut out = vec![0.0; length];
                        disjoint(&rows, weights, &signs, agreement, divisor, &mut out);
                        out
                    };
                    let mut found = rows.clone();
                    let out = merged(&weights);
                    disjoint_derivative(
                        &mut found, &weights, &signs, agreement, divisor, &out,
                    );
                    for i in 0..weights.len() {
                        let step = 1e-6;
                        let mut near = weights.clone();
                        near[i] += step;
                        let above = merged(&near);
                        near[i] -= 2.0 * step;
                        let below = merged(&near);
                        for j in 0..length {
                            let expected = (above[j] - below[j]) / (2.0 * step);
                            let found = found[i * length + j];
                            prop_assert!((found - expected).abs() < 1e-6, "{found} {expected}");
                        }
                    }
                }
            }
        }
    }
}
