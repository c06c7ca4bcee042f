//! Selection of the entries whose values differ most between the task vectors, the first part of SCE (Wan
//! et al. 2024).

use super::block::{Block, Parts};
use super::cut::{Cut, Kept, Target};
use super::derived::Derived;
use super::rescale::scale_rows;
use super::threshold::cuts_by_tensor;
use super::{Apply, Decision, Step, StepOn, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::variance::{keep_scored, variance};

/// Keep, in all task vectors, the entries of the largest variance over the task vectors: exactly the
/// fraction `share` of those whose variance is not 0, rounded down; of equal ones those of the lowest
/// indices. With a fraction of 1 nothing changes.
#[derive(Debug)]
pub(crate) struct SelectByVariance {
    /// The parameter that holds the fraction.
    pub(crate) share: &'static str,
}

impl Step for SelectByVariance {
    fn parameters(&self) -> Vec<&'static str> {
        vec![self.share]
    }

    fn sweeps(&self, subjects: &[Subject]) -> u64 {
        u64::from(subjects.iter().any(|subject| subject.number(self.share) < 1.0))
    }
}

impl<T: Real> StepOn<T> for SelectByVariance {
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>> {
        let derive = |_: usize, block: &mut Block<T>| {
            let Parts { rows, out, .. } = block.parts();
            variance(rows, out);
            rows[..out.len()].copy_from_slice(out);
        };
        let target = |subject: &Subject| {
            let share = subject.number(self.share);
            let kept = if share < 1.0 { Kept::OfNonzero(share) } else { Kept::Count(u64::MAX) };
            vec![Target { row: 0, kept }]
        };
        let targets: Vec<Vec<Target>> = sweep.subjects().iter().map(target).collect();
        let cuts = cuts_by_tensor(&Derived::new(sweep, &derive), &targets)?;
        let selected = |cut| Box::new(Selected { cut }) as _;
        Ok(cuts.into_iter().flatten().map(selected).collect())
    }
}

/// The cut among the variances of one tensor.
struct Selected<T: Real> {
    cut: Cut<T>,
}

impl<T: Real> Apply<T> for Selected<T> {
    fn changes(&self, _: usize) -> bool {
        !matches!(self.cut, Cut::All)
    }

    fn may_hide_nan(&self, model: usize) -> bool {
        self.changes(model)
    }

    fn carried(&self, chunk: usize) -> Vec<u64> {
        vec![self.cut.carried(chunk)]
    }

    fn apply(&self, block: &mut Block<T>, carried: &mut [u64], scales: Option<&[T]>) {
        if !matches!(self.cut, Cut::All) {
            debug_assert!((0..block.models()).all(|model| block.is_active(model)));
            let Parts { rows, out, .. } = block.parts();
            if !out.is_empty() {
                variance(rows, out);
                self.cut.keep(out, &mut carried[0]);
                rows.chunks_exact_mut(out.len()).for_each(|row| keep_scored(row, out));
            }
        }
        scale_rows(block, scales);
    }
}
