//! Entries by the rank of their magnitude.

use std::cmp::Reverse;
use std::ops::Range;

use crate::dtype::Real;

/// Bits of a digit of a magnitude, and the number of its values.
const DIGIT: u32 = 11;
const VALUES: usize = 1 << DIGIT;

/// Rows shorter than this are sorted by comparison: counting digits takes longer.
const SHORT: usize = 512;

/// Set `order` to the magnitudes and the indices of `delta`, sorted by magnitude, the smallest first.
/// Of equal magnitudes that of the lower index counts as the larger. `spare` is room for as many.
///
/// ```text
/// start in reversed order of indices, so that a stable sort by magnitude is all that is left
/// for every digit of 11 bits, the lowest first: count its values; put every pair where the counts say
/// ```
///
/// # Panics
/// If the lengths differ, or if there are more than 2³² entries.
pub fn sort_by_magnitude<T: Real>(
    delta: &[T],
    order: &mut [(T::Magnitude, u32)],
    spare: &mut [(T::Magnitude, u32)],
) {
    assert_eq!((delta.len(), delta.len()), (order.len(), spare.len()));
    assert!(u32::try_from(delta.len()).is_ok());
    for ((index, delta), slot) in delta.iter().enumerate().rev().zip(&mut *order) {
        *slot = (delta.magnitude(), index as u32);
    }
    if delta.len() < SHORT {
        order.sort_unstable_by_key(|&(magnitude, index)| (magnitude, Reverse(index)));
        return;
    }
    let (mut from, mut to) = (order, spare);
    let mut moved = false;
    for shift in (0..8 * size_of::<T>() as u32 - 1).step_by(DIGIT as usize) {
        let digit = |magnitude: T::Magnitude| {
            let bits: i64 = magnitude.into();
            (bits >> shift) as usize % VALUES
        };
        let mut places = [0_u32; VALUES];
        for &(magnitude, _) in &*from {
            places[digit(magnitude)] += 1;
        }
        // A digit that all have in common changes nothing.
        if places[digit(from[0].0)] as usize == from.len() {
            continue;
        }
        let mut next = 0;
        for place in &mut places {
            next += std::mem::replace(place, next);
        }
        for &pair in &*from {
            let place = &mut places[digit(pair.0)];
            to[*place as usize] = pair;
            *place += 1;
        }
        std::mem::swap(&mut from, &mut to);
        moved = !moved;
    }
    if moved {
        to.copy_from_slice(from);
    }
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
            sort_by_magnitude(&values, &mut order, &mut vec![(0, 0); values.len()]);
            // The largest first, equal ones in index order.
            let mut places: Vec<usize> = (0..values.len()).collect();
            places.sort_by_key(|&j| Reverse(values[j].magnitude()));
            let found: Vec<usize> = order.iter().rev().map(|&(_, j)| j as usize).collect();
            prop_assert_eq!(&found, &places);
            let wide: Vec<f64> = values.iter().map(|&value| value.into()).collect();
            let mut same_order = vec![(0, 0); wide.len()];
            sort_by_magnitude(&wide, &mut same_order, &mut vec![(0, 0); wide.len()]);
            let found: Vec<usize> = same_order.iter().rev().map(|&(_, j)| j as usize).collect();
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
