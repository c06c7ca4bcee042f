//! The last sweep of a merge:
//!
//! ```text
//! for every chunk, in parallel, and every block of it, in order:
//!     read the block of the base and of every expert, and subtract the base
//!     apply the program's steps (drop, trim, rescale) to the task vectors
//!     combine them into one row, scale it by λ, damp it where activations are strong, and add it to the base
//!     round it once to the output's dtype; refuse values that are not finite
//! write the chunk
//! ```
//!
//! Where parameters are combined rather than task vectors, nothing is subtracted, scaled or added. Blocks of
//! common methods are merged in one pass instead, from stored bytes to stored bytes ([`direct`](super::direct)),
//! unless a value is not finite.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::Job;
use super::damping::Factors;
use super::destination::{Destination, Slot};
use super::direct::Direct;
use super::function;
use super::matrices;
use super::stage::{Decided, Stage, Worker, carried};
use super::tensor::Tensor;
use super::window::chunk_entries;
use crate::dtype::{Code, Float, Real};
use crate::error::{Error, Hint, Result};
use crate::kernel::finite::{all_finite, has_infinite, has_nan};
use crate::kernel::weighted_sum::{scale_and_add, scale_damp_and_add};
use crate::manifest::{Packing, Source, Stored};
use crate::program::block::{BLOCK, Block, Parts};
use crate::program::function::Form;
use crate::program::matrix;
use crate::program::sweep::Chunk;
use crate::program::{Computed, Join, Operand};

/// The combination of one tensor's rows: its join, λ, and the factors that damp it.
pub(super) struct Combination<T: Real> {
    pub(super) join: Box<dyn Join<T>>,
    pub(super) lambda: T,
    pub(super) factors: Option<Arc<Factors<T>>>,
}

impl<T: Computed> Combination<T> {
    /// # Errors
    /// Those of [`Factors::of`].
    pub(super) fn new(job: &Job, tensor: &Tensor, found: &[f64]) -> Result<Self> {
        let subject = tensor.subject();
        Ok(Self {
            join: T::combine(&*job.program.combine).bind(&subject, found),
            lambda: T::from_f64(subject.number_or("lambda", 1.0)),
            factors: Factors::of(job, tensor)?.map(Arc::new),
        })
    }

    /// Scale a block's combined task vectors, damp them, and add them to the base.
    pub(super) fn add_to_base(&self, block: &mut Block<T>) {
        let entries = block.entries();
        let Parts { base, signs: room, out, .. } = block.parts();
        match &self.factors {
            None => scale_and_add(base, self.lambda, out),
            Some(factors) => {
                factors.fill(&entries, room);
                scale_damp_and_add(base, self.lambda, room, out);
            }
        }
    }
}

/// The destination of one chunk.
enum Target<'o> {
    /// Entries in the output's dtype.
    Entries(Slot<'o>),
    /// Codes and scales of a quantised output.
    Codes(Slot<'o>, Slot<'o>),
}

impl Target<'_> {
    fn is_finished(&self) -> bool {
        match self {
            Self::Entries(slot) => matches!(slot, Slot::Finished),
            Self::Codes(values, scales) => {
                matches!((values, scales), (Slot::Finished, Slot::Finished))
            }
        }
    }
}

/// Merge the tensors of a stage into their destination.
pub(super) fn write<T: Computed>(
    stage: &Stage<T>,
    decided: &Decided<T>,
    destination: &mut Destination,
) -> Result<()> {
    let combinations: Vec<Combination<T>> = (stage.tensors.iter().zip(&decided.found))
        .map(|(tensor, found)| Combination::new(stage.job, tensor, found))
        .collect::<Result<_>>()?;
    let mut found = Vec::with_capacity(stage.chunks.len());
    for tensor in stage.tensors {
        found.extend(targets(stage, tensor, destination)?);
    }
    let pieces: Vec<(&Chunk, Target)> = stage.chunks.iter().zip(found).collect();
    let merge = |(chunk, target): (&Chunk, Target)| {
        let tensor = &stage.tensors[chunk.tensor];
        if target.is_finished() {
            stage.job.monitor.advance(tensor.entry_bytes * chunk.entries.len() as u64);
            return Ok(());
        }
        let combination = &combinations[chunk.tensor];
        match (&stage.job.program.matrices, tensor.matrices) {
            (Some(combine), Some(_)) => {
                let whole = matrices::merged(stage.job, tensor, chunk, &**combine)?;
                let (lambda, factors) = (combination.lambda, combination.factors.clone());
                let combination = Combination { join: Box::new(whole), lambda, factors };
                merge_chunk(stage, decided, &combination, chunk, target)
            }
            _ => merge_chunk(stage, decided, combination, chunk, target),
        }
    };
    let program = &stage.job.program;
    let called = program.combine.called().filter(|called| called.form == Form::Tensors);
    if program.matrices.is_none() && called.is_none() {
        return pieces.into_par_iter().try_for_each(merge);
    }
    let bytes = |chunk: &Chunk| {
        let subject = stage.tensors[chunk.tensor].subject();
        let of_call = called.map_or(0, |called| called.bytes(&subject, size_of::<T>()));
        let of_matrix = program.matrices.as_deref();
        of_matrix.map_or(of_call, |combine| matrix::bytes(combine, &subject))
    };
    let pieces = pieces.into_iter().map(|piece| (bytes(piece.0), piece)).collect();
    let budget = stage.job.options.matrix_bytes.unwrap_or_else(matrices::half_of_memory);
    matrices::within(budget, pieces, merge)
}

