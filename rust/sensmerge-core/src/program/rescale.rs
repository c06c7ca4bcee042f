//! Rescaling of the entries that a step keeps, to make up for those that it sets to 0.

use std::sync::Arc;

use super::block::Block;
use super::sweep::{Chunk, reduce_tensors};
use super::{
    Apply, Blocks, Computed, Decision, Kept, Known, Reduction, Scope, Step, StepOn, Subject, Sweep,
};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::random_drop::{add_bits, drop_and_rescale, keep_nonzero};
use crate::kernel::sum::{l1, l1_of_finite, l1_of_kept};
use crate::kernel::weighted_sum::multiply;

/// If a norm, before or after the step, is below this, the entries are not rescaled.
const SMALLEST_NORM: f64 = 1e-7;

/// Of a tensor of more entries is not remembered which it keeps: as many as a window has.
const REMEMBERED: usize = 1 << 26;

/// A step whose kept entries are multiplied by one factor per model and tensor, which restores the L1
/// norm that the task vector had before the step (mergekit's `rescale`). Only finite entries count.
#[derive(Debug)]
pub(crate) struct PreserveL1 {
    inner: Box<dyn Step>,
}

impl PreserveL1 {
    /// Restore the L1 norm after `inner`.
    pub(crate) fn of(inner: impl Step + 'static) -> Self {
        Self { inner: Box::new(inner) }
    }
}

impl Step for PreserveL1 {
    fn scope(&self) -> Scope {
        self.inner.scope()
    }

    fn parameters(&self) -> Vec<&'static str> {
        self.inner.parameters()
    }

    fn blocks(&self) -> Blocks {
        self.inner.blocks()
    }

    fn check(&self, subject: &Subject) -> Result<()> {
        self.inner.check(subject)
    }

    fn sweeps(&self, subjects: &[Subject]) -> u64 {
        self.inner.sweeps(subjects) + 1
    }
}

impl<T: Computed> StepOn<T> for PreserveL1 {
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>> {
        let decided = T::step(&*self.inner).decide(sweep)?;
        let remembered = |(decision, subject): (&Decision<T>, &Subject)| {
            let fits = subject.row_length().is_multiple_of(32) && subject.elements() <= REMEMBERED;
            sweep.is_brief() && fits && decision.is_worth_remembering()
        };
        let remembered = decided.iter().zip(sweep.subjects()).map(remembered).collect();
        let norms = reduce_tensors(sweep, &Norms { decided: &decided, remembered })?;
        let scaled = |(inner, norms): (Decision<T>, Partial)| {
            let scales = norms.by_model.iter().map(|blocks| factor(blocks)).collect();
            if norms.bits.is_empty() {
                return Box::new(Scaled { inner, scales }) as _;
            }
            let bits = norms.bits.into_iter().map(Arc::new).collect();
            Box::new(Remembered { inner, bits, scales }) as _
        };
        Ok(decided.into_iter().zip(norms).map(scaled).collect())
    }
}

/// The factor that restores a norm, from the L1 norms of blocks before and after the step.
fn factor<T: Real>(blocks: &[(f64, f64)]) -> T {
    let (before, after) =
        blocks.iter().fold((0.0, 0.0), |total, block| (total.0 + block.0, total.1 + block.1));
    let vanishing = before < SMALLEST_NORM || after < SMALLEST_NORM;
    if vanishing { T::ONE } else { T::from_f64(before / after) }
}

/// L1 norms of blocks, before and after a step.
struct Norms<'d, T: Real> {
    decided: &'d [Decision<T>],
    /// Whether the entries that are kept are remembered, by tensor.
    remembered: Vec<bool>,
}

impl<T: Real> Norms<'_, T> {
    /// What is kept of every active model, if the step only drops entries at random.
    fn kept(&self, tensor: usize, block: &Block<T>) -> Option<Vec<(usize, Kept)>> {
        let of_model = |model| match self.decided[tensor].known(model, 0, None) {
            Some(Known::Drop { kept, .. }) => Some((model, kept)),
            _ => None,
        };
        (0..block.models()).filter(|&model| block.is_active(model)).map(of_model).collect()
    }
}

