//! First-order sensitivity: how much the loss would change without a parameter (Sens-Merging,
//! Eq. 1 and 2).

use super::sum::sum;
use crate::dtype::Real;

/// `Σ_j |θ_j · g_j|`: products in the computing type, sums in float64, of a fixed shape.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn sum_abs_product<T: Real>(theta: &[T], gradient: &[T]) -> f64 {
    sum(theta, gradient, |theta, gradient| (theta * gradient).abs().to_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{finite, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_are_float32_and_sums_float64(theta in vector(finite())) {
            let gradient: Vec<f32> = theta.iter().rev().map(|value| value * 0.3).collect();
            let terms = theta.iter().zip(&gradient).map(|(&t, &g)| f64::from((t * g).abs()));
            let expected: f64 = terms.sum();
            let found = sum_abs_product(&theta, &gradient);
            prop_assert!((found - expected).abs() <= 1e-12 * expected);
        }
    }
}
