//! The last sweep: read a block of every input, combine, round once, write.

use std::ops::Range;

use super::Run;
use super::destination::Slot;
use super::tensor::{BLOCK, Block, Sparsity, Tensor};
use super::window::{Chunk, Scratch};
use crate::dtype::{Float, Real};
use crate::error::{Error, Result};
use crate::kernel::disjoint::{Divisor, disjoint};
use crate::kernel::elect::elect_sign;
use crate::kernel::finite::{has_infinite, has_nan};
use crate::kernel::weighted_sum::{divide, scale_and_add, weighted_sum};
use crate::method::{Agreement, Method, Operand, SMALLEST_DIVISOR, ZeroSign};
use crate::plan::Plan;

/// Everything that the last sweep over one tensor needs to know.
pub(super) struct Combination<'s, T: Real> {
    sparsity: &'s [Sparsity<T>],
    pub(super) weights: Vec<T>,
    /// What the experts' votes on a sign are multiplied by.
    votes: Vec<T>,
    /// The sum of weights, where that is what the sum of terms is divided by.
    pub(super) divisor: Option<T>,
    lambda: T,
    majority: T,
}

impl<'s, T: Real> Combination<'s, T> {
    pub(super) fn new(
        plan: &Plan,
        tensor: &Tensor,
        sparsity: &'s [Sparsity<T>],
        majority: T,
    ) -> Self {
        let method = &plan.method;
        let weights: Vec<f64> = tensor.merge.terms.iter().map(|term| term.weight).collect();
        let sum: f64 = weights.iter().sum();
        let divides = method.consensus.is_none()
            && method.divisor == Divisor::Weights
            && sum.abs() >= SMALLEST_DIVISOR;
        let weighted = |agreement| agreement == Agreement::Weighted;
        let weighted = method.consensus.is_none_or(|consensus| weighted(consensus.agreement));
        let vote = |weight| if weighted { T::from_f64(weight) } else { T::ONE };
        Self {
            sparsity,
            votes: weights.iter().map(|&weight| vote(weight)).collect(),
            weights: weights.into_iter().map(T::from_f64).collect(),
            divisor: divides.then(|| T::from_f64(sum)),
            lambda: T::from_f64(tensor.merge.lambda),
            majority,
        }
    }

    /// What each expert's cut leaves to keep at the start of a chunk.
    pub(super) fn ties_at(&self, chunk: usize) -> Vec<u64> {
        self.sparsity.iter().map(|expert| expert.cut.ties_at(chunk)).collect()
    }
}

/// Merge one chunk of a tensor and put it where it belongs.
pub(super) fn merge_chunk<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensor: &Tensor,
    combination: &Combination<T>,
    chunk: &Chunk,
    slot: Slot,
) -> Result<()> {
    run.monitor.check()?;
    scratch.lend(|block| match slot {
        Slot::Memory(bytes) => merge_into(run, tensor, combination, chunk, block, bytes),
        Slot::File { writer, offset } => {
            let mut bytes = std::mem::take(&mut block.bytes);
            bytes.resize(chunk.entries.len() * tensor.merge.out_dtype.size(), 0);
            let merged = merge_into(run, tensor, combination, chunk, block, &mut bytes);
            let result = merged.and_then(|()| writer.write_at(offset, &bytes));
            block.bytes = bytes;
            result
        }
    })?;
    run.monitor.advance(tensor.entry_bytes * chunk.entries.len() as u64);
    Ok(())
}

/// Merge one chunk of a tensor into `bytes`.
fn merge_into<T: Real>(
    run: &Run,
    tensor: &Tensor,
    combination: &Combination<T>,
    chunk: &Chunk,
    block: &mut Block<T>,
    bytes: &mut [u8],
) -> Result<()> {
    let mut ties = combination.ties_at(chunk.place);
    let size = BLOCK * tensor.merge.out_dtype.size();
    for (entries, bytes) in chunk.blocks().zip(bytes.chunks_mut(size)) {
        read(run, tensor, combination, &entries, &mut ties, block)?;
        combine(run.plan.method, combination, entries.len(), block);
        if run.plan.method.operand == Operand::TaskVectors {
            let base = &block.base[..entries.len()];
            scale_and_add(base, combination.lambda, &mut block.out[..entries.len()]);
        }
        round(run, tensor, &entries, block, bytes)?;
    }
    Ok(())
}