/// Add the norms of a block, before and after its entries are dropped.
fn of_kept<T: Real>(
    kept: &[(usize, Kept)],
    block: &mut Block<T>,
    by_model: &mut [Vec<(f64, f64)>],
) {
    let first = block.entries().start;
    for (model, kept) in kept {
        let (model, (row, keep)) = (*model, block.row_and_keep(*model));
        kept.mask(first, keep);
        let [before, after] = match l1_of_kept(row, keep) {
            // The sum of all is infinite or NaN where that of some is.
            [before, _] if !before.is_finite() => l1_of_finite(row, keep),
            norms => norms,
        };
        by_model[model].push((before, after));
    }
}

/// The L1 norm of a model's row: of its finite entries, so that one that is not harms no other.
fn norm<T: Real>(block: &mut Block<T>, model: usize) -> f64 {
    let found = l1(block.row(model));
    if found.is_finite() {
        return found;
    }
    let (row, keep) = block.row_and_keep(model);
    keep.fill(1);
    l1_of_finite(row, keep)[0]
}

struct Partial {
    carried: Vec<u64>,
    /// Norms before and after, by model and block; empty for a model that the step does not change.
    by_model: Vec<Vec<(f64, f64)>>,
    /// A bit for every entry of every model, 1 where it is not 0 after the step; likewise. None if they are
    /// not remembered.
    bits: Vec<Vec<u32>>,
}

impl<T: Real> Reduction<T> for Norms<'_, T> {
    type Partial = Partial;

    fn wants(&self, tensor: usize, model: usize) -> bool {
        self.decided[tensor].changes(model)
    }

    fn identity(&self, chunk: Option<&Chunk>) -> Partial {
        let carried = chunk.map(|chunk| self.decided[chunk.tensor].carried(chunk.place));
        let carried = carried.unwrap_or_default();
        Partial { carried, by_model: Vec::new(), bits: Vec::new() }
    }

    fn block(&self, tensor: usize, block: &mut Block<T>, partial: &mut Partial) {
        partial.by_model.resize_with(block.models(), Vec::new);
        if let Some(kept) = self.kept(tensor, block) {
            return of_kept(&kept, block, &mut partial.by_model);
        }
        for (model, blocks) in partial.by_model.iter_mut().enumerate() {
            if block.is_active(model) {
                blocks.push((norm(block, model), 0.0));
            }
        }
        self.decided[tensor].apply(block, &mut partial.carried, None);
        for (model, blocks) in partial.by_model.iter_mut().enumerate() {
            if let Some((_, after)) = blocks.last_mut().filter(|_| block.is_active(model)) {
                *after = norm(block, model);
            }
        }
        if self.remembered[tensor] {
            partial.bits.resize_with(block.models(), Vec::new);
            for (model, bits) in partial.bits.iter_mut().enumerate() {
                if block.is_active(model) {
                    let (row, keep) = block.row_and_keep(model);
                    keep_nonzero(row, keep);
                    add_bits(keep, bits);
                }
            }
        }
    }

    fn merge(&self, partial: &mut Partial, next: Partial) {
        partial.by_model.resize_with(next.by_model.len().max(partial.by_model.len()), Vec::new);
        for (blocks, next) in partial.by_model.iter_mut().zip(next.by_model) {
            blocks.extend(next);
        }
        partial.bits.resize_with(next.bits.len().max(partial.bits.len()), Vec::new);
        for (bits, next) in partial.bits.iter_mut().zip(next.bits) {
            bits.extend(next);
        }
    }
}

/// A step whose kept entries are divided by a density, which keeps the expectation of every entry
/// (Yu et al. 2024).
#[derive(Debug)]
pub(crate) struct DivideByDensity {
    inner: Box<dyn Step>,
    density: &'static str,
}

impl DivideByDensity {
    /// Divide the entries that `inner` keeps by the parameter `density`.
    pub(crate) fn of(inner: impl Step + 'static, density: &'static str) -> Self {
        Self { inner: Box::new(inner), density }
    }
}

impl Step for DivideByDensity {
    fn scope(&self) -> Scope {
        self.inner.scope()
    }

