//! A band of magnitudes: the largest entries are dropped, and the smallest (Model Breadcrumbs, Davari and
//! Belilovsky 2023).

use super::block::{Block, Ranked};
use super::cut::{Cut, Kept, Target};
use super::rescale::scale_rows;
use super::threshold::cuts_by_tensor;
use super::{Apply, Blocks, Decision, Step, StepOn, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::rank::{keep_ranks, sort_by_magnitude};

/// Keep exactly `floor(density * n)` of a tensor's n entries: those that come after the
/// `floor(gamma * n)` largest ones, or after fewer where not enough would be left. Of equal magnitudes
/// that of the lower index counts as the larger. At density 1 nothing is dropped.
#[derive(Debug)]
pub(crate) struct Band {
    /// The parameter that holds the fraction of entries kept.
    pub(crate) density: &'static str,
    /// The parameter that holds the fraction of entries dropped at the top.
    pub(crate) gamma: &'static str,
}

impl Band {
    /// The cuts of a tensor, two for each model: the entries above the band's lower end, and those
    /// above its upper end.
    fn targets(&self, subject: &Subject) -> Vec<Target> {
        let elements = subject.elements() as u64;
        let count = |share: f64| (share * elements as f64).floor() as u64;
        let models = subject.numbers(self.density).iter().zip(subject.numbers(self.gamma));
        let of_model = |(row, (&density, &gamma)): (usize, (&f64, &f64))| {
            let kept = count(density).min(elements);
            let dropped = if kept == 0 { 0 } else { count(gamma).min(elements - kept) };
            [kept + dropped, dropped].map(|count| Target { row, kept: Kept::Count(count) })
        };
        models.enumerate().flat_map(of_model).collect()
    }
}

impl Step for Band {
    fn parameters(&self) -> Vec<&'static str> {
        vec![self.density, self.gamma]
    }

    fn sweeps(&self, subjects: &[Subject]) -> u64 {
        let trims =
            |subject: &Subject| subject.numbers(self.density).iter().any(|&density| density < 1.0);
        u64::from(subjects.iter().any(trims))
    }
}

impl<T: Real> StepOn<T> for Band {
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>> {
        let targets: Vec<Vec<Target>> =
            sweep.subjects().iter().map(|subject| self.targets(subject)).collect();
        let cuts = cuts_by_tensor(sweep, &targets)?;
        Ok(cuts.into_iter().map(|cuts| Box::new(Banded { cuts }) as _).collect())
    }
}

/// Two cuts for every model in one tensor.
struct Banded<T: Real> {
    cuts: Vec<Cut<T>>,
}

impl<T: Real> Apply<T> for Banded<T> {
    fn changes(&self, model: usize) -> bool {
        !matches!(self.cuts[2 * model..], [Cut::All, Cut::Nothing, ..])
    }

    fn may_hide_nan(&self, model: usize) -> bool {
        self.changes(model)
    }

    fn carried(&self, chunk: usize) -> Vec<u64> {
        self.cuts.iter().map(|cut| cut.carried(chunk)).collect()
    }

    fn apply(&self, block: &mut Block<T>, carried: &mut [u64], scales: Option<&[T]>) {
        for (model, (cuts, ties)) in
            self.cuts.chunks_exact(2).zip(carried.chunks_exact_mut(2)).enumerate()
        {
            if block.is_active(model) {
                let row = block.row_mut(model);
                // In this order: entries that the first sets to 0 lie below the second's threshold.
                cuts[0].keep(row, &mut ties[0]);
                cuts[1].drop(row, &mut ties[1]);
            }
        }
        scale_rows(block, scales);
    }
}

/// The same for every row of a tensor by itself, as the paper's code has it: the `floor(gamma * n)`
/// largest of a row's n entries are dropped in any case, and of the others the `floor(density * n)`
/// largest are kept. A scalar is kept.
#[derive(Debug)]
pub(crate) struct BandOfRows {
    /// The parameter that holds the fraction of entries kept.
    pub(crate) density: &'static str,
    /// The parameter that holds the fraction of entries dropped at the top.
    pub(crate) gamma: &'static str,
}

impl Step for BandOfRows {
    fn parameters(&self) -> Vec<&'static str> {
        vec![self.density, self.gamma]
    }

    fn blocks(&self) -> Blocks {
        Blocks::WholeRows
    }

    fn sweeps(&self, _: &[Subject]) -> u64 {
        0
    }
}

impl<T: Real> StepOn<T> for BandOfRows {
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>> {
        let decide = |subject: &Subject| {
            let row_length = subject.row_length();
            let count = |share: f64| (share * row_length as f64).floor() as usize;
            let models = subject.numbers(self.density).iter().zip(subject.numbers(self.gamma));
            let of_model = |(&density, &gamma): (&f64, &f64)| {
                let dropped = count(gamma).min(row_length);
                let kept = count(density).min(row_length - dropped);
                if subject.shape.is_empty() { (0, row_length) } else { (dropped, kept) }
            };
            Box::new(BandedRows { row_length, models: models.map(of_model).collect() }) as _
        };
        Ok(sweep.subjects().iter().map(decide).collect())
    }
}

struct BandedRows {
    row_length: usize,
    /// By model, the number of entries of a row that are dropped at the top, and that of those kept.
    models: Vec<(usize, usize)>,
}

impl<T: Real> Apply<T> for BandedRows {
    fn changes(&self, model: usize) -> bool {
        self.models[model] != (0, self.row_length)
    }

    fn may_hide_nan(&self, model: usize) -> bool {
        <Self as Apply<T>>::changes(self, model)
    }

    fn apply(&self, block: &mut Block<T>, _: &mut [u64], scales: Option<&[T]>) {
        for (model, &(dropped, kept)) in self.models.iter().enumerate() {
            if block.is_active(model) && <Self as Apply<T>>::changes(self, model) {
                let Ranked { row, order, spare, .. } = block.ranked(model);
                let orders = order.chunks_exact_mut(self.row_length);
                for (row, order) in row.chunks_exact_mut(self.row_length).zip(orders) {
                    sort_by_magnitude(row, order, &mut spare[..row.len()]);
                    let end = row.len() - dropped;
                    keep_ranks(row, order, end - kept..end);
                }
            }
        }
        scale_rows(block, scales);
    }
}
