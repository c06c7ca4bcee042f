//! The last sweep of a merge:
//!
//! ```text
//! for every chunk, in parallel, and every block of it, in order:
//!     read the block of the base and of every expert, and subtract the base
//!     apply the program's steps (drop, trim, rescale) to the task vectors
//!     combine them into one row, scale it by λ and add it to the base
//!     round it once to the output's dtype; refuse values that are not finite
//! write the chunk
//! ```
//!
//! Where parameters are combined rather than task vectors, nothing is subtracted, scaled or added.

use std::ops::Range;

use rayon::prelude::*;

use super::Job;
use super::destination::{Destination, Slot};
use super::stage::{Decided, Stage, carried};
use super::tensor::Tensor;
use super::window::chunk_entries;
use crate::dtype::{Float, Real};
use crate::error::{Error, Hint, Result};
use crate::kernel::finite::{all_finite, has_infinite, has_nan};
use crate::kernel::weighted_sum::scale_and_add;
use crate::manifest::{Source, Stored};
use crate::program::block::{BLOCK, Block, Parts};
use crate::program::sweep::Chunk;
use crate::program::{Computed, Join, Operand};

/// The combination of one tensor's rows: its join and λ.
pub(super) struct Combination<T: Real> {
    pub(super) join: Box<dyn Join<T>>,
    lambda: T,
}

impl<T: Computed> Combination<T> {
    pub(super) fn new(job: &Job, tensor: &Tensor, found: &[f64]) -> Self {
        let subject = tensor.subject();
        Self {
            join: T::combine(&*job.program.combine).bind(&subject, found),
            lambda: T::from_f64(subject.number_or("lambda", 1.0)),
        }
    }
}

/// Merge the tensors of a stage into their destination.
pub(super) fn write<T: Computed>(
    stage: &Stage<T>,
    decided: &Decided<T>,
    destination: &mut Destination,
) -> Result<()> {
    let (job, blocks) = (stage.job, stage.division);
    let combinations: Vec<Combination<T>> = (stage.tensors.iter().zip(&decided.found))
        .map(|(tensor, found)| Combination::new(job, tensor, found))
        .collect();
    let slots = stage.tensors.iter().flat_map(|tensor| {
        let entries = chunk_entries::<T>(tensor, blocks, job.options.chunk_bytes);
        destination.slots(tensor.place, entries.saturating_mul(tensor.dtype.size()))
    });
    let pieces: Vec<(&Chunk, Slot)> = stage.chunks.iter().zip(slots).collect();
    pieces.into_par_iter().try_for_each(|(chunk, slot)| {
        merge_chunk(stage, decided, &combinations[chunk.tensor], chunk, slot)
    })
}

/// Merge one chunk of a tensor into its destination.
fn merge_chunk<T: Computed>(
    stage: &Stage<T>,
    decided: &Decided<T>,
    combination: &Combination<T>,
    chunk: &Chunk,
    slot: Slot,
) -> Result<()> {
    let tensor = &stage.tensors[chunk.tensor];
    stage.job.monitor.check()?;
    stage.scratch.lend(|worker| {
        let block = &mut worker.block;
        match slot {
            Slot::Memory(bytes) => merge_into(stage, decided, combination, chunk, block, bytes),
            Slot::File { writer, offset } => {
                let bytes = &mut worker.bytes;
                bytes.resize(chunk.entries.len() * tensor.dtype.size(), 0);
                merge_into(stage, decided, combination, chunk, block, bytes)?;
                writer.write_at(offset, bytes)
            }
        }
    })?;
    stage.job.monitor.advance(tensor.entry_bytes * chunk.entries.len() as u64);
    Ok(())
}

/// Merge one chunk of a tensor into `bytes`.
fn merge_into<T: Computed>(
    stage: &Stage<T>,
    decided: &Decided<T>,
    combination: &Combination<T>,
    chunk: &Chunk,
    block: &mut Block<T>,
    bytes: &mut [u8],
) -> Result<()> {
    let (job, tensor) = (stage.job, &stage.tensors[chunk.tensor]);
    let mut carried = carried(&decided.steps, chunk.tensor, chunk.place);
    let mut rest = bytes;
    block.activate(|_| true);
    for entries in stage.blocks(chunk) {
        let size = entries.len() * tensor.dtype.size();
        let (bytes, later) = std::mem::take(&mut rest).split_at_mut(size);
        rest = later;
        read(stage, decided, (chunk.tensor, chunk.tensor), &entries, &mut carried, block)?;
        combination.join.join(block);
        if job.program.operand == Operand::TaskVectors {
            let Parts { base, out, .. } = block.parts();
            scale_and_add(base, combination.lambda, out);
        }
        round(job, tensor, &entries, block, bytes)?;
    }
    Ok(())
}

/// Read one block of the base and of every model, subtract the base, and apply the steps. `tensor` is
/// the index of the tensor in the stage, `place` its index in `decided`.
pub(super) fn read<T: Computed>(
    stage: &Stage<T>,
    decided: &Decided<T>,
    (tensor, place): (usize, usize),
    entries: &Range<usize>,
    carried: &mut [Vec<u64>],
    block: &mut Block<T>,
) -> Result<()> {
    let tensor = &stage.tensors[tensor];
    tensor.prefetch_after(entries);
    block.start(entries.clone());
    tensor.read_base(entries.clone(), block.parts().base);
    let hides = |model| decided.steps.iter().any(|step| step[place].may_hide_nan(model));
    for model in 0..block.models() {
        tensor.read_expert(model, entries.clone(), block.row_mut(model));
        // Unless a step may set it to 0, NaN reaches the output, where `round` finds it.
        if hides(model) && !stage.job.options.allow_nan && has_nan(block.row(model)) {
            return Err(nan_input(stage.job, tensor, Some(model)));
        }
        tensor.subtract_base(model, block);
    }
    for (step, carried) in decided.steps.iter().zip(carried) {
        step[place].apply(block, carried, None);
    }
    Ok(())
}

