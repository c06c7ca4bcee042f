//! One pass over a task vector against a bracket of magnitudes: count the entries above the bracket
//! and on its bounds, and collect the magnitudes inside it. The search for the magnitude of a given
//! rank is made of such passes.
//!
//! If the bracket is narrow, nearly all entries are only compared and counted. The bounds are counted
//! rather than collected because differences of bfloat16 numbers take few values: a tenth of all
//! entries may lie on one bound.

use crate::dtype::Real;
use crate::processor::widest;

/// Entries compared at a time.
const LANES: usize = 16;

/// A range of magnitudes, both bounds included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bracket<M> {
    /// The lower bound.
    pub low: M,
    /// The upper bound, at least the lower one.
    pub high: M,
}

/// Numbers of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Above the upper bound.
    pub above: u64,
    /// On the upper bound.
    pub high: u64,
    /// On the lower bound; 0 if both bounds are equal.
    pub low: u64,
}

widest! {
    /// Add the entries of `delta` to `counts`, write the magnitudes strictly inside the bracket to the
    /// start of `inside`, in index order, and return their number.
    ///
    /// # Panics
    /// If `inside` is shorter than `delta`.
    pub fn count_and_collect<T: Real>(
        delta: &[T],
        bracket: Bracket<T::Magnitude>,
        counts: &mut Counts,
        inside: &mut [T::Magnitude],
    ) -> usize {
        assert!(inside.len() >= delta.len());
        let Bracket { low, high } = bracket;
        let (strips, rest) = delta.as_chunks::<LANES>();
        let (mut above, mut on_high, mut on_low) = ([0_u32; LANES], [0_u32; LANES], [0_u32; LANES]);
        let mut collected = 0;
        for strip in strips {
            let magnitudes = strip.map(T::magnitude);
            let mut any_inside = false;
            for lane in 0..LANES {
                let magnitude = magnitudes[lane];
                above[lane] += u32::from(magnitude > high);
                on_high[lane] += u32::from(magnitude == high);
                on_low[lane] += u32::from(magnitude == low);
                any_inside |= (magnitude > low) & (magnitude < high);
            }
            if any_inside {
                for magnitude in magnitudes {
                    inside[collected] = magnitude;
                    collected += usize::from((magnitude > low) & (magnitude < high));
                }
            }
        }
        for (lane, delta) in rest.iter().enumerate() {
            let magnitude = delta.magnitude();
            above[lane] += u32::from(magnitude > high);
            on_high[lane] += u32::from(magnitude == high);
            on_low[lane] += u32::from(magnitude == low);
            if magnitude > low && magnitude < high {
                inside[collected] = magnitude;
                collected += 1;
            }
        }
        let total = |lanes: [u32; LANES]| lanes.iter().map(|&count| u64::from(count)).sum::<u64>();
        counts.above += total(above);
        counts.high += total(on_high);
        counts.low += if low == high { 0 } else { total(on_low) };
        collected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_one_entry_at_a_time(values in vector(any()), a in any(), b in any()) {
            let (a, b) = (a.magnitude(), b.magnitude());
            let bracket = Bracket { low: a.min(b), high: a.max(b) };
            let magnitudes: Vec<i32> = values.iter().map(|value| value.magnitude()).collect();
            let count = |is: &dyn Fn(i32) -> bool| {
                magnitudes.iter().filter(|&&magnitude| is(magnitude)).count() as u64
            };
            let mut counts = Counts { above: 1, high: 2, low: 3 };
            let mut inside = vec![0; values.len()];
            let collected = count_and_collect(&values, bracket, &mut counts, &mut inside);
            prop_assert_eq!(counts.above, 1 + count(&|magnitude| magnitude > bracket.high));
            prop_assert_eq!(counts.high, 2 + count(&|magnitude| magnitude == bracket.high));
            let low = |magnitude| magnitude == bracket.low && bracket.low != bracket.high;
            prop_assert_eq!(counts.low, 3 + count(&low));
            let between = |magnitude: &i32| *magnitude > bracket.low && *magnitude < bracket.high;
            let expected: Vec<i32> = magnitudes.iter().copied().filter(between).collect();
            prop_assert_eq!(&inside[..collected], expected);
        }
    }
}
