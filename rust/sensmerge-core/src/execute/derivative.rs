//! How a loss changes with the weights of a merge: `∂L/∂w_i = Σ_j ∂L/∂θ_j · ∂θ_j/∂w_i`.

use super::Run;
use super::merge::{Combination, combine, read};
use super::reduce::Buffer;
use super::tensor::{BLOCK, Block, Sparsity, Tensor};
use super::window::{Chunk, chunk_entries, chunks_of, scratch, sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::derivative::{disjoint_derivative, dot};
use crate::method::Operand;

/// The derivative by every expert's weight of one tensor, at the plan's weights.
///
/// Products and sums are float64, of a fixed shape: a sum of the sums of blocks, in index order.
pub(super) fn derivatives<T: Real>(
    run: &Run,
    tensor: &Tensor,
    sparsities: &[Sparsity<T>],
    majority: T,
    gradient: Buffer,
) -> Result<Vec<f64>> {
    gradient.check_length("gradient", tensor.step.elements)?;
    let combination = Combination::new(run.plan, tensor, sparsities, majority);
    let entries = chunk_entries::<T>(run.options.chunk_bytes);
    let chunks = chunks_of(0, tensor.step.elements, entries);
    let tensors = std::slice::from_ref(tensor);
    let found =
        sweep(run, &scratch(tensor.experts()), tensors, &chunks, |tensor, chunk, block| {
            of_chunk(run, tensor, &combination, chunk, gradient, block)
        })?;
    let mut totals = vec![0.0; tensor.experts()];
    for blocks in found {
        for (place, sum) in blocks?.into_iter().enumerate() {
            totals[place % tensor.experts()] += sum;
        }
    }
    let outer = match run.plan.method.operand {
        Operand::TaskVectors => tensor.merge.lambda,
        Operand::Parameters => 1.0,
    };
    Ok(totals.into_iter().map(|total| outer * total).collect())
}

/// The derivatives, but for λ, of every block of a chunk: one an expert.
fn of_chunk<T: Real>(
    run: &Run,
    tensor: &Tensor,
    combination: &Combination<T>,
    chunk: &Chunk,
    gradient: Buffer,
    block: &mut Block<T>,
) -> Result<Vec<f64>> {
    let method = run.plan.method;
    let mut ties = combination.ties_at(chunk.place);
    let mut wide = [T::ZERO; BLOCK];
    let mut found = Vec::new();
    for entries in chunk.blocks() {
        let length = entries.len();
        let wide = &mut wide[..length];
        gradient.read(entries.start, wide);
        read(run, tensor, combination, &entries, &mut ties, block)?;
        if let Some(consensus) = method.consensus {
            combine(method, combination, length, block);
            let rows = &mut block.rows[..length * combination.weights.len()];
            let (signs, out) = (&block.signs[..length], &block.out[..length]);
            let (agreement, divisor) = (consensus.agreement, method.divisor);
            disjoint_derivative(rows, &combination.weights, signs, agreement, divisor, out);
            found.extend(rows.chunks_exact(length).map(|row| dot(wide, row)));
        } else if let Some(divisor) = combination.divisor {
            combine(method, combination, length, block);
            let through = dot(wide, &block.out[..length]);
            let rows = block.rows[..length * combination.weights.len()].chunks_exact(length);
            found.extend(rows.map(|row| (dot(wide, row) - through) / divisor.to_f64()));
        } else {
            let rows = block.rows[..length * combination.weights.len()].chunks_exact(length);
            found.extend(rows.map(|row| dot(wide, row)));
        }
    }
    Ok(found)
}