/// Round the combined entries once, into `bytes`, and refuse NaN and overflow.
fn round<T: Real>(
    job: &Job,
    tensor: &Tensor,
    entries: &Range<usize>,
    block: &mut Block<T>,
    bytes: &mut [u8],
) -> Result<()> {
    let dtype = tensor.dtype;
    let Parts { out, signs, .. } = block.parts();
    T::narrow(out, dtype, bytes);
    if !all_finite(out) {
        return explain(job, tensor, entries, block);
    }
    if job.options.allow_nan {
        return Ok(());
    }
    // Only where the dtype's range is narrower than that of the type that is computed in. (bfloat16's
    // ends a hair below float32's.)
    let narrower =
        dtype == Float::F16 || (dtype != Float::F64 && size_of::<T>() > size_of::<f32>());
    if narrower {
        T::widen(dtype, bytes, signs);
        if has_infinite(signs) {
            let (name, wider) = match dtype {
                Float::F16 => ("float16", "bfloat16"),
                Float::Bf16 => ("bfloat16", "float64"),
                Float::F32 | Float::F64 => ("float32", "float64"),
            };
            let reason = format!("merged values are beyond {name}'s range; use out_dtype: {wider}");
            return Err(unusable(job, tensor, &reason));
        }
    }
    Ok(())
}

/// Find out why a block of the output is not finite: NaN and overflow are refused, or noted where they
/// are let through; infinite entries of an input are noted.
fn explain<T: Real>(
    job: &Job,
    tensor: &Tensor,
    entries: &Range<usize>,
    block: &mut Block<T>,
) -> Result<()> {
    let allowed = job.options.allow_nan;
    let Parts { out, signs: input, .. } = block.parts();
    let merged_nan = has_nan(out);
    let (mut nan, mut infinite) = (None, None);
    for model in std::iter::once(None).chain((0..tensor.experts()).map(Some)) {
        input.fill(T::ZERO);
        match model {
            None => tensor.read_base(entries.clone(), input),
            Some(expert) => tensor.read_expert(expert, entries.clone(), input),
        }
        if nan.is_none() && has_nan(input) {
            nan = Some(model);
        }
        if infinite.is_none() && has_infinite(input) {
            infinite = Some(model);
        }
    }
    let note = |model, what: &str| {
        let (path, name) = input_of(job, tensor, model);
        let path = path.display();
        job.note(format!("{path}: tensor '{name}': holds {what}"));
    };
    match (nan, infinite) {
        (Some(model), _) if allowed => note(model, "NaN, which is in the merged model too"),
        (Some(model), _) => return Err(nan_input(job, tensor, model)),
        (None, Some(model)) if !merged_nan => {
            note(model, "infinite entries, which are in the merged model too");
        }
        (None, Some(model)) if allowed => {
            note(model, "infinite entries, which are NaN in the merged model");
        }
        (None, Some(model)) => {
            let (path, name) = input_of(job, tensor, model);
            let reason = "holds infinite entries, which merge to NaN; repair the checkpoint, or let \
                          NaN through";
            return Err(Error::tensor(path, name, reason).with_hint(Hint::AllowNan));
        }
        (None, None) if allowed => {
            let what = if merged_nan { "NaN" } else { "infinite entries" };
            job.note(format!("tensor '{}' of the merged model holds {what}", tensor.output.name));
        }
        (None, None) if merged_nan => {
            return Err(unusable(job, tensor, "infinite inputs or weights merge to NaN"));
        }
        (None, None) => {
            return Err(unusable(job, tensor, "the merge overflows; its weights are too large"));
        }
    }
    Ok(())
}

fn unusable(job: &Job, tensor: &Tensor, reason: &str) -> Error {
    Error::tensor(job.output, &tensor.output.name, reason).with_hint(Hint::AllowNan)
}

fn nan_input(job: &Job, tensor: &Tensor, expert: Option<usize>) -> Error {
    let (path, name) = input_of(job, tensor, expert);
    let reason = "holds NaN; repair the checkpoint, or let NaN through";
    Error::tensor(path, name, reason).with_hint(Hint::AllowNan)
}

/// The checkpoint and the tensor's name in it, of the base or of an expert. Of several stored tensors
/// it is the first that holds values which are not finite, if there is one.
fn input_of(job: &Job, tensor: &Tensor, expert: Option<usize>) -> (std::path::PathBuf, String) {
    let source = match expert {
        None => tensor.merge.base.as_ref(),
        Some(expert) => Some(&tensor.merge.experts[expert]),
    };
    let stored = source.map(Source::stored).unwrap_or_default();
    let several = stored.len() > 1;
    let culprit = stored.iter().find(|stored| several && !is_finite(job, stored));
    let stored = culprit.or(stored.first());
    let path = stored.and_then(|stored| job.inputs.checkpoint(stored).ok());
    (
        path.map(|checkpoint| checkpoint.path().to_path_buf()).unwrap_or_default(),
        stored.map_or_else(|| tensor.output.name.clone(), |stored| stored.name.clone()),
    )
}

fn is_finite(job: &Job, stored: &Stored) -> bool {
    let (Ok(bytes), Some(dtype)) = (job.inputs.bytes(stored), stored.dtype.float()) else {
        return true;
    };
    bytes.chunks(BLOCK * dtype.size()).all(|bytes| {
        let mut wide = [0.0_f64; BLOCK];
        let wide = &mut wide[..bytes.len() / dtype.size()];
        f64::widen(dtype, bytes, wide);
        all_finite(wide)
    })
}
