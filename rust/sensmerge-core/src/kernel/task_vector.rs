//! Task vectors: `δ = θ − θ₀`.

use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// Turn an expert's entries into those of its task vector, in place.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn subtract<T: Real>(expert: &mut [T], base: &[T]) {
        assert_eq!(expert.len(), base.len());
        for (expert, &base) in expert.iter_mut().zip(base) {
            *expert = *expert - base;
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
        fn entry_by_entry(expert in vector(any()), shift in any()) {
            let base: Vec<f32> = expert.iter().rev().map(|value| value * 0.5 + shift).collect();
            let mut delta = expert.clone();
            subtract(&mut delta, &base);
            let expected: Vec<f32> = (0..base.len()).map(|j| expert[j] - base[j]).collect();
            prop_assert!(same(&delta, &expected));
        }
    }
}
