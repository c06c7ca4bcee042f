//! Bounds of ranks: a row's magnitudes are counted in bins, which tell the rank of an entry up to the number
//! of entries in its bin. Where that is not enough, the entry is compared with those. Nothing is sorted.
//!
//! The rank of an entry, 0 the smallest, is that of [`sort_by_magnitude`](super::rank::sort_by_magnitude):
//! of equal magnitudes that of the lower index counts as the larger.

use super::random_drop::bits;
use super::trim::count_equal;
use crate::dtype::Real;
use crate::processor::widest;

/// Number of bins.
pub const BINS: usize = 1024;

/// Bins for every power of two, as a power of two. From the largest magnitude down they span 16 powers of
/// two; what is smaller shares the last bin.
const BINS_OF_OCTAVE: u32 = 6;

/// Entries that are looked at one by one faster than whole rows are.
const FEW: u32 = 32;

/// No entry.
const NONE: u32 = u32::MAX;

/// A row's entries by the bins of their magnitudes. It keeps its memory from row to row.
#[derive(Clone, Debug, Default)]
pub struct Bins {
    /// The bin of every entry.
    of_entry: Vec<u16>,
    /// For every entry, how many of a larger index are in its bin, and the next of these.
    later: Vec<(u32, u32)>,
    /// For every bin, its entry of the least index.
    first: Vec<u32>,
    /// For every bin, how many entries are in those of smaller magnitudes; at the end, how many there are.
    below: Vec<u32>,
    /// What is known of every bin's entries.
    kinds: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unknown,
    /// All have one magnitude.
    Uniform,
    Mixed,
}

impl Bins {
    /// Count a row of less than 2³² entries.
    pub fn count<T: Real>(&mut self, row: &[T]) {
        self.of_entry.resize(row.len(), 0);
        self.later.resize(row.len(), (0, NONE));
        assign(row, largest(row), &mut self.of_entry);
        self.below.clear();
        self.below.resize(BINS + 1, 0);
        self.first.clear();
        self.first.resize(BINS, NONE);
        let (counts, first) = (&mut self.below[1..=BINS], &mut self.first[..BINS]);
        for (entry, (&bin, later)) in self.of_entry.iter().zip(&mut self.later).enumerate().rev() {
            // The compiler does not know that bins are below their number.
            let bin = usize::from(bin) % BINS;
            *later = (counts[bin], std::mem::replace(&mut first[bin], entry as u32));
            counts[bin] += 1;
        }
        let mut total = 0;
        for below in &mut self.below {
            total += *below;
            *below = total;
        }
        self.kinds.clear();
        self.kinds.resize(BINS, Kind::Unknown);
    }

    /// The least rank that an entry may have, and the least that it cannot have above that.
    ///
    /// # Panics
    /// If there is no such entry.
    #[inline]
    #[must_use]
    pub fn bounds(&self, entry: usize) -> (u32, u32) {
        let bin = usize::from(self.of_entry[entry]);
        (self.below[bin], self.below[bin + 1])
    }

    /// The rank of an entry of the row that was counted.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn rank<T: Real>(&mut self, row: &[T], entry: usize) -> usize {
        let bin = usize::from(self.of_entry[entry]);
        let (below, end) = self.bounds(entry);
        let magnitude = row[entry].magnitude();
        if self.kinds[bin] == Kind::Unknown {
            let uniform = if end - below > FEW {
                count_equal(row, magnitude) == u64::from(end - below)
            } else {
                self.members(bin).all(|other| row[other].magnitude() == magnitude)
            };
            self.kinds[bin] = if uniform { Kind::Uniform } else { Kind::Mixed };
        }
        if self.kinds[bin] == Kind::Uniform {
            return (below + self.later[entry].0) as usize;
        }
        if end - below > FEW {
            let later = count_equal(&row[entry + 1..], magnitude);
            return (count_smaller(row, magnitude) + later) as usize;
        }
        let is_smaller = |&other: &usize| {
            let found = row[other].magnitude();
            found < magnitude || (found == magnitude && other > entry)
        };
        below as usize + self.members(bin).filter(is_smaller).count()
    }

    /// The entries of a bin.
    fn members(&self, bin: usize) -> impl Iterator<Item = usize> {
        let entry = |index: u32| (index != NONE).then_some(index as usize);
        std::iter::successors(entry(self.first[bin]), move |&other| entry(self.later[other].1))
    }
}

widest! {
    /// The largest magnitude; 0 if there are no entries.
    fn largest<T: Real>(row: &[T]) -> T::Magnitude {
        row.iter().fold(T::Magnitude::default(), |most, value| most.max(value.magnitude()))
    }
}

