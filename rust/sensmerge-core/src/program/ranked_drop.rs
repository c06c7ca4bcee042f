//! Dropping entries at random, the smaller ones of a row more often: the first half of DELLA (Deep, Bhardwaj
//! and Poria 2024).

use std::ops::RangeInclusive;

use super::block::{Block, Bounded, Ranked};
use super::{Apply, Blocks, Decision, Step, StepOn, Subject, Sweep};
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::kernel::bins::{Bins, collect_between, keep_below};
use crate::kernel::random_drop::drop_and_rescale;
use crate::kernel::rank::sort_by_magnitude;
use crate::random::{Stream, chance};

/// Keep an entry with a probability that rises with the rank of its magnitude in its row: from
/// density − epsilon for the smallest to density + epsilon for the largest, in equal steps. In a row of
/// one entry it is the density. Of equal magnitudes that of the lower index counts as the larger. At
/// density 1 nothing is dropped.
///
/// Whether an entry is kept depends only on its probability, the seed, the model's index, the tensor's
/// name and the entry's index; [`random`](crate::random) has the rule.
#[derive(Debug)]
pub(crate) struct RankedDrop {
    /// The parameter that holds the mean fraction of entries kept.
    pub(crate) density: &'static str,
    /// The parameter that holds the greatest deviation from it.
    pub(crate) epsilon: &'static str,
    /// Whether every kept entry is divided by its own probability, which keeps its expectation.
    pub(crate) rescale: bool,
}

impl Step for RankedDrop {
    fn parameters(&self) -> Vec<&'static str> {
        vec![self.density, self.epsilon]
    }

    fn blocks(&self) -> Blocks {
        Blocks::WholeRows
    }

    fn check(&self, subject: &Subject) -> Result<()> {
        let models = subject.numbers(self.density).iter().zip(subject.numbers(self.epsilon));
        for (model, (&density, &epsilon)) in models.enumerate() {
            if density < 1.0 && (density - epsilon <= 0.0 || density + epsilon >= 1.0) {
                let (low, high) = (density - epsilon, density + epsilon);
                return Err(Error::setting(
                    format!("models[{model}].parameters.{}", self.epsilon),
                    format!(
                        "entries of '{}' would be kept with probabilities from {low:.3} to \
                         {high:.3} ({} ± {}), which must lie between 0 and 1; choose a smaller {}",
                        subject.name, self.density, self.epsilon, self.epsilon
                    ),
                ));
            }
        }
        Ok(())
    }

    fn sweeps(&self, _: &[Subject]) -> u64 {
        0
    }
}

impl<T: Real> StepOn<T> for RankedDrop {
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>> {
        let decide = |subject: &Subject| {
            let models = subject.numbers(self.density).iter().zip(subject.numbers(self.epsilon));
            let of_model = |(model, (&density, &epsilon)): (usize, (&f64, &f64))| {
                let stream = Stream::new(subject.seed, model as u64, subject.name);
                let drop = Drop { stream, density, epsilon };
                let plain = || Kind::Plain(drop, Turns::of(&drop, subject.row_length()));
                (density < 1.0).then(|| if self.rescale { Kind::Divided(drop) } else { plain() })
            };
            Box::new(Dropped {
                row_length: subject.row_length(),
                models: models.enumerate().map(of_model).collect(),
            }) as _
        };
        Ok(sweep.subjects().iter().map(decide).collect())
    }
}

/// The random stream and the probabilities of one model in one tensor.
#[derive(Clone, Copy)]
struct Drop {
    stream: Stream,
    density: f64,
    epsilon: f64,
}

impl Drop {
    /// The probability with which the entry of this rank, 0 the smallest, is kept in its row.
    fn probability(&self, rank: usize, row_length: usize) -> f64 {
        if row_length == 1 {
            return self.density;
        }
        let share = rank as f64 / (row_length - 1) as f64;
        (self.density - self.epsilon) + share * 2.0 * self.epsilon
    }
}

/// The ranks at which an entry's random byte begins to decide otherwise: chances rise with ranks.
#[derive(Clone)]
struct Turns {
    /// The bytes that do not decide for all ranks alike.
    between: RangeInclusive<u8>,
    /// For every byte, the least rank of which the chance is not below it, and the least above it.
    by_byte: Vec<[u32; 2]>,
}

impl Turns {
    fn of(drop: &Drop, row_length: usize) -> Self {
        let upper = |rank: usize| chance(drop.probability(rank, row_length)) >> 32;
        // The least rank of which the upper bits are at least this.
        let least = |bound: u64| {
            let (mut low, mut high) = (0, row_length);
            while low < high {
                let middle = usize::midpoint(low, high);
                if upper(middle) < bound { low = middle + 1 } else { high = middle }
            }
            low as u32
        };
        let byte = |rank: usize| upper(rank).min(255) as u8;
        Self {
            between: byte(0)..=byte(row_length.saturating_sub(1)),
            by_byte: (0..256).map(|byte| [least(byte), least(byte + 1)]).collect(),
        }
    }
}

