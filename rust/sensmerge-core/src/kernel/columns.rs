//! Sums by column.

use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// `sums_j ← sums_j + a_j b_j`: products and sums in float64.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_products<T: Real>(a: &[T], b: &[T], sums: &mut [f64]) {
        assert_eq!((a.len(), b.len()), (sums.len(), sums.len()));
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a.to_f64() * b.to_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{finite, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entry_by_entry(a in vector(finite())) {
            let b: Vec<f32> = a.iter().rev().copied().collect();
            let mut sums: Vec<f64> = (0..a.len()).map(|j| j as f64).collect();
            add_products(&a, &b, &mut sums);
            for j in 0..a.len() {
                prop_assert_eq!(sums[j], j as f64 + f64::from(a[j]) * f64::from(b[j]));
            }
        }
    }
}
