//! Magnitude trimming, the first half of TIES (Yadav et al. 2023, §4.1). The thresholds come from
//! [`threshold`](super::threshold).

use super::block::Block;
use super::rescale::scale_rows;
use super::threshold::{Cut, cuts_by_model, cuts_by_tensor};
use super::{Apply, Decision, Scope, Step, StepOn, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::trim::{trim, trim_exact};

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
            Scope::Tensor => cuts_by_tensor(sweep, self.density)?,
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
        !matches!(self.cuts[model], Cut::None)
    }

    fn carried(&self, chunk: usize) -> Vec<u64> {
        let ties = |cut: &Cut<T>| match cut {
            Cut::Exactly { ties, .. } => ties[chunk],
            Cut::None | Cut::AtLeast(_) => 0,
        };
        self.cuts.iter().map(ties).collect()
    }

    fn apply(&self, block: &mut Block<T>, carried: &mut [u64], scales: Option<&[T]>) {
        for (model, cut) in self.cuts.iter().enumerate() {
            if !block.is_active(model) {
                continue;
            }
            match cut {
                Cut::None => {}
                Cut::AtLeast(magnitude) => trim(block.row_mut(model), *magnitude),
                Cut::Exactly { magnitude, .. } => {
                    trim_exact(block.row_mut(model), *magnitude, &mut carried[model]);
                }
            }
        }
        scale_rows(block, scales);
    }
}
