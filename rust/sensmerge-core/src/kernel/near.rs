//! A step from one model towards another that is larger where they are near each other.

use crate::dtype::Real;
use crate::processor::widest;

/// A smaller difference counts as this one.
const SMALLEST_DIFFERENCE: f64 = 1e-6;

widest! {
    /// `out_j = w_j δ_j` with `w_j = t / max(|δ_j|, 1e-6)`, at least 0 and at most 1: the difference
    /// itself where it is at most `t`, otherwise a step of length `t`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn near<T: Real>(delta: &[T], t: T, out: &mut [T]) {
        assert_eq!(delta.len(), out.len());
        let smallest = T::from_f64(SMALLEST_DIFFERENCE);
        for (out, &delta) in out.iter_mut().zip(delta) {
            let difference = delta.abs();
            let difference = if difference < smallest { smallest } else { difference };
            let weight = t / difference;
            let weight = if weight > T::ONE { T::ONE } else { weight };
            let weight = if weight < T::ZERO { T::ZERO } else { weight };
            *out = weight * delta;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, same, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entry_by_entry(values in vector(any()), t in -0.5_f32..3.0) {
            let mut out = vec![7.0; values.len()];
            near(&values, t, &mut out);
            let expected: Vec<f32> = values
                .iter()
                .map(|&value| value * (t / value.abs().max(1e-6)).clamp(0.0, 1.0))
                .collect();
            prop_assert!(same(&out, &expected));
            if t >= 0.0 {
                // Beyond this a weight is subnormal.
                for (&out, &value) in out.iter().zip(&values).filter(|(_, value)| value.abs() < 1e9) {
                    prop_assert!(out.abs() <= value.abs().min(t * 1.000_001), "{out} {value}");
                }
            }
        }
    }
}
