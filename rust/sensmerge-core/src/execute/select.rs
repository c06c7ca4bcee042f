//! Exact selection of magnitudes by rank, over task vectors that are never held.
//!
//! A bracket that should hold the wanted magnitude is narrowed: a sweep over the inputs counts what
//! lies above, on and inside it, what lies inside by bins. The counts tell which bin holds the
//! magnitude; if the bin holds several, it is the next bracket, and if the bracket missed, so
//! is what lies beyond its bound. A bracket guessed from a sample needs one sweep as a rule.

use super::Run;
use super::idle::Idle;
use super::tensor::{Block, Tensor};
use super::window::{Chunk, Scratch, sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::bracket::{Bracket, Counts, count_and_collect};

/// Bins of a bracket.
const BINS: usize = 1 << 14;

/// A magnitude sought, and found.
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

/// A search for the magnitude of `rank` among one expert's entries.
pub(super) struct Search<T: Real> {
    pub(super) expert: usize,
    pub(super) rank: u64,
    pub(super) bracket: Bracket<T::Magnitude>,
    pub(super) found: Option<Selected<T::Magnitude>>,
}

impl<T: Real> Search<T> {
    pub(super) fn new(expert: usize, rank: u64, bracket: Bracket<T::Magnitude>) -> Self {
        Self { expert, rank, bracket, found: None }
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

/// Run `searches` over the entries of `chunks` until all have found their magnitude.
pub(super) fn select<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensors: &[Tensor],
    chunks: &[Chunk],
    searches: &mut [Search<T>],
) -> Result<()> {
    let entries = chunks.iter().map(|chunk| chunk.entries.len() as u64).sum();
    loop {
        let mut open: Vec<&mut Search<T>> =
            searches.iter_mut().filter(|search| search.found.is_none()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let brackets: Vec<Bracket<T::Magnitude>> =
            open.iter().map(|search| search.bracket).collect();
        let experts: Vec<usize> = open.iter().map(|search| search.expert).collect();
        let tallies =
            Idle::new(|| brackets.iter().map(|&bracket| Tally::new(bracket)).collect::<Vec<_>>());
        sweep(run, scratch, tensors, chunks, |tensor, chunk, block| {
            tallies.lend(|tallies| count_chunk(tensor, chunk, &experts, tallies, block));
        })?;
        let mut totals = tallies.into_all().into_iter();
        let Some(mut total) = totals.next() else { return Ok(()) };
        for others in totals {
            total.iter_mut().zip(&others).for_each(|(total, other)| total.add(other));
        }
        for (search, tally) in open.iter_mut().zip(&total) {
            let before = search.bracket;
            search.narrow(entries, tally);
            debug_assert!(search.found.is_some() || search.bracket != before, "no progress");
        }
    }
}

fn count_chunk<T: Real>(
    tensor: &Tensor,
    chunk: &Chunk,
    experts: &[usize],
    tallies: &mut [Tally<T>],
    block: &mut Block<T>,
) {
    let mut inside = std::mem::take(&mut block.inside);
    for entries in chunk.blocks() {
        tensor.prefetch_after(&entries);
        let mut tallies = tallies.iter_mut();
        tensor.each_dropped(experts.iter().copied(), &entries, block, |_, delta| {
            if let Some(tally) = tallies.next() {
                tally.count(delta, &mut inside);
            }
        });
    }
    block.inside = inside;
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