    fn parameters(&self) -> Vec<&'static str> {
        let mut parameters = self.inner.parameters();
        parameters.push(self.density);
        parameters
    }

    fn blocks(&self) -> Blocks {
        self.inner.blocks()
    }

    fn check(&self, subject: &Subject) -> Result<()> {
        self.inner.check(subject)
    }

    fn sweeps(&self, subjects: &[Subject]) -> u64 {
        self.inner.sweeps(subjects)
    }
}

impl<T: Computed> StepOn<T> for DivideByDensity {
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>> {
        let decided = T::step(&*self.inner).decide(sweep)?;
        let scaled = |(inner, subject): (Decision<T>, &Subject)| {
            let densities = subject.numbers(self.density).iter();
            let scales = densities.map(|density| T::from_f64(1.0 / density)).collect();
            Box::new(Scaled { inner, scales }) as _
        };
        Ok(decided.into_iter().zip(sweep.subjects()).map(scaled).collect())
    }
}

/// A decided step, and one factor per model for the kept entries; no factors mean 1.
struct Scaled<T: Real> {
    inner: Decision<T>,
    scales: Vec<T>,
}

impl<T: Real> Scaled<T> {
    fn own(&self) -> Option<&[T]> {
        (!self.scales.is_empty()).then_some(&*self.scales)
    }
}

impl<T: Real> Apply<T> for Scaled<T> {
    fn changes(&self, model: usize) -> bool {
        self.inner.changes(model) || self.scales.get(model).is_some_and(|&scale| scale != T::ONE)
    }

    fn may_hide_nan(&self, model: usize) -> bool {
        self.inner.may_hide_nan(model)
    }

    fn carried(&self, chunk: usize) -> Vec<u64> {
        self.inner.carried(chunk)
    }

    fn known(&self, model: usize, chunk: usize, scales: Option<&[T]>) -> Option<Known<T>> {
        let once_more = scales.is_some_and(|scales| scales[model] != T::ONE);
        if once_more { None } else { self.inner.known(model, chunk, self.own()) }
    }

    fn apply(&self, block: &mut Block<T>, carried: &mut [u64], scales: Option<&[T]>) {
        self.inner.apply(block, carried, self.own());
        scale_rows(block, scales);
    }
}

/// A decided step of which is remembered which entries it keeps, and one factor per model for these.
struct Remembered<T: Real> {
    inner: Decision<T>,
    /// A bit for every entry, by model; empty for a model that the step does not change.
    bits: Vec<Arc<Vec<u32>>>,
    scales: Vec<T>,
}

impl<T: Real> Remembered<T> {
    /// What is kept of a model; `None` if all is.
    fn kept(&self, model: usize) -> Option<Kept> {
        let bits = self.bits.get(model).filter(|bits| !bits.is_empty());
        bits.map(|bits| Kept::Remembered(Arc::clone(bits)))
    }
}

impl<T: Real> Apply<T> for Remembered<T> {
    fn changes(&self, model: usize) -> bool {
        self.inner.changes(model)
    }

    fn may_hide_nan(&self, model: usize) -> bool {
        self.inner.may_hide_nan(model)
    }

    fn known(&self, model: usize, _: usize, scales: Option<&[T]>) -> Option<Known<T>> {
        let Some(kept) = self.kept(model) else { return Some(Known::nothing()) };
        let once_more = scales.is_some_and(|scales| scales[model] != T::ONE);
        (!once_more).then(|| Known::Drop { kept, scale: self.scales[model] })
    }

    fn apply(&self, block: &mut Block<T>, _: &mut [u64], scales: Option<&[T]>) {
        let first = block.entries().start;
        for model in 0..block.models() {
            if let Some(kept) = self.kept(model).filter(|_| block.is_active(model)) {
                let (row, keep) = block.row_and_keep(model);
                kept.mask(first, keep);
                drop_and_rescale(row, keep, self.scales[model]);
            }
        }
        scale_rows(block, scales);
    }
}

/// Multiply each active row of a block by its model's factor.
pub(super) fn scale_rows<T: Real>(block: &mut Block<T>, scales: Option<&[T]>) {
    if let Some(scales) = scales {
        for (model, &scale) in scales.iter().enumerate() {
            if scale != T::ONE && block.is_active(model) {
                multiply(block.row_mut(model), scale);
            }
        }
    }
}
