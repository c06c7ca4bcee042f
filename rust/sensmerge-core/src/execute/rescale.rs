//! The factors that bring what sparsification leaves back to its size.

use rayon::prelude::*;

use super::Run;
use super::tensor::{Cut, Tensor};
use super::window::{Chunk, Scratch, chunks_of};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::sum::l1;
use crate::method::Rescale;

/// Norms below this are left alone: there is nothing to restore.
const SMALLEST_NORM: f64 = 1e-7;

/// What an expert's kept entries of a tensor are multiplied by.
pub(super) fn factor<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensor: &Tensor,
    expert: usize,
    cut: &Cut,
) -> Result<T> {
    let term = &tensor.merge.terms[expert];
    let untouched = term.drop_density >= 1.0 && matches!(cut, Cut::None);
    match run.plan.method.rescale {
        Rescale::InverseDensity => Ok(T::from_f64(1.0 / term.drop_density)),
        Rescale::PreserveL1 if !untouched => {
            let (before, after) = norms(run, scratch, tensor, expert, cut)?;
            let vanishing = before < SMALLEST_NORM || after < SMALLEST_NORM;
            Ok(if vanishing { T::ONE } else { T::from_f64(before / after) })
        }
        Rescale::PreserveL1 | Rescale::None => Ok(T::ONE),
    }
}

/// L1 norms of an expert's task vector in a tensor, before and after sparsification. The sums
/// of blocks are added in index order, whichever thread made them.
fn norms<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensor: &Tensor,
    expert: usize,
    cut: &Cut,
) -> Result<(f64, f64)> {
    let chunks = chunks_of(0, tensor.step.elements, run.chunk_entries::<T>());
    let of_chunk = |chunk: &Chunk| {
        run.monitor.check()?;
        let sums = scratch.lend(|block| {
            let mut ties = cut.ties_at(chunk.place);
            let mut of_block = |entries: std::ops::Range<usize>| {
                let first = entries.start;
                let (base, delta) =
                    (&mut block.base[..entries.len()], &mut block.rows[..entries.len()]);
                tensor.read_base(entries.clone(), base);
                tensor.read_expert(expert, entries, delta);
                tensor.subtract_base(base, delta);
                let before = l1(delta);
                tensor.drop(expert, first, T::ONE, &mut block.keep, delta);
                cut.apply(delta, &mut ties);
                (before, l1(delta))
            };
            chunk.blocks().map(&mut of_block).collect::<Vec<_>>()
        });
        run.advance_expert(tensor, chunk.entries.len());
        Ok(sums)
    };
    let sums = chunks.par_iter().map(of_chunk).collect::<Result<Vec<_>>>()?;
    let add = |(before, after), &(b, a): &(f64, f64)| (before + b, after + a);
    Ok(sums.iter().flatten().fold((0.0, 0.0), add))
}
