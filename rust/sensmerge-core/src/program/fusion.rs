//! Selection of important changes: large ones in rows that differ as distributions (Arcee Fusion).
//!
//! ```text
//! in one sweep: for every row, the divergence between the softmax of the model's row and of the base's
//! importance of an entry: |δ| · divergence of its row
//! in one sweep: the quartiles of a tensor's importances, exactly
//! kept are entries of an importance of at least  median + 1.5 · (upper quartile − lower quartile)
//! ```

use super::block::{Block, Parts};
use super::cut::{Cut, Kept, Target};
use super::derived::Derived;
use super::rescale::scale_rows;
use super::sweep::{Chunk, reduce_tensors};
use super::threshold::cuts_by_tensor;
use super::{Apply, Blocks, Decision, Reduction, Step, StepOn, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::divergence::{importance, keep_important, softmax_divergence};

/// The quartiles are the entries of these ranks, times n − 1 and rounded down, in ascending order.
const QUARTILES: [f64; 3] = [0.25, 0.5, 0.75];

/// The factor of the distance between the upper and the lower quartile.
const DISTANCE: f64 = 1.5;

/// Keep the important entries of the one task vector.
#[derive(Debug)]
pub(crate) struct KeepImportant;

impl Step for KeepImportant {
    fn parameters(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn blocks(&self) -> Blocks {
        Blocks::Rows
    }

    fn sweeps(&self, _: &[Subject]) -> u64 {
        2
    }
}

impl<T: Real> StepOn<T> for KeepImportant {
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>> {
        let subjects = sweep.subjects();
        let lengths: Vec<usize> = subjects.iter().map(Subject::row_length).collect();
        let factors: Vec<Vec<T>> = reduce_tensors(sweep, &Divergences { lengths: &lengths })?
            .into_iter()
            .map(|found| found.by_row.into_iter().map(T::from_f64).collect())
            .collect();
        let derive = |tensor: usize, block: &mut Block<T>| {
            let (mut entry, length) = (block.entries().start, lengths[tensor]);
            let mut rest = block.row_mut(0);
            while !rest.is_empty() {
                let left = (length - entry % length).min(rest.len());
                let (now, later) = std::mem::take(&mut rest).split_at_mut(left);
                importance(now, factors[tensor][entry / length]);
                (rest, entry) = (later, entry + left);
            }
        };
        let target = |subject: &Subject| {
            let last = subject.elements().saturating_sub(1) as f64;
            QUARTILES.map(|share| Target { row: 0, kept: Kept::UpToRank((share * last) as u64) })
        };
        let targets: Vec<Vec<Target>> =
            subjects.iter().map(|subject| target(subject).to_vec()).collect();
        let cuts = cuts_by_tensor(&Derived::new(sweep, &derive), &targets)?;
        let thresholds: Vec<T> = cuts.iter().map(|cuts| threshold(cuts)).collect();
        let decided = factors.into_iter().zip(thresholds).zip(lengths);
        Ok(decided
            .map(|((factors, threshold), row_length)| {
                Box::new(Important { row_length, factors, threshold }) as _
            })
            .collect())
    }
}

/// The least importance that is kept, from the quartiles.
fn threshold<T: Real>(quartiles: &[Cut<T>]) -> T {
    let number = |cut: &Cut<T>| match cut {
        Cut::Exactly { magnitude, .. } | Cut::AtLeast(magnitude) => T::of_magnitude(*magnitude),
        Cut::All | Cut::Nothing => T::ZERO,
    };
    match quartiles {
        [lower, median, upper] => {
            number(median) + T::from_f64(DISTANCE) * (number(upper) - number(lower))
        }
        _ => T::ZERO,
    }
}

/// The reduction to the divergence of every row. A row is held until it is whole.
struct Divergences<'l> {
    /// Length of the rows of every tensor.
    lengths: &'l [usize],
}

struct Found<T> {
    by_row: Vec<f64>,
    base: Vec<T>,
    other: Vec<T>,
}

impl<T: Real> Reduction<T> for Divergences<'_> {
    type Partial = Found<T>;

    fn identity(&self, _: Option<&Chunk>) -> Found<T> {
        Found { by_row: Vec::new(), base: Vec::new(), other: Vec::new() }
    }

    fn block(&self, tensor: usize, block: &mut Block<T>, found: &mut Found<T>) {
        let Parts { base, rows, .. } = block.parts();
        found.base.extend_from_slice(base);
        found.other.extend(base.iter().zip(&*rows).map(|(&base, &delta)| base + delta));
        if found.base.len() == self.lengths[tensor] {
            found.by_row.push(softmax_divergence(&found.base, &found.other));
            found.base.clear();
            found.other.clear();
        }
    }

    fn merge(&self, found: &mut Found<T>, next: Found<T>) {
        found.by_row.extend(next.by_row);
    }
}

/// What is kept of one tensor.
struct Important<T> {
    row_length: usize,
    /// The divergence of every row.
    factors: Vec<T>,
    threshold: T,
}

impl<T: Real> Apply<T> for Important<T> {
    fn changes(&self, _: usize) -> bool {
        true
    }

    fn may_hide_nan(&self, _: usize) -> bool {
        true
    }

    fn apply(&self, block: &mut Block<T>, _: &mut [u64], scales: Option<&[T]>) {
        if block.is_active(0) && block.len() > 0 {
            let factor = self.factors[block.entries().start / self.row_length];
            keep_important(block.row_mut(0), factor, self.threshold);
        }
        scale_rows(block, scales);
    }
}
