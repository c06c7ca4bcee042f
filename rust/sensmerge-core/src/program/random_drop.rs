//! Dropping entries at random, the first half of DARE (Yu et al. 2024).

use super::block::Block;
use super::{Apply, Decision, Kept, Known, Step, StepOn, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::random_drop::drop_and_rescale;
use crate::random::Stream;

/// Set each entry to 0 with probability 1 − density.
///
/// Whether an entry is kept depends only on the density, the seed, the model's index, the tensor's name
/// and the entry's index; [`random`](crate::random) has the rule.
#[derive(Debug)]
pub(crate) struct RandomDrop {
    /// The parameter that holds the fraction of entries kept.
    pub(crate) density: &'static str,
}

impl Step for RandomDrop {
    fn parameters(&self) -> Vec<&'static str> {
        vec![self.density]
    }

    fn sweeps(&self, _: &[Subject]) -> u64 {
        0
    }
}

impl<T: Real> StepOn<T> for RandomDrop {
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>> {
        let decide = |subject: &Subject| {
            let stream = |model| Stream::new(subject.seed, model as u64, subject.name);
            let densities = subject.numbers(self.density).iter().copied();
            let of_model = |(model, density)| {
                (density < 1.0).then(|| Kept::Drawn { stream: stream(model), density })
            };
            Box::new(Dropped { models: densities.enumerate().map(of_model).collect() }) as _
        };
        Ok(sweep.subjects().iter().map(decide).collect())
    }
}

/// What is kept of every model; `None` for a model that keeps all entries.
struct Dropped {
    models: Vec<Option<Kept>>,
}

impl<T: Real> Apply<T> for Dropped {
    fn changes(&self, model: usize) -> bool {
        self.models[model].is_some()
    }

    fn may_hide_nan(&self, model: usize) -> bool {
        self.models[model].is_some()
    }

    fn known(&self, model: usize, _: usize, scales: Option<&[T]>) -> Option<Known<T>> {
        let Some(kept) = self.models[model].clone() else { return Some(Known::nothing()) };
        let scale = scales.map_or(T::ONE, |scales| scales[model]);
        Some(Known::Drop { kept, scale })
    }

    fn apply(&self, block: &mut Block<T>, _: &mut [u64], scales: Option<&[T]>) {
        let first = block.entries().start;
        for (model, kept) in self.models.iter().enumerate() {
            if let Some(kept) = kept.as_ref().filter(|_| block.is_active(model)) {
                let scale = scales.map_or(T::ONE, |scales| scales[model]);
                let (row, keep) = block.row_and_keep(model);
                kept.mask(first, keep);
                drop_and_rescale(row, keep, scale);
            }
        }
    }
}
