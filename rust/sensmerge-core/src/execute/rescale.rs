//! The factors that bring what sparsification leaves back to its size.

use super::Run;
use super::tensor::{Block, Cut, Tensor};
use super::window::{Chunk, Scratch, all_chunks, sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::sum::l1;
use crate::method::Rescale;

/// Norms below this are left alone: there is nothing to restore.
const SMALLEST_NORM: f64 = 1e-7;

/// L1 norms of a block of a task vector, before and after sparsification.
type Norms = (f64, f64);

/// What the kept entries of every expert are multiplied by, for every tensor of a window.
pub(super) fn factors<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    window: &[Tensor],
    cuts: &[Vec<Cut<T>>],
) -> Result<Vec<Vec<T>>> {
    match run.plan.method.rescale {
        Rescale::None => Ok(window.iter().map(|tensor| vec![T::ONE; tensor.experts()]).collect()),
        Rescale::InverseDensity => {
            let factors = |tensor: &Tensor| {
                let densities = tensor.merge.terms.iter().map(|term| term.drop_density);
                densities.map(|density| T::from_f64(1.0 / density)).collect()
            };
            Ok(window.iter().map(factors).collect())
        }
        Rescale::PreserveL1 => preserve_l1(run, scratch, window, cuts),
    }
}

/// The factors that restore norms. The sums of blocks are added in index order, whichever thread
/// made them.
fn preserve_l1<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    window: &[Tensor],
    cuts: &[Vec<Cut<T>>],
) -> Result<Vec<Vec<T>>> {
    let chunks = all_chunks::<T>(run, window);
    let norms = sweep(run, scratch, window, &chunks, |tensor, chunk, block| {
        norms_of_chunk(tensor, chunk, &cuts[chunk.tensor], block)
    })?;
    let mut totals: Vec<Vec<Norms>> =
        window.iter().map(|tensor| vec![(0.0, 0.0); tensor.experts()]).collect();
    for (chunk, norms) in chunks.iter().zip(norms) {
        for (total, of_blocks) in totals[chunk.tensor].iter_mut().zip(norms) {
            for (before, after) in of_blocks {
                *total = (total.0 + before, total.1 + after);
            }
        }
    }
    let factor = |(before, after): Norms| {
        let vanishing = before < SMALLEST_NORM || after < SMALLEST_NORM;
        if vanishing { T::ONE } else { T::from_f64(before / after) }
    };
    Ok(totals.into_iter().map(|experts| experts.into_iter().map(factor).collect()).collect())
}

/// Norms by expert and block. An expert of which nothing is taken away has none.
fn norms_of_chunk<T: Real>(
    tensor: &Tensor,
    chunk: &Chunk,
    cuts: &[Cut<T>],
    block: &mut Block<T>,
) -> Vec<Vec<Norms>> {
    let mut norms = vec![Vec::new(); cuts.len()];
    let mut ties: Vec<u64> = cuts.iter().map(|cut| cut.ties_at(chunk.place)).collect();
    let Block { base, rows, keep, .. } = block;
    for entries in chunk.blocks() {
        let (base, delta) = (&mut base[..entries.len()], &mut rows[..entries.len()]);
        tensor.prefetch_after(&entries);
        tensor.read_base(entries.clone(), base);
        for (expert, cut) in cuts.iter().enumerate() {
            if matches!(cut, Cut::None) && !tensor.drops(expert) {
                continue;
            }
            tensor.read_delta(expert, entries.clone(), base, delta);
            let before = l1(delta);
            tensor.drop(expert, entries.start, T::ONE, keep, delta);
            cut.apply(delta, &mut ties[expert]);
            norms[expert].push((before, l1(delta)));
        }
    }
    norms
}
