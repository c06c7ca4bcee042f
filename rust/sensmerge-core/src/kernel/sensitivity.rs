//! Sensitivity: `|θ_j · g_j|` estimates, to first order, how much the loss would change if the
//! parameter `θ_j` were set to 0 (Sens-Merging, Eq. 1 and 2). Its sum over a layer enters Eq. 3, and so
//! does that of `g_j²`, the diagonal of the empirical Fisher information, where it is asked for instead.

use super::sum::{sum, sum_stored};
use crate::dtype::{Float, Real};

/// `Σ_j |θ_j · g_j|`: products in the computing type, sums in float64, added in the fixed shape of
/// [`sum`](super::sum).
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn sum_abs_product<T: Real>(theta: &[T], gradient: &[T]) -> f64 {
    sum(theta, gradient, term)
}

/// The same, bit for bit, of stored little-endian entries of one dtype.
///
/// # Panics
/// If the lengths differ or are not a whole number of entries.
#[must_use]
pub fn sum_abs_product_stored<T: Real>(dtype: Float, theta: &[u8], gradient: &[u8]) -> f64 {
    sum_stored(dtype, theta, gradient, term::<T>)
}

/// `Σ_j g_j²`: squares and sums in float64, added in the fixed shape of [`sum`](super::sum).
#[must_use]
pub fn sum_squares<T: Real>(gradient: &[T]) -> f64 {
    sum(gradient, gradient, square)
}

/// The same, bit for bit, of stored little-endian entries.
///
/// # Panics
/// If the length is not a whole number of entries.
#[must_use]
pub fn sum_squares_stored<T: Real>(dtype: Float, gradient: &[u8]) -> f64 {
    sum_stored(dtype, gradient, gradient, square::<T>)
}

#[inline]
fn square<T: Real>(value: T, _: T) -> f64 {
    let value = value.to_f64();
    value * value
}

#[inline]
fn term<T: Real>(theta: T, gradient: T) -> f64 {
    (theta * gradient).abs().to_f64()
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

        #[test]
        fn squares_and_their_sums_are_float64(gradient in vector(finite())) {
            let expected: f64 = gradient.iter().map(|&value| f64::from(value).powi(2)).sum();
            let found = sum_squares(&gradient);
            prop_assert!((found - expected).abs() <= 1e-12 * expected);
        }

        #[test]
        fn stored_entries_give_the_same_bits(theta in vector(finite())) {
            let gradient: Vec<f32> = theta.iter().rev().map(|value| value * 0.3).collect();
            for dtype in [Float::F16, Float::Bf16, Float::F32, Float::F64] {
                let stored = |values: &[f32]| {
                    let mut bytes = vec![0; values.len() * dtype.size()];
                    f32::narrow(values, dtype, &mut bytes);
                    let mut wide = vec![0.0_f32; values.len()];
                    f32::widen(dtype, &bytes, &mut wide);
                    (bytes, wide)
                };
                let ((theta, wide_theta), (gradient, wide)) = (stored(&theta), stored(&gradient));
                let expected = sum_abs_product(&wide_theta, &wide);
                let found = sum_abs_product_stored::<f32>(dtype, &theta, &gradient);
                prop_assert_eq!(found.to_bits(), expected.to_bits());
                let squares = sum_squares_stored::<f32>(dtype, &gradient);
                prop_assert_eq!(squares.to_bits(), sum_squares(&wide).to_bits());
            }
        }
    }

    #[test]
    fn squares_of_small_gradients_do_not_vanish() {
        assert_eq!(sum_squares(&[1e-30_f32; 2]), 2.0 * f64::from(1e-30_f32).powi(2));
        assert!(sum_squares(&[1.0_f32, f32::NAN]).is_nan());
    }
}
