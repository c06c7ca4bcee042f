//! Chunks that are merged by a call of a function from outside the crate.

use std::ops::Range;

use super::stage::{Decided, Stage};
use super::tensor::Tensor;
use super::write::{Combination, TakeBlock, read};
use crate::error::{Error, Result};
use crate::kernel::finite::{all_finite, has_nan};
use crate::program::block::Block;
use crate::program::function::{Call, Called};
use crate::program::sweep::Chunk;
use crate::program::{Computed, Operand};

/// Merge a chunk by one call of the program's function, and hand it on block by block.
pub(super) fn merge_blocks<T: Computed>(
    stage: &Stage<T>,
    decided: &Decided<T>,
    called: &Called,
    (combination, chunk): (&Combination<T>, &Chunk),
    block: &mut Block<T>,
    take: TakeBlock<T>,
) -> Result<()> {
    let length = chunk.entries.len();
    let tensor = &stage.tensors[chunk.tensor];
    let mut rows = vec![T::ZERO; length * tensor.experts()];
    let with_base = stage.job.program.operand == Operand::TaskVectors;
    let mut base = vec![T::ZERO; if with_base { length } else { 0 }];
    let at = |entries: &Range<usize>| {
        entries.start - chunk.entries.start..entries.end - chunk.entries.start
    };
    for entries in stage.blocks(chunk) {
        read(stage, decided, (chunk.tensor, chunk.tensor), &entries, &mut [], block)?;
        let place = at(&entries);
        for model in 0..tensor.experts() {
            let first = model * length;
            rows[first + place.start..first + place.end].copy_from_slice(block.row(model));
        }
        if with_base {
            base[place].copy_from_slice(block.parts().base);
        }
    }
    stage.job.monitor.check()?;
    let base = with_base.then_some(base);
    let merged = call(stage, tensor, called, chunk, &rows, base.as_deref())?;
    drop(rows);
    stage.job.monitor.check()?;
    for entries in stage.blocks(chunk) {
        block.start(entries.clone());
        let place = at(&entries);
        let parts = block.parts();
        parts.out.copy_from_slice(&merged[place.clone()]);
        if let Some(base) = &base {
            parts.base.copy_from_slice(&base[place]);
            combination.add_to_base(block);
        }
        take(&entries, block)?;
    }
    Ok(())
}

/// The merged entries of a chunk.
///
/// # Errors
/// [`Error::Method`] for a function that fails, or returns NaN for entries that are finite.
fn call<T: Computed>(
    stage: &Stage<T>,
    tensor: &Tensor,
    called: &Called,
    chunk: &Chunk,
    rows: &[T],
    base: Option<&[T]>,
) -> Result<Vec<T>> {
    let job = stage.job;
    let mut out = vec![T::ZERO; chunk.entries.len()];
    let failed = |reason, cause| Error::Method {
        method: job.manifest.method.name.clone(),
        tensor: tensor.output.name.clone(),
        reason,
        cause,
    };
    let call = Call {
        tensor: &tensor.output.name,
        shape: &tensor.output.shape,
        entries: chunk.entries.clone(),
        models: tensor.experts(),
        rows,
        base,
        numbers: &tensor.merge.numbers,
        out: &mut out,
    };
    T::call(&*called.function, call).map_err(|failure| failed(failure.reason, failure.cause))?;
    if has_nan(&out) && !job.options.allow_nan && all_finite(rows) {
        return Err(failed("returned NaN for finite entries".into(), None));
    }
    Ok(out)
}
