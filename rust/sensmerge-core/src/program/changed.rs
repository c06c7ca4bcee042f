//! The mean over the experts that changed an entry (RAM, arXiv 2601.13572).

use super::block::{Block, Parts};
use super::sweep::{Chunk, reduce_tensors};
use super::{Combine, CombineOn, Join, Reduction, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::changed::{count_changed, mean_of_changed};

/// The parameter that holds the magnitude up to which an entry counts as unchanged.
const EPSILON: &str = "epsilon";

/// The mean of each entry over the models that changed it.
#[derive(Debug)]
pub(crate) struct MeanOfChanged {
    /// Whether what one model alone changed in a tensor is strengthened, to make up for what it loses
    /// to the means: by `1 + r · clip(shared / alone, 0, alpha)`, where `shared` and `alone` count the
    /// entries that it changed as others did and that it alone changed.
    pub(crate) strengthen: bool,
}

impl Combine for MeanOfChanged {
    fn sweeps(&self) -> u64 {
        u64::from(self.strengthen)
    }

    fn reductions(&self) -> String {
        if self.strengthen { "counts of changes".into() } else { String::new() }
    }

    fn reduced_parameters(&self) -> Vec<&'static str> {
        if self.strengthen { vec![EPSILON] } else { Vec::new() }
    }
}

impl<T: Real> CombineOn<T> for MeanOfChanged {
    fn reduce(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Vec<f64>>> {
        let subjects = sweep.subjects();
        if !self.strengthen {
            return Ok(vec![Vec::new(); subjects.len()]);
        }
        let thresholds: Vec<Vec<T>> = subjects.iter().map(thresholds).collect();
        let counts = reduce_tensors(sweep, &Changes { thresholds: &thresholds })?;
        // A ratio for every model.
        let ratio = |(&alone, &shared): (&u64, &u64)| shared as f64 / (alone as f64).max(1e-5);
        Ok(counts
            .iter()
            .map(|(alone, shared)| alone.iter().zip(shared).map(ratio).collect())
            .collect())
    }

    fn bind(&self, subject: &Subject, found: &[f64]) -> Box<dyn Join<T>> {
        let factors = if self.strengthen {
            let (r, alpha) = (subject.number("r"), subject.number("alpha"));
            let factor = |&ratio: &f64| T::from_f64(1.0 + r * ratio.clamp(0.0, alpha));
            found.iter().map(factor).collect()
        } else {
            vec![T::ONE; subject.models]
        };
        Box::new(Mean { thresholds: thresholds(subject), factors })
    }
}

fn thresholds<T: Real>(subject: &Subject) -> Vec<T> {
    subject.numbers(EPSILON).iter().copied().map(T::from_f64).collect()
}

/// The reduction to the numbers of entries that each model alone changed, and that it changed as others
/// did.
struct Changes<'t, T> {
    thresholds: &'t [Vec<T>],
}

impl<T: Real> Reduction<T> for Changes<'_, T> {
    type Partial = (Vec<u64>, Vec<u64>);

    fn identity(&self, chunk: Option<&Chunk>) -> Self::Partial {
        let models = self.thresholds.first().map_or(0, Vec::len);
        let _ = chunk;
        (vec![0; models], vec![0; models])
    }

    fn block(&self, tensor: usize, block: &mut Block<T>, (alone, shared): &mut Self::Partial) {
        let length = block.len();
        count_changed(block.parts().rows, &self.thresholds[tensor], length, alone, shared);
    }

    fn merge(&self, partial: &mut Self::Partial, next: Self::Partial) {
        partial.0.iter_mut().zip(next.0).for_each(|(count, next)| *count += next);
        partial.1.iter_mut().zip(next.1).for_each(|(count, next)| *count += next);
    }
}

struct Mean<T> {
    thresholds: Vec<T>,
    factors: Vec<T>,
}

impl<T: Real> Join<T> for Mean<T> {
    fn join(&self, block: &mut Block<T>) {
        let Parts { rows, out, .. } = block.parts();
        mean_of_changed(rows, &self.thresholds, &self.factors, out);
    }
}
