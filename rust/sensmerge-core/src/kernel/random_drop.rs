//! Drop and rescale, the sparsification of DARE (Yu et al. 2024).

use crate::dtype::Real;
use crate::processor::widest;

widest! {
    /// Multiply the kept entries by `scale` and set the others to 0. `keep` is 0 for a dropped entry.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn drop_and_rescale<T: Real>(delta: &mut [T], keep: &[u8], scale: T) {
        assert_eq!(delta.len(), keep.len());
        for (delta, &keep) in delta.iter_mut().zip(keep) {
            *delta = (*delta * scale).only_if(keep != 0);
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
        fn entry_by_entry(delta in vector(any()), scale in 0.5_f32..4.0, step in 1..5_usize) {
            let keep: Vec<u8> = (0..delta.len()).map(|j| u8::from(j % step == 0)).collect();
            let mut dropped = delta.clone();
            drop_and_rescale(&mut dropped, &keep, scale);
            let expected: Vec<f32> = (0..delta.len())
                .map(|j| if j % step == 0 { delta[j] * scale } else { 0.0 })
                .collect();
            prop_assert!(same(&dropped, &expected));
        }
    }
}