/// The destinations of a tensor's chunks. The shape of a quantised tensor is written at once.
fn targets<'o, T: Computed>(
    stage: &Stage<T>,
    tensor: &Tensor,
    destination: &mut Destination<'o>,
) -> Result<Vec<Target<'o>>> {
    let entries = chunk_entries::<T>(tensor, stage.division, stage.job.options.chunk_bytes);
    let Some(packing) = tensor.output.packing else {
        let size = entries.saturating_mul(tensor.dtype.size());
        let slots = destination.slots(tensor.place, 0, size);
        return Ok(slots.into_iter().map(Target::Entries).collect());
    };
    let columns = tensor.subject().row_length();
    let rows = entries / columns.max(1);
    let tiles = columns.div_ceil(packing.tile()[1]);
    let values = destination.slots(tensor.place, 0, rows * packing.row_bytes(columns));
    let scale_bytes = rows / packing.tile()[0] * tiles * packing.scales().size();
    let scales = destination.slots(tensor.place, 1, scale_bytes);
    for part in 2..tensor.output.specs().len() {
        let sizes = tensor.output.shape.iter().flat_map(|size| (*size as u64).to_le_bytes());
        let bytes: Vec<u8> = sizes.collect();
        for slot in destination.slots(tensor.place, part, bytes.len()) {
            slot.put(&bytes)?;
        }
    }
    Ok(values
        .into_iter()
        .zip(scales)
        .map(|(values, scales)| Target::Codes(values, scales))
        .collect())
}

/// Merge one chunk of a tensor into its destination.
fn merge_chunk<T: Computed>(
    stage: &Stage<T>,
    decided: &Decided<T>,
    combination: &Combination<T>,
    chunk: &Chunk,
    target: Target,
) -> Result<()> {
    let (job, tensor) = (stage.job, &stage.tensors[chunk.tensor]);
    job.monitor.check()?;
    stage.scratch.lend(|Worker { block, masks, bytes, packer }| {
        let direct = Direct::of(stage, decided, combination, chunk);
        let mut by_steps = |chunk: &Chunk, bytes: &mut [u8]| {
            let mut rest = bytes;
            merge_blocks(stage, decided, combination, chunk, block, &mut |entries, block| {
                let size = entries.len() * tensor.dtype.size();
                let (bytes, later) = std::mem::take(&mut rest).split_at_mut(size);
                rest = later;
                round(job, tensor, entries, block, bytes)
            })
        };
        let mut into = |bytes: &mut [u8]| {
            let Some(direct) = &direct else { return by_steps(chunk, bytes) };
            let size = tensor.dtype.size();
            for entries in stage.blocks(chunk) {
                let start = entries.start - chunk.entries.start;
                let bytes = &mut bytes[start * size..][..entries.len() * size];
                tensor.prefetch_after(&entries);
                if !direct.merge(&entries, masks, bytes) {
                    by_steps(&Chunk { entries, ..*chunk }, bytes)?;
                }
            }
            Ok(())
        };
        match target {
            Target::Entries(Slot::Memory(bytes)) => into(bytes),
            Target::Entries(slot) => {
                bytes.resize(chunk.entries.len() * tensor.dtype.size(), 0);
                into(bytes)?;
                slot.put(bytes)
            }
            Target::Codes(values, scales) => {
                let Some(packing) = tensor.output.packing else { return Ok(()) };
                let columns = tensor.subject().row_length();
                packer.start();
                merge_blocks(stage, decided, combination, chunk, block, &mut |entries, block| {
                    check_codable(job, tensor, packing, entries, block)?;
                    packer.push(packing, columns, block.parts().out);
                    Ok(())
                })?;
                packer.finish(packing, columns);
                values.put(&packer.values)?;
                scales.put(&packer.scales)
            }
        }
    })?;
    stage.job.monitor.advance(tensor.entry_bytes * chunk.entries.len() as u64);
    Ok(())
}

/// Called with the range of a block's entries, and the block with its entries combined.
pub(super) type TakeBlock<'t, T> = &'t mut dyn FnMut(&Range<usize>, &mut Block<T>) -> Result<()>;