widest! {
    /// The bin of every entry, by the largest magnitude.
    fn assign<T: Real>(row: &[T], largest: T::Magnitude, bins: &mut [u16]) {
        for (bin, value) in bins.iter_mut().zip(row) {
            let down = T::steps_down(largest, value.magnitude(), BINS_OF_OCTAVE);
            *bin = (BINS as u32 - 1 - down.min(BINS as u32 - 1)) as u16;
        }
    }
}

widest! {
    /// How many entries have a smaller magnitude.
    fn count_smaller<T: Real>(row: &[T], magnitude: T::Magnitude) -> u64 {
        let count = |part: &[T]| -> u32 {
            part.iter().map(|value| u32::from(value.magnitude() < magnitude)).sum()
        };
        row.chunks(1 << 16).map(|part| u64::from(count(part))).sum()
    }
}

widest! {
    /// Set `keep` to 1 for every byte below `least`, to 0 for the others.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn keep_below(bytes: &[u8], least: u8, keep: &mut [u8]) {
        assert_eq!(bytes.len(), keep.len());
        for (keep, &byte) in keep.iter_mut().zip(bytes) {
            *keep = u8::from(byte < least);
        }
    }
}

widest! {
    /// Write the indices of the bytes from `least` to `most` to the start of `found`, and return their number.
    /// `mask` is room for a byte for each.
    ///
    /// # Panics
    /// If `mask` has another length than `bytes`, or if `found` is shorter.
    pub fn collect_between(
        bytes: &[u8],
        least: u8,
        most: u8,
        mask: &mut [u8],
        found: &mut [u32],
    ) -> usize {
        assert!(mask.len() == bytes.len() && found.len() >= bytes.len());
        let width = most.wrapping_sub(least);
        for (mask, &byte) in mask.iter_mut().zip(bytes) {
            *mask = u8::from(byte.wrapping_sub(least) <= width);
        }
        let (groups, rest) = mask.as_chunks::<32>();
        let mut count = 0;
        for (group, first) in groups.iter().zip((0_u32..).step_by(32)) {
            let mut left = bits(group);
            while left != 0 {
                found[count] = first + left.trailing_zeros();
                count += 1;
                left &= left - 1;
            }
        }
        for (place, &mask) in rest.iter().enumerate() {
            found[count] = (bytes.len() - rest.len() + place) as u32;
            count += usize::from(mask);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rank::sort_by_magnitude;
    use crate::kernel::samples::{any, vector};
    use proptest::prelude::*;

    fn check<T: Real>(values: &[T]) {
        let mut order = vec![Default::default(); values.len()];
        sort_by_magnitude(values, &mut order, &mut vec![Default::default(); values.len()]);
        let mut bins = Bins::default();
        // Rows before it leave nothing behind.
        bins.count(&[T::ONE; 7]);
        bins.count(values);
        for (rank, &(_, entry)) in order.iter().enumerate() {
            let (least, end) = bins.bounds(entry as usize);
            assert!((least..end).contains(&(rank as u32)), "{rank} is not in {least}..{end}");
            assert_eq!(bins.rank(values, entry as usize), rank);
        }
    }

    proptest! {
        #[test]
        fn ranks_are_those_of_sorting(values in vector(any()), step in 1..9_usize) {
            check(&values);
            let wide: Vec<f64> = values.iter().map(|&value| value.into()).collect();
            check(&wide);
            // Few values, so that most are ties.
            let few: Vec<f32> = (0..values.len()).map(|j| values[j % step]).collect();
            check(&few);
        }

        #[test]
        fn bytes_are_told_apart(
            bytes in proptest::collection::vec(0..=255_u8, 0..200), a in 0..=255_u8, b in 0..=255_u8,
        ) {
            let (least, most) = (a.min(b), a.max(b));
            let mut keep = vec![9; bytes.len()];
            keep_below(&bytes, least, &mut keep);
            let expected: Vec<u8> = bytes.iter().map(|&byte| u8::from(byte < least)).collect();
            prop_assert_eq!(keep, expected);
            let mut found = vec![0; bytes.len()];
            let count =
                collect_between(&bytes, least, most, &mut vec![9; bytes.len()], &mut found);
            let between = |&j: &u32| (least..=most).contains(&bytes[j as usize]);
            let expected: Vec<u32> = (0..bytes.len() as u32).filter(between).collect();
            prop_assert_eq!(&found[..count], expected);
        }
    }
}