/// Read one block of the base and of every sparsified task vector.
pub(super) fn read<T: Real>(
    run: &Run,
    tensor: &Tensor,
    combination: &Combination<T>,
    entries: &Range<usize>,
    ties: &mut [u64],
    block: &mut Block<T>,
) -> Result<()> {
    let length = entries.len();
    let Combination { sparsity, weights, .. } = combination;
    let Block { base, rows, keep, .. } = block;
    let (base, rows) = (&mut base[..length], &mut rows[..length * weights.len()]);

    tensor.prefetch_after(entries);
    tensor.read_base(entries.clone(), base);
    for (expert, delta) in rows.chunks_exact_mut(length).enumerate() {
        tensor.read_expert(expert, entries.clone(), delta);
        // Elsewhere NaN reaches the output, where one look finds it.
        if tensor.drops(expert) && !run.options.allow_nan && has_nan(delta) {
            return Err(nan_input(tensor, Some(expert)));
        }
        tensor.subtract_base(base, delta);
        tensor.sparsify(expert, entries.start, &sparsity[expert], &mut ties[expert], keep, delta);
    }
    Ok(())
}

/// Combine the rows of a block, of `length` entries each, into `block.out`.
pub(super) fn combine<T: Real>(
    method: Method,
    combination: &Combination<T>,
    length: usize,
    block: &mut Block<T>,
) {
    let Combination { weights, votes, divisor, majority, .. } = combination;
    let Block { rows, signs, out, .. } = block;
    let rows = &rows[..length * weights.len()];
    let (signs, out) = (&mut signs[..length], &mut out[..length]);
    match method.consensus {
        None => {
            weighted_sum(rows, weights, out);
            if let Some(divisor) = divisor {
                divide(out, *divisor);
            }
        }
        Some(consensus) => {
            let zero_sign = match consensus.zero_sign {
                ZeroSign::Positive => T::ONE,
                ZeroSign::Majority => *majority,
            };
            elect_sign(rows, votes, zero_sign, signs);
            disjoint(rows, weights, signs, consensus.agreement, method.divisor, out);
        }
    }
}

/// Round `block.out` once, into the bytes that are written.
fn round<T: Real>(
    run: &Run,
    tensor: &Tensor,
    entries: &Range<usize>,
    block: &mut Block<T>,
    bytes: &mut [u8],
) -> Result<()> {
    let dtype = tensor.merge.out_dtype;
    let values = &mut block.out[..bytes.len() / dtype.size()];
    T::narrow(values, dtype, bytes);
    if run.options.allow_nan {
        return Ok(());
    }
    if has_nan(values) {
        return Err(explain_nan(run, tensor, entries, block));
    }
    // Only float16 is narrower in range than what checkpoints hold.
    if dtype == Float::F16 && !has_infinite(values) {
        let rounded = &mut block.signs[..bytes.len() / dtype.size()];
        T::widen(dtype, bytes, rounded);
        if has_infinite(rounded) {
            let reason = "merged values are beyond float16's range; use out_dtype: bfloat16";
            return Err(unusable(run, tensor, reason));
        }
    }
    Ok(())
}

/// Why a block of the output holds NaN.
fn explain_nan<T: Real>(
    run: &Run,
    tensor: &Tensor,
    entries: &Range<usize>,
    block: &mut Block<T>,
) -> Error {
    let values = &mut block.out[..entries.len()];
    values.fill(T::ZERO);
    tensor.read_base(entries.clone(), values);
    if has_nan(values) {
        return nan_input(tensor, None);
    }
    for expert in 0..tensor.experts() {
        tensor.read_expert(expert, entries.clone(), values);
        if has_nan(values) {
            return nan_input(tensor, Some(expert));
        }
    }
    unusable(run, tensor, "infinite inputs or weights merge to NaN")
}

fn unusable(run: &Run, tensor: &Tensor, reason: &str) -> Error {
    let hint = format!("{reason} (or pass --allow-nan to write them as they are)");
    Error::tensor(run.output, &tensor.step.name, hint)
}

fn nan_input(tensor: &Tensor, expert: Option<usize>) -> Error {
    let merge = tensor.merge;
    let source = expert.map_or(merge.base.as_ref(), |expert| Some(&merge.terms[expert].source));
    let path =
        source.map_or_else(Default::default, |source| source.at.checkpoint.path().to_path_buf());
    Error::tensor(
        path,
        source.map_or(&tensor.step.name, |source| &source.at.tensor.name),
        "holds NaN; repair the checkpoint, or pass --allow-nan to let NaN through",
    )
}
