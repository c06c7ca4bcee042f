//! The sign that the model-wide sum of elected signs has: who wins a draw in original TIES.

use std::ops::Range;

use super::Run;
use super::tensor::{Block, Sparsity, Tensor};
use super::window::{Scratch, all_chunks, sweep};
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
    let chunks = all_chunks::<T>(run, tensors);
    let sums = sweep(run, scratch, tensors, &chunks, |tensor, chunk, block| {
        let sparsity = &sparsities[chunk.tensor];
        let of_block = |entries| sum_of_block(tensor, entries, sparsity, block);
        chunk.blocks().map(of_block).sum::<i64>()
    })?;
    Ok(T::from_f64(sums.iter().sum::<i64>().signum() as f64))
}

fn sum_of_block<T: Real>(
    tensor: &Tensor,
    entries: Range<usize>,
    sparsity: &[Sparsity<T>],
    block: &mut Block<T>,
) -> i64 {
    let length = entries.len();
    let votes = vec![T::ONE; sparsity.len()];
    let Block { base, rows, keep, .. } = block;
    let (base, rows) = (&mut base[..length], &mut rows[..length * sparsity.len()]);
    tensor.prefetch_after(&entries);
    tensor.read_base(entries.clone(), base);
    for (expert, (delta, sparsity)) in rows.chunks_exact_mut(length).zip(sparsity).enumerate() {
        tensor.read_delta(expert, entries.clone(), base, delta);
        // A whole-model cut keeps all its ties, so there are none to count.
        tensor.sparsify(expert, entries.start, sparsity, &mut 0, keep, delta);
    }
    sum_of_signs(rows, &votes, length)
}
