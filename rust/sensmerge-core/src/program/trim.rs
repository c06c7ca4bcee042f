//! Magnitude trimming, the first half of TIES (Yadav et al. 2023, §4.1). The thresholds come from
//! [`threshold`](super::threshold).

use super::block::Block;
use super::cut::{Cut, Kept, Target};
use super::rescale::scale_rows;
use super::threshold::{cuts_by_model, cuts_by_tensor};
use super::{Apply, Decision, Known, Scope, Step, StepOn, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;

/// Set small entries to 0.
///
/// - Within a tensor of n entries: exactly `max(1, floor(density * n))` entries stay, of equal ones
///   those of the lowest indices.
/// - Over a model of n entries: with `k = n - floor(density * n)`, all entries at or above the k-th
///   smallest magnitude of the whole task vector stay.
#[derive(Debug)]
pub(crate) struct Trim {
    /// The parameter that holds the fraction of entries kept.
    pub(crate) density: &'static str,
    /// The range over which magnitudes are compared: a tensor or the model.
    pub(crate) scope: Scope,
}

impl Trim {
    /// The entries that stay in a tensor, model by model.
    fn targets(&self, subject: &Subject) -> Vec<Target> {
        let elements = subject.elements() as f64;
        let of_model = |(row, &density): (usize, &f64)| {
            let count = ((density * elements).floor() as u64).max(1);
            Target { row, kept: Kept::Count(count) }
        };
        subject.numbers(self.density).iter().enumerate().map(of_model).collect()
    }
}

impl Step for Trim {
    fn scope(&self) -> Scope {
        self.scope
    }

    fn parameters(&self) -> Vec<&'static str> {
        vec![self.density]
    }

    fn sweeps(&self, subjects: &[Subject]) -> u64 {
        let trims =
            |subject: &Subject| subject.numbers(self.density).iter().any(|&density| density < 1.0);
        u64::from(subjects.iter().any(trims))
    }
}

impl<T: Real> StepOn<T> for Trim {
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>> {
        let cuts = match self.scope {
            Scope::Tensor => {
                let targets: Vec<Vec<Target>> =
                    sweep.subjects().iter().map(|subject| self.targets(subject)).collect();
                cuts_by_tensor(sweep, &targets)?
            }
            Scope::Model => cuts_by_model(sweep, self.density)?,
        };
        Ok(cuts.into_iter().map(|cuts| Box::new(Trimmed { cuts }) as _).collect())
    }
}

/// The cut for every model in one tensor.
struct Trimmed<T: Real> {
    cuts: Vec<Cut<T>>,
}

impl<T: Real> Apply<T> for Trimmed<T> {
    fn changes(&self, model: usize) -> bool {
        !matches!(self.cuts[model], Cut::All)
    }

    fn carried(&self, chunk: usize) -> Vec<u64> {
        self.cuts.iter().map(|cut| cut.carried(chunk)).collect()
    }

    fn known(&self, model: usize, chunk: usize, scales: Option<&[T]>) -> Option<Known<T>> {
        let scale = scales.map_or(T::ONE, |scales| scales[model]);
        Some(Known::Trim { least: self.cuts[model].least(chunk)?, scale })
    }

    fn apply(&self, block: &mut Block<T>, carried: &mut [u64], scales: Option<&[T]>) {
        for (model, cut) in self.cuts.iter().enumerate() {
            if block.is_active(model) {
                cut.keep(block.row_mut(model), &mut carried[model]);
            }
        }
        scale_rows(block, scales);
    }
}