/// Decide which entries of a row stay, from their random bytes and, where these do not tell, from bounds of
/// their ranks and, where these do not tell either, from the ranks. `first` is the first entry's place in the
/// tensor; `indices` is room for as many as there are entries.
fn decide<T: Real>(
    drop: &Drop,
    turns: &Turns,
    (first, row, bytes): (u64, &[T], &[u8]),
    bins: &mut Bins,
    indices: &mut [u32],
    keep: &mut [u8],
) {
    let (least, most) = (*turns.between.start(), *turns.between.end());
    let between = collect_between(bytes, least, most, keep, indices);
    keep_below(bytes, least, keep);
    bins.count(row);
    let mut open = 0;
    for place in 0..between {
        let index = indices[place];
        let entry = index as usize;
        let [possible, sure] = turns.by_byte[usize::from(bytes[entry])];
        let (rank, end) = bins.bounds(entry);
        keep[entry] = u8::from(rank >= sure);
        // Written over entries that have been looked at.
        indices[open] = index;
        open += usize::from((rank < sure) & (end > possible));
    }
    for &index in &indices[..open] {
        let entry = index as usize;
        let chance = chance(drop.probability(bins.rank(row, entry), row.len()));
        keep[entry] = u8::from(drop.stream.is_kept(first + u64::from(index), bytes[entry], chance));
    }
}

struct Dropped {
    row_length: usize,
    /// `None` for a model that keeps all entries.
    models: Vec<Option<Kind>>,
}

/// What is done with the entries that are kept.
enum Kind {
    /// Nothing: who is kept is all there is to know.
    Plain(Drop, Turns),
    /// Each is divided by its probability.
    Divided(Drop),
}

impl Drop {
    /// Drop entries of a model's rows, and multiply the others by `scale`.
    fn plain<T: Real>(&self, turns: &Turns, block: &mut Block<T>, rows: Rows, scale: T) {
        let Bounded { row, bins, bytes, indices, keep } = block.bounded(rows.model);
        self.stream.bytes(rows.first, bytes);
        let places = (rows.first..).step_by(rows.length);
        let entries = row.chunks_exact(rows.length).zip(bytes.chunks_exact(rows.length));
        for ((first, (row, bytes)), keep) in
            places.zip(entries).zip(keep.chunks_exact_mut(rows.length))
        {
            decide(self, turns, (first, row, bytes), bins, indices, keep);
        }
        drop_and_rescale(row, keep, scale);
    }

    /// The same, where the others are also divided by their probabilities.
    fn divided<T: Real>(&self, block: &mut Block<T>, rows: Rows, scale: T) {
        let Ranked { row, order, spare, chances, keep } = block.ranked(rows.model);
        let entries = row.chunks_exact_mut(rows.length).zip(order.chunks_exact_mut(rows.length));
        for ((row, order), chances) in entries.zip(chances.chunks_exact_mut(rows.length)) {
            sort_by_magnitude(row, order, &mut spare[..rows.length]);
            for (rank, &(_, index)) in order.iter().enumerate() {
                let probability = self.probability(rank, rows.length);
                let entry = index as usize;
                chances[entry] = chance(probability);
                row[entry] = row[entry] / T::from_f64(probability);
            }
        }
        self.stream.keep_each(rows.first, chances, keep);
        drop_and_rescale(row, keep, scale);
    }
}

/// A model's rows in a block.
#[derive(Clone, Copy)]
struct Rows {
    model: usize,
    /// The place of the first entry in its tensor.
    first: u64,
    /// Entries of a row.
    length: usize,
}

impl<T: Real> Apply<T> for Dropped {
    fn changes(&self, model: usize) -> bool {
        self.models[model].is_some()
    }

    fn is_worth_remembering(&self) -> bool {
        true
    }

    fn may_hide_nan(&self, model: usize) -> bool {
        self.models[model].is_some()
    }

    fn apply(&self, block: &mut Block<T>, _: &mut [u64], scales: Option<&[T]>) {
        let (first, length) = (block.entries().start as u64, self.row_length);
        for (model, kind) in self.models.iter().enumerate() {
            let (rows, scale) =
                (Rows { model, first, length }, scales.map_or(T::ONE, |scales| scales[model]));
            match kind.as_ref().filter(|_| block.is_active(model)) {
                Some(Kind::Plain(drop, turns)) => drop.plain(turns, block, rows, scale),
                Some(Kind::Divided(drop)) => drop.divided(block, rows, scale),
                None => {}
            }
        }
    }
}
