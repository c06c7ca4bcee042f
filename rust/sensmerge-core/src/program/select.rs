//! The exact magnitude of a given rank, without holding a task vector in memory.
//!
//! A bracket that should contain the magnitude is narrowed until one magnitude is left:
//!
//! ```text
//! repeat:
//!     in one sweep over the entries, count those above the bracket, those on its two bounds, and
//!         those inside it in bins of equal width, each with its least and greatest member
//!     if the entry of the rank lies on a bound:              the bound is the magnitude
//!     if it lies in a bin with a single value:               the value is the magnitude
//!     if it lies in another bin:                             the bin is the next bracket
//!     if it lies below (above) the bracket, which missed it: the next bracket is from 0 to the lower
//!                                                            bound (from the upper bound upwards)
//! ```
//!
//! With a bracket guessed from a sample, one or two sweeps are usually enough. Counts can be added in
//! any order, so that the result does not depend on threads.

use super::block::Block;
use super::sweep::{Chunk, Portable, reduce_all, reduce_model};
use super::{Reduction, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::bracket::{Bracket, Counts, count_and_collect};

/// Number of bins of a bracket.
const BINS: usize = 1 << 14;

/// A magnitude that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selected<M> {
    pub(super) magnitude: M,
    /// Number of entries of larger magnitude.
    pub(super) above: u64,
}

/// The place of a magnitude relative to a bracket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Below the lower bound.
    Below,
    /// Equal to the lower bound.
    Low,
    /// Strictly inside, with this rank among the magnitudes inside (0 the smallest).
    Inside(u64),
    /// Equal to the upper bound.
    High,
    /// Above the upper bound.
    Above,
}

/// The place of the magnitude of `rank` (0 the smallest) among `entries` magnitudes, of which `counts`
/// are above and on the bounds of the bracket, and `inside` strictly inside.
pub(super) fn locate(entries: u64, rank: u64, counts: &Counts, inside: u64) -> Place {
    let below = entries - counts.above - counts.high - inside - counts.low;
    if rank < below {
        Place::Below
    } else if rank < below + counts.low {
        Place::Low
    } else if rank < below + counts.low + inside {
        Place::Inside(rank - below - counts.low)
    } else if rank < entries - counts.above {
        Place::High
    } else {
        Place::Above
    }
}

/// A search for the magnitude of `rank` (0 the smallest) among the entries of one model's task vectors.
pub(super) struct Search<T: Real> {
    pub(super) model: usize,
    pub(super) rank: u64,
    pub(super) bracket: Bracket<T::Magnitude>,
    pub(super) found: Option<Selected<T::Magnitude>>,
}

impl<T: Real> Search<T> {
    pub(super) fn new(model: usize, rank: u64, bracket: Bracket<T::Magnitude>) -> Self {
        Self { model, rank, bracket, found: None }
    }

    /// Find the magnitude or narrow the bracket, from the counts of a sweep over all `entries`.
    fn narrow(&mut self, entries: u64, tally: &Tally<T>) {
        let Bracket { low, high } = self.bracket;
        let inside: u64 = tally.bins.iter().map(|bin| bin.count).sum();
        let Counts { above, high: on_high, .. } = tally.counts;
        let found = |magnitude, above| Some(Selected { magnitude, above });
        match locate(entries, self.rank, &tally.counts, inside) {
            Place::Below => self.bracket = Bracket { low: T::Magnitude::default(), high: low },
            Place::Low => self.found = found(low, above + on_high + inside),
            Place::High => self.found = found(high, above),
            Place::Above => self.bracket = Bracket { low: high, high: T::LARGEST_MAGNITUDE },
            Place::Inside(rank) => {
                let (mut upto, mut bins) = (0, tally.bins.iter());
                let holds = |bin: &&Bin<T::Magnitude>| {
                    upto += bin.count;
                    upto > rank
                };
                let Some(bin) = bins.find(holds) else { return };
                if bin.least == bin.greatest {
                    self.found = found(bin.least, above + on_high + inside - upto);
                } else {
                    self.bracket = Bracket { low: bin.least, high: bin.greatest };
                }
            }
        }
    }
}

