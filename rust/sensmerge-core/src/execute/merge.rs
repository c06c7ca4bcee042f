//! The last sweep: read a block of every input, combine, round once, write.

use std::ops::Range;

use super::Run;
use super::tensor::{BLOCK, Block, Sparsity, Tensor};
use super::window::{Chunk, Scratch};
use crate::checkpoint::output::ShardWriter;
use crate::dtype::{Float, Real};
use crate::error::{Error, Result};
use crate::kernel::disjoint::{Divisor, disjoint};
use crate::kernel::elect::elect_sign;
use crate::kernel::finite::{has_infinite, has_nan};
use crate::kernel::weighted_sum::{divide, scale_and_add, weighted_sum};
use crate::method::{Agreement, Operand, SMALLEST_DIVISOR, ZeroSign};

/// Everything that the last sweep over one tensor needs to know.
pub(super) struct Combination<T> {
    sparsity: Vec<Sparsity<T>>,
    weights: Vec<T>,
    /// The sum of weights, where that is what the sum of terms is divided by.
    divisor: Option<T>,
    lambda: T,
    majority: T,
}

impl<T: Real> Combination<T> {
    pub(super) fn new(run: &Run, tensor: &Tensor, sparsity: Vec<Sparsity<T>>, majority: T) -> Self {
        let method = &run.plan.method;
        let weights: Vec<f64> = tensor.merge.terms.iter().map(|term| term.weight).collect();
        let sum: f64 = weights.iter().sum();
        let divides = method.consensus.is_none()
            && method.divisor == Divisor::Weights
            && sum.abs() >= SMALLEST_DIVISOR;
        Self {
            sparsity,
            weights: weights.into_iter().map(T::from_f64).collect(),
            divisor: divides.then(|| T::from_f64(sum)),
            lambda: T::from_f64(tensor.merge.lambda),
            majority,
        }
    }
}

/// Merge one chunk of a tensor and write it where it belongs.
pub(super) fn merge_chunk<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensor: &Tensor,
    combination: &Combination<T>,
    chunk: &Chunk,
    writer: &ShardWriter,
) -> Result<()> {
    run.monitor.check()?;
    let size = tensor.merge.out_dtype.size();
    scratch.lend(|block| {
        let places = combination.sparsity.iter();
        let mut ties: Vec<u64> = places.map(|expert| expert.cut.ties_at(chunk.place)).collect();
        let mut written = std::mem::take(&mut block.bytes);
        written.resize(chunk.entries.len() * size, 0);
        let mut blocks = chunk.blocks().zip(written.chunks_mut(BLOCK * size));
        let merged = blocks.try_for_each(|(entries, bytes)| {
            combine(run, tensor, combination, entries, &mut ties, block)?;
            round(run, tensor, block, bytes)
        });
        let offset = tensor.step.bytes.start + (chunk.entries.start * size) as u64;
        let result = merged.and_then(|()| writer.write_at(offset, &written));
        block.bytes = written;
        result
    })?;
    run.monitor.advance(tensor.entry_bytes * chunk.entries.len() as u64);
    Ok(())
}

/// Compute one block of the output into `block.out`.
fn combine<T: Real>(
    run: &Run,
    tensor: &Tensor,
    combination: &Combination<T>,
    entries: Range<usize>,
    ties: &mut [u64],
    block: &mut Block<T>,
) -> Result<()> {
    let length = entries.len();
    let Combination { sparsity, weights, divisor, lambda, majority } = combination;
    let Block { base, rows, signs, out, keep, .. } = block;
    let (base, rows) = (&mut base[..length], &mut rows[..length * weights.len()]);
    let (signs, out) = (&mut signs[..length], &mut out[..length]);

    tensor.read_base(entries.clone(), base);
    if !run.options.allow_nan && has_nan(base) {
        return Err(nan_input(tensor, None));
    }
    for (expert, delta) in rows.chunks_exact_mut(length).enumerate() {
        tensor.read_expert(expert, entries.clone(), delta);
        if !run.options.allow_nan && has_nan(delta) {
            return Err(nan_input(tensor, Some(expert)));
        }
        tensor.subtract_base(base, delta);
        tensor.sparsify(expert, entries.start, &sparsity[expert], &mut ties[expert], keep, delta);
    }
    let method = &run.plan.method;
    match method.consensus {
        None => {
            weighted_sum(rows, weights, out);
            if let Some(divisor) = divisor {
                divide(out, *divisor);
            }
        }
        Some(consensus) => {
            let votes = (consensus.agreement == Agreement::Weighted).then_some(weights.as_slice());
            let zero_sign = match consensus.zero_sign {
                ZeroSign::Positive => T::ONE,
                ZeroSign::Majority => *majority,
            };
            elect_sign(rows, votes, zero_sign, signs);
            disjoint(rows, weights, signs, consensus.agreement, method.divisor, out);
        }
    }
    if method.operand == Operand::TaskVectors {
        scale_and_add(base, *lambda, out);
    }
    Ok(())
}

/// Round `block.out` once, into the bytes that are written.
fn round<T: Real>(
    run: &Run,
    tensor: &Tensor,
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
        return Err(unusable(run, tensor, "infinite inputs or weights merge to NaN"));
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

fn unusable(run: &Run, tensor: &Tensor, reason: &str) -> Error {
    let hint = format!("{reason} (or pass --allow-nan to write them as they are)");
    Error::tensor(run.output, &tensor.step.name, hint)
}

fn nan_input(tensor: &Tensor, expert: Option<usize>) -> Error {
    let merge = tensor.merge;
    let source = expert.map_or(merge.base.as_ref(), |expert| Some(&merge.terms[expert].source));
    let path =
        source.map_or_else(Default::default, |source| source.checkpoint.path().to_path_buf());
    Error::tensor(
        path,
        source.map_or(&tensor.step.name, |source| &source.tensor.name),
        "holds NaN; repair the checkpoint, or pass --allow-nan to let NaN through",
    )
}
