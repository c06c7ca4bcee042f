//! Magnitude trimming with exact thresholds (TIES, Yadav et al. 2023, §4.1).
//!
//! Magnitudes are compared by their bits without the sign: these order as the numbers do, tell
//! equal from nearly equal, and put NaN above infinity, so that it is never trimmed.
//!
//! The k-th smallest of any number of magnitudes is found without sorting or holding them, by a
//! radix selection: one sweep counts them by their upper bits, the counts tell which bin holds the
//! k-th, the next sweep counts that bin's members by their next 16 bits, until all bits are known.

use crate::dtype::Real;

/// Bits that one sweep decides.
const DIGIT: u32 = 16;

/// Bins of a sweep.
pub const BINS: usize = 1 << DIGIT;

/// Set entries below the threshold (a magnitude's bits) to 0; those equal to it stay.
pub fn trim<T: Real>(delta: &mut [T], threshold: u64) {
    for delta in delta {
        *delta = if delta.magnitude() < threshold { T::ZERO } else { *delta };
    }
}

/// Set entries below the threshold to 0, and of those equal to it all but the first `ties` in index
/// order; `ties` is reduced by those that stay.
pub fn trim_exact<T: Real>(delta: &mut [T], threshold: u64, ties: &mut u64) {
    for delta in delta {
        let magnitude = delta.magnitude();
        let equal = magnitude == threshold;
        let stays = magnitude > threshold || (equal && *ties > 0);
        *ties -= u64::from(equal && stays);
        *delta = if stays { *delta } else { T::ZERO };
    }
}

/// How many entries have exactly this magnitude.
#[must_use]
pub fn count_equal<T: Real>(delta: &[T], magnitude: u64) -> u64 {
    delta.iter().map(|delta| u64::from(delta.magnitude() == magnitude)).sum()
}

/// Count entries whose magnitude, but for its last `shift + 16` bits, is `prefix`, by the 16 bits
/// before the last `shift`.
///
/// # Panics
/// If there are fewer than [`BINS`] bins.
pub fn histogram<T: Real>(delta: &[T], prefix: u64, shift: u32, bins: &mut [u64]) {
    let bins = &mut bins[..BINS];
    for delta in delta {
        let magnitude = delta.magnitude() >> shift;
        if magnitude >> DIGIT == prefix {
            bins[magnitude as usize % BINS] += 1;
        }
    }
}

/// A radix selection under way.
#[derive(Clone, Copy, Debug)]
pub struct RadixSelect {
    /// Rank among the entries of the current prefix.
    rank: u64,
    prefix: u64,
    shift: u32,
    /// Entries known to be smaller.
    below: u64,
}

/// What a selection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected {
    /// The magnitude's bits.
    pub magnitude: u64,
    /// Entries of smaller magnitude.
    pub below: u64,
    /// Entries of this magnitude.
    pub equal: u64,
}

/// Whether a selection needs another sweep.
#[derive(Clone, Copy, Debug)]
pub enum Selection {
    /// It does.
    Continue(RadixSelect),
    /// It does not.
    Done(Selected),
}

impl RadixSelect {
    /// Select the magnitude of `rank`, 0 being the smallest.
    #[must_use]
    pub fn new<T: Real>(rank: u64) -> Self {
        let sweeps = T::MAGNITUDE_BITS.div_ceil(DIGIT);
        Self { rank, prefix: 0, shift: (sweeps - 1) * DIGIT, below: 0 }
    }

    /// The `prefix` and `shift` that the next sweep hands to [`histogram`].
    #[must_use]
    pub fn window(&self) -> (u64, u32) {
        (self.prefix, self.shift)
    }

    /// Take in the counts of a sweep over all entries.
    ///
    /// # Panics
    /// If the counts hold no entry of the rank.
    #[must_use]
    pub fn feed(mut self, bins: &[u64]) -> Selection {
        let mut bin = 0;
        while self.rank >= bins[bin] {
            self.rank -= bins[bin];
            self.below += bins[bin];
            bin += 1;
        }
        self.prefix = self.prefix << DIGIT | bin as u64;
        if self.shift == 0 {
            let (magnitude, below) = (self.prefix, self.below);
            return Selection::Done(Selected { magnitude, below, equal: bins[bin] });
        }
        self.shift -= DIGIT;
        Selection::Continue(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, same, vector};
    use proptest::prelude::*;

    fn select<T: Real>(values: &[T], rank: u64) -> Selected {
        let mut selection = RadixSelect::new::<T>(rank);
        loop {
            let mut bins = vec![0; BINS];
            let (prefix, shift) = selection.window();
            // Two slices, as two chunks would be.
            let (front, back) = values.split_at(values.len() / 2);
            histogram(front, prefix, shift, &mut bins);
            histogram(back, prefix, shift, &mut bins);
            match selection.feed(&bins) {
                Selection::Done(found) => return found,
                Selection::Continue(next) => selection = next,
            }
        }
    }

    fn by_sorting<T: Real>(values: &[T], rank: usize) -> Selected {
        let mut sorted: Vec<u64> = values.iter().map(|value| value.magnitude()).collect();
        sorted.sort_unstable();
        let magnitude = sorted[rank];
        Selected {
            magnitude,
            below: sorted.iter().filter(|&&other| other < magnitude).count() as u64,
            equal: sorted.iter().filter(|&&other| other == magnitude).count() as u64,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn selects_what_sorting_would(values in vector(any()), place in 0.0..1.0_f64) {
            prop_assume!(!values.is_empty());
            let rank = (place * values.len() as f64) as usize;
            prop_assert_eq!(select(&values, rank as u64), by_sorting(&values, rank));
            let doubles: Vec<f64> = values.iter().map(|&value| f64::from(value) / 3.0).collect();
            prop_assert_eq!(select(&doubles, rank as u64), by_sorting(&doubles, rank));
        }

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

            let found = by_sorting(&values, values.len() - kept);
            let above = values.len() as u64 - found.below - found.equal;
            let mut ties = kept as u64 - above;
            let mut trimmed = values.clone();
            let (front, back) = trimmed.split_at_mut((cut * values.len() as f64) as usize);
            trim_exact(front, found.magnitude, &mut ties);
            trim_exact(back, found.magnitude, &mut ties);
            prop_assert!(same(&trimmed, &expected));
            prop_assert_eq!(ties, 0);
            prop_assert_eq!(count_equal(&values, found.magnitude), found.equal);
        }
    }
}
