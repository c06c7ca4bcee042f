//! Sensitivity: `|θ_j · g_j|` estimates, to first order, how much the loss would change if the
//! parameter `θ_j` were set to 0 (Sens-Merging, Eq. 1 and 2). Its sum over a layer enters Eq. 3.

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
            }
        }
    }
}
