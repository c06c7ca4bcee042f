//! Dropping entries at random, the smaller ones of a row more often: the first half of DELLA (Deep, Bhardwaj
//! and Poria 2024).

use super::block::{Block, Ranked};
use super::{Apply, Blocks, Decision, Step, StepOn, Subject, Sweep};
use crate::dtype::Real;
use crate::error::{Error, Result};
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
                (density < 1.0).then_some(Drop { stream, density, epsilon })
            };
            Box::new(Dropped {
                row_length: subject.row_length(),
                rescale: self.rescale,
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

struct Dropped {
    row_length: usize,
    rescale: bool,
    /// `None` for a model that keeps all entries.
    models: Vec<Option<Drop>>,
}

impl<T: Real> Apply<T> for Dropped {
    fn changes(&self, model: usize) -> bool {
        self.models[model].is_some()
    }

    fn may_hide_nan(&self, model: usize) -> bool {
        self.models[model].is_some()
    }

    fn apply(&self, block: &mut Block<T>, _: &mut [u64], scales: Option<&[T]>) {
        let (first, length) = (block.entries().start as u64, self.row_length);
        for (model, drop) in self.models.iter().enumerate() {
            let Some(drop) = drop.filter(|_| block.is_active(model)) else { continue };
            let Ranked { row, order, spare, chances, keep } = block.ranked(model);
            let rows = row.chunks_exact_mut(length).zip(order.chunks_exact_mut(length));
            for ((row, order), chances) in rows.zip(chances.chunks_exact_mut(length)) {
                sort_by_magnitude(row, order, &mut spare[..length]);
                for (rank, &(_, index)) in order.iter().enumerate() {
                    let probability = drop.probability(rank, length);
                    chances[index as usize] = chance(probability);
                    if self.rescale {
                        let delta = &mut row[index as usize];
                        *delta = *delta / T::from_f64(probability);
                    }
                }
            }
            drop.stream.keep_each(first, chances, keep);
            drop_and_rescale(row, keep, scales.map_or(T::ONE, |scales| scales[model]));
        }
    }
}
