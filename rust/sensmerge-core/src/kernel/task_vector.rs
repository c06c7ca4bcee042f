//! Task vectors: `δ = θ − θ₀`.

use super::entries;
use crate::dtype::{Float, Real};
use crate::processor::widest;

/// Write the task vector of an expert's stored entries, of dtype `from`, into `out`.
///
/// # Panics
/// If the lengths do not match.
pub fn subtract_stored<T: Real>(from: Float, expert: &[u8], base: &[T], out: &mut [T]) {
    match from {
        Float::F16 => difference(entries(expert), base, out, T::read_f16),
        Float::Bf16 => difference(entries(expert), base, out, T::read_bf16),
        Float::F32 => difference(entries(expert), base, out, T::read_f32),
        Float::F64 => difference(entries(expert), base, out, T::read_f64),
    }
}

widest! {
    fn difference<E: Copy, T: Real, F: Fn(E) -> T>(expert: &[E], base: &[T], out: &mut [T], read: F) {
        assert_eq!((expert.len(), base.len()), (out.len(), out.len()));
        for ((out, &expert), &base) in out.iter_mut().zip(expert).zip(base) {
            *out = read(expert) - base;
        }
    }
}

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
            for from in [Float::F16, Float::Bf16, Float::F32, Float::F64] {
                let mut stored = vec![0; expert.len() * from.size()];
                f32::narrow(&expert, from, &mut stored);
                let (mut one, mut other) = (vec![0.0; expert.len()], vec![0.0; expert.len()]);
                subtract_stored(from, &stored, &base, &mut one);
                f32::widen(from, &stored, &mut other);
                subtract(&mut other, &base);
                prop_assert!(same(&one, &other));
            }
        }
    }
}
