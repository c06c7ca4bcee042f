//! The sign that the model-wide sum of elected signs has: who wins a draw in original TIES.

use std::ops::Range;

use rayon::prelude::*;

use super::Run;
use super::tensor::{Block, Sparsity, Tensor};
use super::window::{Chunk, Scratch, chunks_of};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::elect::sum_of_signs;

/// The majority sign over all `tensors`: 1, -1, or 0 where even that is a draw.
pub(super) fn majority_sign<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensors: &[Tensor],
    sparsities: &[Vec<Sparsity<T>>],
) -> Result<T> {
    let chunks: Vec<Chunk> = (tensors.iter().enumerate())
        .flat_map(|(place, tensor)| {
            chunks_of(place, tensor.step.elements, run.chunk_entries::<T>())
        })
        .collect();
    let of_chunk = |chunk: &Chunk| {
        run.monitor.check()?;
        let (tensor, sparsity) = (&tensors[chunk.tensor], &sparsities[chunk.tensor]);
        let sum = scratch.lend(|block| {
            let of_block = |entries| sum_of_block(tensor, entries, sparsity, block);
            chunk.blocks().map(of_block).sum::<i64>()
        });
        run.monitor.advance(tensor.entry_bytes * chunk.entries.len() as u64);
        Ok(sum)
    };
    let sum: i64 = chunks.par_iter().map(of_chunk).try_reduce(|| 0, |a, b| Ok(a + b))?;
    Ok(T::from_f64(sum.signum() as f64))
}

fn sum_of_block<T: Real>(
    tensor: &Tensor,
    entries: Range<usize>,
    sparsity: &[Sparsity<T>],
    block: &mut Block<T>,
) -> i64 {
    let length = entries.len();
    let Block { base, rows, keep, .. } = block;
    let (base, rows) = (&mut base[..length], &mut rows[..length * sparsity.len()]);
    tensor.read_base(entries.clone(), base);
    for (expert, (delta, sparsity)) in rows.chunks_exact_mut(length).zip(sparsity).enumerate() {
        tensor.read_expert(expert, entries.clone(), delta);
        tensor.subtract_base(base, delta);
        // A whole-model cut keeps all its ties, so there are none to count.
        tensor.sparsify(expert, entries.start, sparsity, &mut 0, keep, delta);
    }
    sum_of_signs(rows, None, length)
}
