//! How a merge is cut into pieces of work.
//!
//! A *chunk* is a run of entries of one tensor, of a fixed size: what one thread does at a time. A
//! *window* is a run of tensors of one precision whose statistics (thresholds, norms) are held
//! at a time: it bounds memory, and gives every thread enough chunks. Neither changes a byte of
//! the output: statistics are exact or sums of a fixed shape.

use std::ops::Range;

use rayon::prelude::*;

use super::Run;
use super::idle::Idle;
use super::tensor::{BLOCK, Block, Tensor};
use crate::dtype::Real;
use crate::error::Result;
use crate::plan::Precision;

/// Entries of a window: enough chunks for many threads.
pub(super) const WINDOW_ENTRIES: usize = 1 << 26;

/// Tensors of a window: 20,000 small tensors make a few windows, not 20,000.
const WINDOW_TENSORS: usize = 4096;

/// A run of entries of one tensor.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// The tensor's place in its window.
    pub(super) tensor: usize,
    /// The chunk's place in its tensor.
    pub(super) place: usize,
    pub(super) entries: Range<usize>,
}

impl Chunk {
    /// The chunk's entries, a cache-sized block at a time.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = self.entries.end;
        self.entries.clone().step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
    }
}

/// Entries of a chunk of about `bytes` bytes, a whole number of blocks.
pub(super) fn chunk_entries<T: Real>(bytes: usize) -> usize {
    (bytes / size_of::<T>() / BLOCK).max(1) * BLOCK
}

/// A tensor's chunks. An empty tensor has none.
pub(super) fn chunks_of(tensor: usize, elements: usize, chunk_entries: usize) -> Vec<Chunk> {
    let starts = (0..elements).step_by(chunk_entries);
    let entries = starts.map(|start| start..elements.min(start + chunk_entries));
    entries.enumerate().map(|(place, entries)| Chunk { tensor, place, entries }).collect()
}

/// The chunks of all `tensors`.
pub(super) fn all_chunks<T: Real>(run: &Run, tensors: &[Tensor]) -> Vec<Chunk> {
    let size = chunk_entries::<T>(run.options.chunk_bytes);
    let of_tensor =
        |(place, tensor): (usize, &Tensor)| chunks_of(place, tensor.step.elements, size);
    tensors.iter().enumerate().flat_map(of_tensor).collect()
}

/// Cut `tensors` into windows.
pub(super) fn windows<'t, 'p>(tensors: &'t [Tensor<'p>]) -> Vec<&'t [Tensor<'p>]> {
    let mut windows = Vec::new();
    let mut rest = tensors;
    while let Some(first) = rest.first() {
        let precision = first.merge.precision;
        let mut entries = 0;
        let fits = |tensor: &&Tensor| {
            entries += tensor.step.elements;
            tensor.merge.precision == precision && entries <= WINDOW_ENTRIES
        };
        let length = rest.iter().take(WINDOW_TENSORS).take_while(fits).count().max(1);
        let (window, others) = rest.split_at(length);
        windows.push(window);
        rest = others;
    }
    windows
}

/// A window's precision.
pub(super) fn precision(window: &[Tensor]) -> Precision {
    window.first().map_or(Precision::Single, |tensor| tensor.merge.precision)
}

/// The buffers that threads work with.
pub(super) type Scratch<T> = Idle<Block<T>, Box<dyn Fn() -> Block<T> + Sync>>;

/// Buffers for merging this many experts.
pub(super) fn scratch<T: Real>(experts: usize) -> Scratch<T> {
    Idle::new(Box::new(move || Block::new(experts)))
}

/// Look at every chunk once, in parallel: `look` is given the chunk's tensor and a thread's
/// buffers. Results are in the order of the chunks.
pub(super) fn sweep<T: Real, R: Send>(
    run: &Run,
    scratch: &Scratch<T>,
    tensors: &[Tensor],
    chunks: &[Chunk],
    look: impl Fn(&Tensor, &Chunk, &mut Block<T>) -> R + Sync,
) -> Result<Vec<R>> {
    let of_chunk = |chunk: &Chunk| {
        run.monitor.check()?;
        let tensor = &tensors[chunk.tensor];
        let result = scratch.lend(|block| look(tensor, chunk, block));
        run.monitor.advance(tensor.entry_bytes * chunk.entries.len() as u64);
        Ok(result)
    };
    chunks.par_iter().map(of_chunk).collect()
}
