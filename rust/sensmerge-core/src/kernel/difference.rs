//! Comparison of two vectors of float64: counts of entries, sums of products, and the largest
//! difference. Counts are exact up to 2^53; sums have the fixed shape of [`sum`](super::sum).

use super::sum::sum;
use crate::processor::widest;

const LANES: usize = 16;

/// Number of entries that differ. NaN equals NaN, and 0 equals −0.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn changed(a: &[f64], b: &[f64]) -> f64 {
    sum(a, b, |a, b| f64::from(u8::from(a != b && !(a.is_nan() && b.is_nan()))))
}

/// Number of entries that are zero in neither.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn signed(a: &[f64], b: &[f64]) -> f64 {
    sum(a, b, |a, b| f64::from(u8::from(a != 0.0 && b != 0.0)))
}

/// Number of entries that are zero in neither and of one sign in both.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn agreeing(a: &[f64], b: &[f64]) -> f64 {
    sum(a, b, |a, b| f64::from(u8::from((a > 0.0 && b > 0.0) || (a < 0.0 && b < 0.0))))
}

/// `Σ_j a_j · b_j`.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn product(a: &[f64], b: &[f64]) -> f64 {
    sum(a, b, |a, b| a * b)
}

widest! {
    /// `max_j |a_j − b_j|`, 0 for no entries; NaN is passed over.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn largest(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        let mut lanes = [0.0_f64; LANES];
        let (whole_a, rest_a) = a.as_chunks::<LANES>();
        let (whole_b, rest_b) = b.as_chunks::<LANES>();
        for (a, b) in whole_a.iter().zip(whole_b) {
            for lane in 0..LANES {
                let difference = (a[lane] - b[lane]).abs();
                lanes[lane] = if difference > lanes[lane] { difference } else { lanes[lane] };
            }
        }
        for ((lane, a), b) in lanes.iter_mut().zip(rest_a).zip(rest_b) {
            *lane = lane.max((a - b).abs());
        }
        lanes.into_iter().fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, finite, vector};
    use proptest::prelude::*;

    fn count(a: &[f64], b: &[f64], of: impl Fn(f64, f64) -> bool) -> f64 {
        a.iter().zip(b).filter(|&(&a, &b)| of(a, b)).count() as f64
    }

    proptest! {
        #[test]
        fn counts(values in vector(any())) {
            let a: Vec<f64> = values.iter().map(|&value| value.into()).collect();
            let b: Vec<f64> = values.iter().rev().map(|&value| value.into()).collect();
            let different = |a: f64, b: f64| !(a == b || (a.is_nan() && b.is_nan()));
            prop_assert_eq!(changed(&a, &b), count(&a, &b, different));
            prop_assert_eq!(signed(&a, &b), count(&a, &b, |a, b| a != 0.0 && b != 0.0));
            let sign = |value: f64| if value == 0.0 { 0.0 } else { value.signum() };
            let same = |a: f64, b: f64| sign(a) * sign(b) == 1.0 && !a.is_nan() && !b.is_nan();
            prop_assert_eq!(agreeing(&a, &b), count(&a, &b, same));
            let most = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).filter(|most| !most.is_nan());
            prop_assert_eq!(largest(&a, &b), most.fold(0.0, f64::max));
        }

        #[test]
        fn products(values in vector(finite())) {
            let a: Vec<f64> = values.iter().map(|&value| value.into()).collect();
            let b: Vec<f64> = a.iter().rev().copied().collect();
            let expected: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            let bound: f64 = a.iter().zip(&b).map(|(a, b)| (a * b).abs()).sum();
            prop_assert!((product(&a, &b) - expected).abs() <= 1e-12 * bound);
        }
    }
}
