//! The magnitude of a given rank, exactly, over task vectors that are never held.
//!
//! A bracket that should hold the wanted magnitude is narrowed until one magnitude is left:
//!
//! ```text
//! repeat:
//!     in one sweep over the entries, count those above the bracket, those on its two bounds, and
//!     those inside it by bins of equal width, each with its least and greatest member
//!     if the rank falls on a bound:          that is the magnitude
//!     if it falls into a bin of one value:   that is the magnitude
//!     if it falls into another bin:          the bin is the next bracket
//!     if it falls below or above:            the bracket missed; search what lies on that side
//! ```
//!
//! A bracket that was guessed from a sample needs one sweep or two as a rule. The counts are plain
//! numbers that can be added up in any order, wherever they were counted.

use super::block::Block;
use super::sweep::{Chunk, reduce_model};
use super::{Reduction, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::bracket::{Bracket, Counts, count_and_collect};

/// Bins of a bracket.
const BINS: usize = 1 << 14;

/// A magnitude that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selected<M> {
    pub(super) magnitude: M,
    /// Entries of larger magnitude.
    pub(super) above: u64,
}

/// Where, relative to a bracket, the magnitude of some rank lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Below the lower bound.
    Below,
    /// It is the lower bound.
    Low,
    /// Strictly inside, at this rank among those inside (0 the smallest).
    Inside(u64),
    /// It is the upper bound.
    High,
    /// Above the upper bound.
    Above,
}

/// Where the magnitude of `rank` (0 the smallest) among `entries` lies, `inside` of them strictly
/// inside the bracket.
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

/// A search for the magnitude of `rank` among the entries of one model's task vectors.
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

    /// Take in what a sweep over all entries counted.
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

/// Run `searches` over the entries of one tensor, or of all, until each has found its magnitude.
pub(super) fn select<T: Real>(
    sweep: &dyn Sweep<T>,
    tensor: Option<usize>,
    searches: &mut [Search<T>],
) -> Result<()> {
    let among = |chunk: &&Chunk| tensor.is_none_or(|tensor| chunk.tensor == tensor);
    let chunks = sweep.chunks().iter().filter(among);
    let entries = chunks.map(|chunk| chunk.entries.len() as u64).sum();
    loop {
        let mut open: Vec<&mut Search<T>> =
            searches.iter_mut().filter(|search| search.found.is_none()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let sought = open.iter().map(|search| (search.model, search.bracket)).collect();
        let tallies = reduce_model(sweep, &Tallies { tensor, sought })?;
        for (search, tally) in open.iter_mut().zip(&tallies) {
            let before = search.bracket;
            search.narrow(entries, tally);
            debug_assert!(search.found.is_some() || search.bracket != before, "no progress");
        }
    }
}

/// Counts for several searches, in one sweep.
struct Tallies<T: Real> {
    tensor: Option<usize>,
    /// By search: its model and bracket.
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

/// What lies where, and what lies inside by bins.
struct Tally<T: Real> {
    bracket: Bracket<T::Magnitude>,
    counts: Counts,
    /// Magnitudes that differ only in this many last bits share a bin.
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
