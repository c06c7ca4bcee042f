//! Derivatives of a loss by the weights of a merge: `∂L/∂w_i = Σ_j ∂L/∂θ_j · ∂θ_j/∂w_i`.

use rayon::prelude::*;

use super::reduce::Buffer;
use super::stage::{Decided, Stage, carried};
use super::write::{Combination, read};
use crate::error::{Error, Result};
use crate::kernel::low_rank::multiply_each;
use crate::program::sweep::Chunk;
use crate::program::{Computed, Operand};

/// The derivative by every model's weight of a tensor, at the manifest's weights. `stage` holds the
/// tensor alone; `place` is its index in the stage that `decided` belongs to.
///
/// Products and sums are float64, of a fixed shape: the sums of blocks are added in index order.
pub(super) fn derivatives<T: Computed>(
    stage: &Stage<T>,
    decided: &Decided<T>,
    place: usize,
    gradient: Buffer,
) -> Result<Vec<f64>> {
    let [tensor] = stage.tensors else { return Ok(Vec::new()) };
    if stage.job.program.matrices.is_some() {
        let reason = format!("the weights of {} cannot be learned", stage.job.manifest.method.name);
        return Err(Error::setting("merge_method", reason));
    }
    gradient.check_length("gradient", tensor.elements())?;
    let combination = Combination::new(stage.job, tensor, &decided.found[place])?;
    let of_chunk = |chunk: &Chunk| {
        stage.job.monitor.check()?;
        stage.scratch.lend(|worker| {
            let mut carried = carried(&decided.steps, place, chunk.place);
            let mut wide = Vec::new();
            let mut damped = Vec::new();
            let mut sums = Vec::new();
            worker.block.activate(|_| true);
            for entries in stage.blocks(chunk) {
                wide.resize(entries.len(), T::ZERO);
                gradient.read(entries.start, &mut wide);
                if let Some(factors) = &combination.factors {
                    damped.resize(entries.len(), T::ZERO);
                    factors.fill(&entries, &mut damped);
                    multiply_each(&mut wide, &damped);
                }
                read(
                    stage,
                    decided,
                    (chunk.tensor, place),
                    &entries,
                    &mut carried,
                    &mut worker.block,
                )?;
                let found = combination.join.derivatives(&mut worker.block, &wide);
                sums.push(found.ok_or_else(|| {
                    let method = &stage.job.manifest.method.name;
                    let reason = format!("the weights of {method} cannot be learned");
                    Error::setting("merge_method", reason)
                })?);
            }
            Ok(sums)
        })
    };
    let chunks: Vec<Result<Vec<Vec<f64>>>> = stage.chunks.par_iter().map(of_chunk).collect();
    let mut totals = vec![0.0; tensor.experts()];
    for blocks in chunks {
        for sums in blocks? {
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    }
    let outer = match stage.job.program.operand {
        Operand::TaskVectors => tensor.subject().number_or("lambda", 1.0),
        Operand::Parameters => 1.0,
    };
    Ok(totals.into_iter().map(|total| outer * total).collect())
}