/// Merge the blocks of one chunk of a tensor, in order.
fn merge_blocks<T: Computed>(
    stage: &Stage<T>,
    decided: &Decided<T>,
    combination: &Combination<T>,
    chunk: &Chunk,
    block: &mut Block<T>,
    take: TakeBlock<T>,
) -> Result<()> {
    let mut carried = carried(&decided.steps, chunk.tensor, chunk.place);
    block.activate(|_| true);
    if let Some(called) = stage.job.program.combine.called() {
        return function::merge_blocks(stage, decided, called, (combination, chunk), block, take);
    }
    for entries in stage.blocks(chunk) {
        read(stage, decided, (chunk.tensor, chunk.tensor), &entries, &mut carried, block)?;
        combination.join.join(block);
        if stage.job.program.operand == Operand::TaskVectors {
            combination.add_to_base(block);
        }
        take(&entries, block)?;
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
    // Whole matrices are combined already.
    let models = if tensor.matrices.is_some() { 0 } else { block.models() };
    for model in 0..models {
        // Unless a step may set it to 0, NaN reaches the output, where `round` finds it.
        if hides(model) && !stage.job.options.allow_nan {
            tensor.read_expert(model, entries.clone(), block.row_mut(model));
            if has_nan(block.row(model)) {
                return Err(nan_input(stage.job, tensor, Input::Expert(model)));
            }
            tensor.subtract_base(model, block);
        } else {
            tensor.read_row(model, block);
        }
        if tensor.is_measured() && stage.job.program.combine.reads_statistics() {
            tensor.read_statistic(model, entries.clone(), block.statistic_mut(model));
        }
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
    let Parts { out, .. } = block.parts();
    T::narrow(out, dtype, bytes);
    if !all_finite(out) {
        explain(job, tensor, entries, block)?;
    }
    // Only where the dtype's range is narrower than that of the type that is computed in. (bfloat16's
    // ends a hair below float32's.)
    let narrower =
        dtype == Float::F16 || (dtype != Float::F64 && size_of::<T>() > size_of::<f32>());
    if !narrower {
        return Ok(());
    }
    let Parts { out, signs, .. } = block.parts();
    T::widen(dtype, bytes, signs);
    if !has_infinite(signs) {
        return Ok(());
    }
    // Infinite entries beside them are explained already.
    let beyond =
        |(value, rounded): (&T, &T)| value.abs() < T::INFINITY && rounded.abs() == T::INFINITY;
    if !out.iter().zip(&*signs).any(beyond) {
        return Ok(());
    }
    let (name, wider) = match dtype {
        Float::F16 => ("float16", "bfloat16"),
        Float::Bf16 => ("bfloat16", "float64"),
        Float::F32 | Float::F64 => ("float32", "float64"),
    };
    if job.options.allow_nan {
        let output = &tensor.output.name;
        job.note(format!(
            "tensor '{output}' of the merged model holds infinite entries: merged values are beyond \
             {name}'s range"
        ));
        return Ok(());
    }
    let reason = format!("merged values are beyond {name}'s range; use out_dtype: {wider}");
    Err(unusable(job, tensor, &reason))
}

/// Refuse combined entries that cannot be coded: NaN and infinite ones, unless they are let through and
/// the code has NaN; and float64 beyond the range of scales.
fn check_codable<T: Real>(
    job: &Job,
    tensor: &Tensor,
    packing: Packing,
    entries: &Range<usize>,
    block: &mut Block<T>,
) -> Result<()> {
    if !all_finite(block.parts().out) {
        explain(job, tensor, entries, block)?;
        if packing.code() == Code::Int4 && has_nan(block.parts().out) {
            return Err(unusable(job, tensor, "holds NaN, which int4 cannot store"));
        }
    }
    let largest = T::from_f64(f32::MAX.into());
    let beyond = |value: &T| value.abs() > largest && value.abs() < T::INFINITY;
    if size_of::<T>() > size_of::<f32>() && block.parts().out.iter().any(beyond) {
        let reason = "merged values are beyond the range of scales; use out_dtype: float64";
        return Err(unusable(job, tensor, reason));
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
    let measured = tensor.is_measured() && job.program.combine.reads_statistics();
    let experts = 0..tensor.experts();
    let statistics = experts.clone().filter(|_| measured).map(Input::Statistic);
    for role in std::iter::once(Input::Base).chain(experts.map(Input::Expert)).chain(statistics) {
        input.fill(T::ZERO);
        match role {
            Input::Base => tensor.read_base(entries.clone(), input),
            Input::Expert(expert) => tensor.read_expert(expert, entries.clone(), input),
            Input::Statistic(expert) => tensor.read_statistic(expert, entries.clone(), input),
        }
        if nan.is_none() && has_nan(input) {
            nan = Some(role);
        }
        if infinite.is_none() && has_infinite(input) {
            infinite = Some(role);
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

fn nan_input(job: &Job, tensor: &Tensor, input: Input) -> Error {
    let (path, name) = input_of(job, tensor, input);
    let reason = "holds NaN; repair the checkpoint, or let NaN through";
    Error::tensor(path, name, reason).with_hint(Hint::AllowNan)
}

/// An input of a tensor, by its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Base,
    Expert(usize),
    Statistic(usize),
}

/// The checkpoint of an input and the tensor's name in it. Of several stored tensors it is the first
/// that holds values which are not finite, if there is one.
pub(super) fn input_of(job: &Job, tensor: &Tensor, input: Input) -> (std::path::PathBuf, String) {
    let source = match input {
        Input::Base => tensor.merge.base.as_ref(),
        Input::Expert(expert) => Some(&tensor.merge.experts[expert]),
        Input::Statistic(expert) => Some(&tensor.merge.statistics[expert]),
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