/// Sweep over the entries of one tensor, or of the whole model, until each of `searches` has found its
/// magnitude. There are so many `entries`.
pub(super) fn select<T: Real>(
    sweep: &dyn Sweep<T>,
    tensor: Option<usize>,
    entries: u64,
    searches: &mut [Search<T>],
) -> Result<()> {
    loop {
        let mut open: Vec<&mut Search<T>> =
            searches.iter_mut().filter(|search| search.found.is_none()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let sought = open.iter().map(|search| (search.model, search.bracket)).collect();
        let reduction = Tallies { tensor, sought };
        let tallies = match tensor {
            Some(_) => reduce_all(sweep, &reduction)?,
            None => reduce_model(sweep, &reduction)?,
        };
        for (search, tally) in open.iter_mut().zip(&tallies) {
            let before = search.bracket;
            search.narrow(entries, tally);
            debug_assert!(search.found.is_some() || search.bracket != before, "no progress");
        }
    }
}

/// The reduction that counts for several searches in one sweep.
struct Tallies<T: Real> {
    tensor: Option<usize>,
    /// The model and the bracket of each search.
    sought: Vec<(usize, Bracket<T::Magnitude>)>,
}

impl<T: Real> Reduction<T> for Tallies<T> {
    type Partial = Vec<Tally<T>>;

    fn wants(&self, tensor: usize, model: usize) -> bool {
        self.tensor.is_none_or(|only| only == tensor)
            && self.sought.iter().any(|&(sought, _)| sought == model)
    }

    fn identity(&self, _: Option<&Chunk>) -> Vec<Tally<T>> {
        self.sought.iter().map(|&(_, bracket)| Tally::new(bracket)).collect()
    }

    fn block(&self, _: usize, block: &mut Block<T>, partial: &mut Vec<Tally<T>>) {
        for (tally, &(model, _)) in partial.iter_mut().zip(&self.sought) {
            let (delta, inside) = block.row_and_inside(model);
            tally.count(delta, inside);
        }
    }

    fn merge(&self, partial: &mut Vec<Tally<T>>, next: Vec<Tally<T>>) {
        partial.iter_mut().zip(&next).for_each(|(tally, next)| tally.add(next));
    }
}

/// Counts relative to a bracket, with the entries inside it in bins.
struct Tally<T: Real> {
    bracket: Bracket<T::Magnitude>,
    counts: Counts,
    /// The bin of a magnitude is its distance from the lower bound, shifted right by this many bits.
    shift: u32,
    bins: Vec<Bin<T::Magnitude>>,
}

#[derive(Clone, Copy)]
struct Bin<M> {
    count: u64,
    least: M,
    greatest: M,
}

impl<T: Real> Tally<T> {
    fn new(bracket: Bracket<T::Magnitude>) -> Self {
        let width: i64 = bracket.high.into() - bracket.low.into();
        let bits = i64::BITS - width.leading_zeros();
        let empty =
            Bin { count: 0, least: T::LARGEST_MAGNITUDE, greatest: T::Magnitude::default() };
        Self {
            bracket,
            counts: Counts::default(),
            shift: bits.saturating_sub(BINS.ilog2()),
            bins: vec![empty; BINS],
        }
    }

    fn count(&mut self, delta: &[T], inside: &mut [T::Magnitude]) {
        let collected = count_and_collect(delta, self.bracket, &mut self.counts, inside);
        for &magnitude in &inside[..collected] {
            let distance: i64 = magnitude.into() - self.bracket.low.into();
            let bin = &mut self.bins[(distance >> self.shift) as usize];
            bin.count += 1;
            bin.least = bin.least.min(magnitude);
            bin.greatest = bin.greatest.max(magnitude);
        }
    }

    fn add(&mut self, other: &Self) {
        self.counts.above += other.counts.above;
        self.counts.high += other.counts.high;
        self.counts.low += other.counts.low;
        for (bin, other) in self.bins.iter_mut().zip(&other.bins) {
            bin.count += other.count;
            bin.least = bin.least.min(other.least);
            bin.greatest = bin.greatest.max(other.greatest);
        }
    }
}

/// For every search three counts, the number of bins that hold anything, and of each of these its place,
/// count, least and greatest magnitude.
impl<T: Real> Portable for Vec<Tally<T>> {
    fn to_numbers(&self) -> Vec<i64> {
        let mut numbers = Vec::new();
        for tally in self {
            let Counts { above, high, low } = tally.counts;
            let filled = || tally.bins.iter().enumerate().filter(|(_, bin)| bin.count > 0);
            let counts = [above, high, low, filled().count() as u64];
            numbers.extend(counts.map(u64::cast_signed));
            for (place, bin) in filled() {
                let (least, greatest) = (bin.least.into(), bin.greatest.into());
                numbers.extend([
                    (place as u64).cast_signed(),
                    bin.count.cast_signed(),
                    least,
                    greatest,
                ]);
            }
        }
        numbers
    }

    fn take_numbers(&mut self, mut numbers: &[i64]) -> bool {
        for tally in self {
            let Some(([above, high, low, filled], rest)) = numbers.split_first_chunk() else {
                return false;
            };
            let [above, high, low] = [above, high, low].map(|count| count.cast_unsigned());
            tally.counts = Counts { above, high, low };
            numbers = rest;
            for _ in 0..*filled {
                let Some(([place, count, least, greatest], rest)) = numbers.split_first_chunk()
                else {
                    return false;
                };
                let bin = usize::try_from(*place).ok().and_then(|place| tally.bins.get_mut(place));
                let (Some(bin), Ok(least), Ok(greatest)) =
                    (bin, T::Magnitude::try_from(*least), T::Magnitude::try_from(*greatest))
                else {
                    return false;
                };
                *bin = Bin { count: count.cast_unsigned(), least, greatest };
                numbers = rest;
            }
        }
        numbers.is_empty()
    }
}
