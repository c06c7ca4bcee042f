//! Entries by the rank of their magnitude.

use std::cmp::Reverse;
use std::ops::Range;

use crate::dtype::Real;

/// Set `order` to the magnitudes and the indices of `delta`, sorted by magnitude, the smallest first.
/// Of equal magnitudes that of the lower index counts as the larger.
///
/// # Panics
/// If the lengths differ, or if there are more than 2³² entries.
pub fn sort_by_magnitude<T: Real>(delta: &[T], order: &mut [(T::Magnitude, u32)]) {
    assert_eq!(delta.len(), order.len());
    assert!(u32::try_from(delta.len()).is_ok());
    for (index, (delta, slot)) in delta.iter().zip(&mut *order).enumerate() {
        *slot = (delta.magnitude(), index as u32);
    }
    order.sort_unstable_by_key(|&(magnitude, index)| (magnitude, Reverse(index)));
}

/// Set all entries to 0 but those whose rank, 0 the smallest, is in `ranks`; `order` is that of
/// [`sort_by_magnitude`].
///
/// # Panics
/// If the lengths differ or `ranks` goes beyond them.
pub fn keep_ranks<T: Real>(delta: &mut [T], order: &[(T::Magnitude, u32)], ranks: Range<usize>) {
    assert_eq!(delta.len(), order.len());
    for &(_, index) in order[..ranks.start].iter().chain(&order[ranks.end..]) {
        delta[index as usize] = T::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, same, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranks_are_those_of_a_stable_sort(
            values in vector(any()), a in 0.0..1.0_f64, b in 0.0..1.0_f64,
        ) {
            let mut order = vec![(0, 0); values.len()];
            sort_by_magnitude(&values, &mut order);
            // The largest first, equal ones in index order.
            let mut places: Vec<usize> = (0..values.len()).collect();
            places.sort_by_key(|&j| Reverse(values[j].magnitude()));
            let found: Vec<usize> = order.iter().rev().map(|&(_, j)| j as usize).collect();
            prop_assert_eq!(&found, &places);

            let bounds = [a, b].map(|share| (share * values.len() as f64) as usize);
            let ranks = bounds[0].min(bounds[1])..bounds[0].max(bounds[1]);
            let mut kept = values.clone();
            keep_ranks(&mut kept, &order, ranks.clone());
            let mut expected = vec![0.0; values.len()];
            for (rank, &(_, j)) in order.iter().enumerate() {
                if ranks.contains(&rank) {
                    expected[j as usize] = values[j as usize];
                }
            }
            prop_assert!(same(&kept, &expected));
        }
    }
}
