//! Squared L2 distance; between logits in the alignment of Sens-Merging (Eq. 4).

use super::sum::{sum, sum_stored};
use crate::dtype::{Float, Real};

/// `Σ_j (a_j − b_j)²`: differences in the computing type, squares and sums in float64, added in the
/// fixed shape of [`sum`](super::sum).
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn squared_distance<T: Real>(a: &[T], b: &[T]) -> f64 {
    sum(a, b, term)
}

/// The same, bit for bit, of stored little-endian entries of one dtype.
///
/// # Panics
/// If the lengths differ or are not a whole number of entries.
#[must_use]
pub fn squared_distance_stored<T: Real>(dtype: Float, a: &[u8], b: &[u8]) -> f64 {
    sum_stored(dtype, a, b, term::<T>)
}

#[inline]
fn term<T: Real>(a: T, b: T) -> f64 {
    let difference = (a - b).to_f64();
    difference * difference
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{finite, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn differences_are_float32_and_sums_float64(a in vector(finite())) {
            let b: Vec<f32> = a.iter().rev().copied().collect();
            let expected: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            prop_assert!((squared_distance(&a, &b) - expected).abs() <= 1e-12 * expected);
            prop_assert_eq!(squared_distance(&a, &a), 0.0);

            let bytes = |values: &[f32]| -> Vec<u8> {
                values.iter().flat_map(|value| value.to_le_bytes()).collect()
            };
            let stored = squared_distance_stored::<f32>(Float::F32, &bytes(&a), &bytes(&b));
            prop_assert_eq!(stored.to_bits(), squared_distance(&a, &b).to_bits());
        }
    }
}
