//! Magnitude trimming (TIES, Yadav et al. 2023, §4.1).
//!
//! Magnitudes are compared by their bits without the sign bit, as integers. The order is that of the
//! numbers, with NaN above infinity, so that NaN is never trimmed.

use crate::dtype::Real;
use crate::processor::widest;

/// Set entries of a magnitude below the threshold to 0. Ties stay.
pub fn trim<T: Real>(delta: &mut [T], threshold: T::Magnitude) {
    keep_where(delta, |magnitude| magnitude >= threshold);
}

/// Set entries of a magnitude below the threshold to 0, and of the entries equal to it all but the
/// first `ties` in index order. `ties` is reduced by the number of equal entries that stay, so that
/// the next block goes on with the rest.
pub fn trim_exact<T: Real>(delta: &mut [T], threshold: T::Magnitude, ties: &mut u64) {
    let equal = count_equal(delta, threshold);
    // The order of ties matters only if these entries hold the last tie that may stay.
    if equal <= *ties {
        *ties -= equal;
        trim(delta, threshold);
    } else if *ties == 0 {
        keep_where(delta, |magnitude| magnitude > threshold);
    } else {
        for delta in delta {
            let magnitude = delta.magnitude();
            let stays = magnitude > threshold || (magnitude == threshold && *ties > 0);
            *ties -= u64::from(stays && magnitude == threshold);
            *delta = if stays { *delta } else { T::ZERO };
        }
    }
}

/// The reverse of [`trim_exact`]: set entries of a magnitude above the threshold to 0, and of the
/// entries equal to it the first `ties` in index order. `ties` is reduced by their number.
pub fn drop_exact<T: Real>(delta: &mut [T], threshold: T::Magnitude, ties: &mut u64) {
    let equal = count_equal(delta, threshold);
    if equal <= *ties {
        *ties -= equal;
        keep_where(delta, |magnitude| magnitude < threshold);
    } else if *ties == 0 {
        keep_where(delta, |magnitude| magnitude <= threshold);
    } else {
        for delta in delta {
            let magnitude = delta.magnitude();
            let goes = magnitude > threshold || (magnitude == threshold && *ties > 0);
            *ties -= u64::from(goes && magnitude == threshold);
            *delta = if goes { T::ZERO } else { *delta };
        }
    }
}

widest! {
    /// How many entries have exactly this magnitude.
    #[must_use]
    pub fn count_equal<T: Real>(delta: &[T], magnitude: T::Magnitude) -> u64 {
        // Counts of half the width are twice as many in a vector.
        let count = |part: &[T]| -> u32 {
            part.iter().map(|delta| u32::from(delta.magnitude() == magnitude)).sum()
        };
        delta.chunks(1 << 16).map(|part| u64::from(count(part))).sum()
    }
}

widest! {
    fn keep_where<T: Real, F: Fn(T::Magnitude) -> bool>(delta: &mut [T], stays: F) {
        for delta in delta {
            *delta = delta.only_if(stays(delta.magnitude()));
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
        fn trims_below_the_threshold(values in vector(any()), threshold in 0.0_f32..2.0) {
            let mut trimmed = values.clone();
            trim(&mut trimmed, threshold.magnitude());
            let below = |value: f32| value.abs() < threshold;
            let expected: Vec<f32> =
                values.iter().map(|&value| if below(value) { 0.0 } else { value }).collect();
            prop_assert!(same(&trimmed, &expected));
        }

        #[test]
        fn trims_to_exactly_k(values in vector(any()), share in 0.0..1.0_f64, cut in 0.0..1.0_f64) {
            prop_assume!(!values.is_empty());
            let kept = ((share * values.len() as f64) as usize).max(1);
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by_key(|&j| (std::cmp::Reverse(values[j].magnitude()), j));
            let mut expected = vec![0.0; values.len()];
            order[..kept].iter().for_each(|&j| expected[j] = values[j]);

            let threshold = values[order[kept - 1]].magnitude();
            let above = values.iter().filter(|value| value.magnitude() > threshold).count();
            let mut ties = (kept - above) as u64;
            let mut trimmed = values.clone();
            let mut dropped = values.clone();
            let mut others = ties;
            // Two slices, as two blocks would be.
            let (front, back) = trimmed.split_at_mut((cut * values.len() as f64) as usize);
            trim_exact(front, threshold, &mut ties);
            trim_exact(back, threshold, &mut ties);
            prop_assert!(same(&trimmed, &expected));
            prop_assert_eq!(ties, 0);

            let (front, back) = dropped.split_at_mut((cut * values.len() as f64) as usize);
            drop_exact(front, threshold, &mut others);
            drop_exact(back, threshold, &mut others);
            let mut complement = values.clone();
            order[..kept].iter().for_each(|&j| complement[j] = 0.0);
            prop_assert!(same(&dropped, &complement));
            prop_assert_eq!(others, 0);
        }

        #[test]
        fn counts_equal_magnitudes(values in vector(any()), place in 0.0..1.0_f64) {
            prop_assume!(!values.is_empty());
            let magnitude = values[(place * values.len() as f64) as usize].magnitude();
            let equal = values.iter().filter(|value| value.magnitude() == magnitude).count();
            prop_assert_eq!(count_equal(&values, magnitude), equal as u64);
        }
    }
}
