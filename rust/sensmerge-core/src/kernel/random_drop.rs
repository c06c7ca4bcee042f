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

widest! {
    /// Set `keep` to 1 for every entry that is not 0, to 0 for the others.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn keep_nonzero<T: Real>(delta: &[T], keep: &mut [u8]) {
        assert_eq!(delta.len(), keep.len());
        for (keep, delta) in keep.iter_mut().zip(delta) {
            *keep = u8::from(delta.magnitude() != T::Magnitude::default());
        }
    }
}

/// Add a mask to `words`, 32 entries a word, the first in the lowest bit; [`spread`](crate::random::spread) is
/// the way back. `keep` is 0 or 1.
///
/// # Panics
/// If the mask is not a whole number of words.
pub fn add_bits(keep: &[u8], words: &mut Vec<u32>) {
    let (groups, rest) = keep.as_chunks::<32>();
    assert!(rest.is_empty(), "a mask does not fill its words");
    words.extend(groups.iter().map(bits));
}

/// The lowest bits of 32 bytes, which are 0 or 1; that of the first is the lowest.
#[inline(always)]
pub(super) fn bits(bytes: &[u8; 32]) -> u32 {
    // Brings the lowest bits of eight bytes to the highest byte, in order.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let (eights, _) = bytes.as_chunks::<8>();
    let gathered = |place: usize| {
        u32::from((u64::from_le_bytes(eights[place]).wrapping_mul(GATHER) >> 56) as u8)
            << (8 * place)
    };
    gathered(0) | gathered(1) | gathered(2) | gathered(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, same, vector};
    use crate::random::spread;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn masks_are_kept_as_bits(delta in vector(any()), step in 1..5_usize, skip in 0..40_usize) {
            let words = delta.len() / 32;
            let delta: Vec<f32> = delta[..32 * words]
                .iter().enumerate().map(|(j, &value)| value.only_if(j % step == 0)).collect();
            let mut keep = vec![9; delta.len()];
            keep_nonzero(&delta, &mut keep);
            let expected: Vec<u8> = delta.iter().map(|&value| u8::from(value != 0.0)).collect();
            prop_assert_eq!(&keep, &expected);
            let mut bits = vec![7];
            add_bits(&keep, &mut bits);
            prop_assert_eq!(bits.len(), 1 + words);
            let skip = skip.min(delta.len());
            let mut back = vec![9; delta.len() - skip];
            spread(&bits[1 + skip / 32..], skip % 32, &mut back);
            prop_assert_eq!(&back, &expected[skip..]);
        }

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
