//! How far two vectors are apart as distributions, and scores made of it.

use super::elementary::{exp, ln};
use super::sum::sum;
use crate::dtype::Real;
use crate::processor::widest;

/// Added to every probability.
const SMOOTHING: f64 = 1e-8;

/// `Σ_j p_j ln(p_j / q_j)`, where p and q are the softmax of `other` and `base`, each entry larger by 1e-8;
/// 0 where rounding leaves less. NaN and infinite entries make it NaN.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn softmax_divergence<T: Real>(base: &[T], other: &[T]) -> f64 {
    let (high_base, high_other) = (largest(base), largest(other));
    let total =
        |values: &[T], high: f64| sum(values, values, |value, _| exp(value.to_f64() - high));
    let (total_base, total_other) = (total(base, high_base), total(other, high_other));
    let found = sum(base, other, |base, other| {
        let p = exp(other.to_f64() - high_other) / total_other + SMOOTHING;
        let q = exp(base.to_f64() - high_base) / total_base + SMOOTHING;
        p * ln(p / q)
    });
    if found < 0.0 { 0.0 } else { found }
}

fn largest<T: Real>(values: &[T]) -> f64 {
    values.iter().fold(f64::NEG_INFINITY, |high, value| {
        let value = value.to_f64();
        if value > high { value } else { high }
    })
}

widest! {
    /// `scores_j ← |scores_j| · factor`.
    pub fn importance<T: Real>(scores: &mut [T], factor: T) {
        for score in scores {
            *score = score.abs() * factor;
        }
    }
}

widest! {
    /// Set entries to 0 whose importance, `|δ_j| · factor`, is below the threshold or NaN.
    pub fn keep_important<T: Real>(delta: &mut [T], factor: T, threshold: T) {
        for delta in delta {
            *delta = delta.only_if(delta.abs() * factor >= threshold);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, finite, same, vector};
    use proptest::prelude::*;

    fn naive(base: &[f32], other: &[f32]) -> f64 {
        let softmax = |values: &[f32]| -> Vec<f64> {
            let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f64> =
                values.iter().map(|&value| (f64::from(value) - f64::from(high)).exp()).collect();
            let total: f64 = powers.iter().sum();
            powers.into_iter().map(|power| power / total + 1e-8).collect()
        };
        let (p, q) = (softmax(other), softmax(base));
        p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum()
    }

    proptest! {
        #[test]
        fn as_with_the_platforms_functions(base in vector(finite()), scale in 0.0_f32..30.0) {
            let other: Vec<f32> = base.iter().rev().map(|value| value * scale).collect();
            let found = softmax_divergence(&base, &other);
            let expected = naive(&base, &other);
            prop_assert!((found - expected).abs() <= 1e-12 * (1.0 + expected), "{found} {expected}");
            prop_assert!(softmax_divergence(&base, &base) < 1e-15);
        }

        #[test]
        fn small_scores_are_dropped(
            values in vector(any()), factor in 0.0_f32..2.0, threshold in 0.0_f32..2.0,
        ) {
            let mut scores = values.clone();
            importance(&mut scores, factor);
            let mut kept = values.clone();
            keep_important(&mut kept, factor, threshold);
            let expected: Vec<f32> = scores
                .iter()
                .zip(&values)
                .map(|(&score, &value)| if score >= threshold { value } else { 0.0 })
                .collect();
            prop_assert!(same(&kept, &expected));
        }
    }

    #[test]
    fn what_is_not_finite_makes_it_nan() {
        for wrong in [f32::NAN, f32::INFINITY] {
            assert!(softmax_divergence(&[1.0, wrong, 2.0], &[1.0, 2.0, 3.0]).is_nan());
            assert!(softmax_divergence(&[1.0, 0.5, 2.0], &[1.0, wrong, 3.0]).is_nan());
        }
        assert_eq!(softmax_divergence::<f32>(&[], &[]), 0.0);
        assert_eq!(softmax_divergence(&[3.0_f32], &[900.0]), 0.0);
    }
}
