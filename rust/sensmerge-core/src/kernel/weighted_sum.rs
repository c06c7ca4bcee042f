//! Weighted sums of rows, and the scaling of rows.

use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// `out_j = Σ_i w_i x_ij`, added in row order. `rows` holds one row of `out.len()` entries per
    /// weight; without weights the sum is 0.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn weighted_sum<T: Real>(rows: &[T], weights: &[T], out: &mut [T]) {
        assert_eq!(rows.len(), weights.len() * out.len());
        if out.is_empty() {
            return;
        }
        let mut rows = rows.chunks_exact(out.len()).zip(weights);
        let Some((first, &weight)) = rows.next() else {
            return out.fill(T::ZERO);
        };
        for (out, &x) in out.iter_mut().zip(first) {
            *out = weight * x;
        }
        for (row, &weight) in rows {
            for (out, &x) in out.iter_mut().zip(row) {
                *out += weight * x;
            }
        }
    }
}

widest! {
    /// `out_j ← out_j + w_j x_j`: add one row to a sum whose weights differ from entry to entry.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_product<T: Real>(row: &[T], weights: &[T], out: &mut [T]) {
        assert_eq!((row.len(), weights.len()), (out.len(), out.len()));
        for ((out, &x), &weight) in out.iter_mut().zip(row).zip(weights) {
            *out += weight * x;
        }
    }
}

widest! {
    /// `sum_j ← θ_j + λ sum_j`: scale the merged task vector and add it to the base.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn scale_and_add<T: Real>(base: &[T], lambda: T, sum: &mut [T]) {
        assert_eq!(base.len(), sum.len());
        for (sum, &base) in sum.iter_mut().zip(base) {
            *sum = base + lambda * *sum;
        }
    }
}

widest! {
    /// `sum_j ← θ_j + λ f_j sum_j`: the same where every entry has a factor of its own.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn scale_damp_and_add<T: Real>(base: &[T], lambda: T, factors: &[T], sum: &mut [T]) {
        assert_eq!((base.len(), factors.len()), (sum.len(), sum.len()));
        for ((sum, &base), &factor) in sum.iter_mut().zip(base).zip(factors) {
            *sum = base + lambda * *sum * factor;
        }
    }
}

widest! {
    /// Divide every entry by `divisor`.
    pub fn divide<T: Real>(values: &mut [T], divisor: T) {
        for value in values {
            *value = *value / divisor;
        }
    }
}

widest! {
    /// Multiply every entry by `factor`.
    pub fn multiply<T: Real>(values: &mut [T], factor: T) {
        for value in values {
            *value = *value * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, rows, same, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_in_row_order((length, rows, weights) in rows(any())) {
            let mut out = vec![7.0; length];
            weighted_sum(&rows, &weights, &mut out);
            for j in 0..length {
                let mut expected = weights[0] * rows[j];
                for i in 1..weights.len() {
                    expected += weights[i] * rows[i * length + j];
                }
                prop_assert!(same(&[out[j]], &[expected]));
            }
        }

        #[test]
        fn scaled_and_divided(values in vector(any()), factor in -3.0_f32..3.0) {
            let base: Vec<f32> = values.iter().rev().copied().collect();
            let (mut added, mut divided, mut multiplied) =
                (values.clone(), values.clone(), values.clone());
            let mut products = values.clone();
            add_product(&base, &base, &mut products);
            scale_and_add(&base, factor, &mut added);
            divide(&mut divided, factor);
            multiply(&mut multiplied, factor);
            for j in 0..values.len() {
                prop_assert!(same(&[added[j]], &[base[j] + factor * values[j]]));
                prop_assert!(same(&[products[j]], &[values[j] + base[j] * base[j]]));
                prop_assert!(same(&[divided[j]], &[values[j] / factor]));
                prop_assert!(same(&[multiplied[j]], &[values[j] * factor]));
            }
        }
    }

    #[test]
    fn no_rows_sum_to_zero() {
        let mut out = [1.0_f32; 3];
        weighted_sum(&[], &[], &mut out);
        assert_eq!(out, [0.0; 3]);
    }
}
