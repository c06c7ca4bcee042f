//! Exact magnitude thresholds over task vectors that are never held: a radix selection, a sweep
//! over the inputs for each 16 bits of the magnitude.

use rayon::prelude::*;

use super::Run;
use super::tensor::{Cut, Tensor};
use super::window::{Chunk, Scratch, chunks_of};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::magnitude::{BINS, RadixSelect, Selected, Selection, count_equal, histogram};

/// Chunks that share one histogram at least: clearing and adding one costs a quarter of a chunk.
const CHUNKS_PER_HISTOGRAM: usize = 4;

/// The trim of one expert's part of one tensor to exactly `max(1, floor(density * n))` entries.
pub(super) fn cut_tensor<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensor: &Tensor,
    expert: usize,
) -> Result<Cut> {
    let density = tensor.merge.terms[expert].trim_density;
    let elements = tensor.step.elements;
    if density >= 1.0 || elements == 0 {
        return Ok(Cut::None);
    }
    let kept = ((density * elements as f64).floor() as u64).max(1);
    let chunks = chunks_of(0, elements, run.chunk_entries::<T>());
    let tensors = std::slice::from_ref(tensor);
    let rank = elements as u64 - kept;
    let found = match chunks.as_slice() {
        [chunk] => select_in_chunk(scratch, tensor, expert, chunk, rank),
        _ => select(run, scratch, tensors, &chunks, expert, rank)?,
    };
    let above = elements as u64 - found.below - found.equal;
    let mut left = kept - above;
    let equal = count_ties(run, scratch, tensor, &chunks, expert, found.magnitude)?;
    let ties = equal.into_iter().map(|equal| {
        let ties = left;
        left = left.saturating_sub(equal);
        ties
    });
    Ok(Cut::Exactly { magnitude: found.magnitude, ties: ties.collect() })
}

/// The trim of one expert's whole task vector: with `k = n - floor(density * n)`, entries at or
/// above the k-th smallest magnitude stay.
pub(super) fn cut_model<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensors: &[Tensor],
    expert: usize,
) -> Result<Cut> {
    let density = tensors.first().map_or(1.0, |tensor| tensor.merge.terms[expert].trim_density);
    let entries: u64 = tensors.iter().map(|tensor| tensor.step.elements as u64).sum();
    let trimmed = entries - (density * entries as f64).floor() as u64;
    if trimmed == 0 {
        return Ok(Cut::None);
    }
    let chunks: Vec<Chunk> = (tensors.iter().enumerate())
        .flat_map(|(place, tensor)| {
            chunks_of(place, tensor.step.elements, run.chunk_entries::<T>())
        })
        .collect();
    let found = select(run, scratch, tensors, &chunks, expert, trimmed - 1)?;
    Ok(Cut::AtLeast(found.magnitude))
}

/// The magnitude of `rank` (0 the smallest) among the entries of `chunks`.
fn select<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensors: &[Tensor],
    chunks: &[Chunk],
    expert: usize,
    rank: u64,
) -> Result<Selected> {
    let mut selection = RadixSelect::new::<T>(rank);
    loop {
        let (prefix, shift) = selection.window();
        let empty = || vec![0_u64; BINS];
        let bins = chunks
            .par_iter()
            .with_min_len(CHUNKS_PER_HISTOGRAM)
            .try_fold(empty, |mut bins, chunk| {
                run.monitor.check()?;
                let tensor = &tensors[chunk.tensor];
                scratch.lend(|block| {
                    for entries in chunk.blocks() {
                        let length = entries.len();
                        tensor.dropped(expert, entries, block);
                        histogram(&block.rows[..length], prefix, shift, &mut bins);
                    }
                });
                run.advance_expert(tensor, chunk.entries.len());
                Ok(bins)
            })
            .try_reduce(empty, |mut bins, others| {
                bins.iter_mut().zip(others).for_each(|(bin, other)| *bin += other);
                Ok(bins)
            })?;
        match selection.feed(&bins) {
            Selection::Done(found) => return Ok(found),
            Selection::Continue(next) => selection = next,
        }
    }
}

/// The same for a tensor of one chunk, whose magnitudes fit a small buffer.
fn select_in_chunk<T: Real>(
    scratch: &Scratch<T>,
    tensor: &Tensor,
    expert: usize,
    chunk: &Chunk,
    rank: u64,
) -> Selected {
    let mut magnitudes = Vec::with_capacity(chunk.entries.len());
    scratch.lend(|block| {
        for entries in chunk.blocks() {
            let length = entries.len();
            tensor.dropped(expert, entries, block);
            magnitudes.extend(block.rows[..length].iter().map(|delta| delta.magnitude()));
        }
    });
    let (below, &mut magnitude, above) = magnitudes.select_nth_unstable(rank as usize);
    let equal_below = below.iter().filter(|&&other| other == magnitude).count();
    let equal_above = above.iter().filter(|&&other| other == magnitude).count();
    Selected {
        magnitude,
        below: (below.len() - equal_below) as u64,
        equal: (equal_below + 1 + equal_above) as u64,
    }
}

/// How many entries of each chunk are equal to the threshold.
fn count_ties<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensor: &Tensor,
    chunks: &[Chunk],
    expert: usize,
    magnitude: u64,
) -> Result<Vec<u64>> {
    if let [_] = chunks {
        // The only chunk may keep all that is left to keep.
        return Ok(vec![u64::MAX]);
    }
    let count = |chunk: &Chunk| {
        run.monitor.check()?;
        let equal = scratch.lend(|block| {
            chunk.blocks().fold(0, |equal, entries| {
                let length = entries.len();
                tensor.dropped(expert, entries, block);
                equal + count_equal(&block.rows[..length], magnitude)
            })
        });
        run.advance_expert(tensor, chunk.entries.len());
        Ok(equal)
    };
    chunks.par_iter().map(count).collect()
}
