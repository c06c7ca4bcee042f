//! How a merge is cut into pieces of work.
//!
//! A *chunk* is a run of entries of one tensor, of a fixed size: what one thread does at a time. A
//! *window* is a run of tensors of one precision whose statistics (thresholds, norms) are held
//! at a time: it bounds memory, and gives every thread enough chunks. Neither changes a byte of
//! the output: statistics are exact or sums of a fixed shape.

use std::ops::Range;

use super::tensor::{Precision, Tensor};
use crate::dtype::Real;
use crate::program::Blocks;
use crate::program::block::BLOCK;
use crate::program::sweep::Chunk;

/// Entries of a window: enough chunks for many threads.
const WINDOW_ENTRIES: usize = 1 << 26;

/// Tensors of a window: 20,000 small tensors make a few windows, not 20,000.
const WINDOW_TENSORS: usize = 4096;

/// Entries of a chunk of whole rows, about. No option changes it: sums over columns add up the sums
/// of chunks.
const CHUNK_OF_ROWS: usize = 1 << 18;

/// Entries of a chunk of a tensor.
pub(super) fn chunk_entries<T: Real>(tensor: &Tensor, blocks: Blocks, chunk_bytes: usize) -> usize {
    match blocks {
        Blocks::Flat => (chunk_bytes / size_of::<T>() / BLOCK).max(1) * BLOCK,
        Blocks::Rows => {
            let row_length = tensor.subject().row_length().max(1);
            (CHUNK_OF_ROWS / row_length).max(1) * row_length
        }
    }
}

/// The chunks of all `tensors`. An empty tensor has none.
pub(super) fn chunks<T: Real>(
    tensors: &[Tensor],
    blocks: Blocks,
    chunk_bytes: usize,
) -> Vec<Chunk> {
    let of_tensor = |(tensor, found): (usize, &Tensor)| {
        let (elements, size) = (found.elements(), chunk_entries::<T>(found, blocks, chunk_bytes));
        let starts = (0..elements).step_by(size).enumerate();
        starts.map(move |(place, start)| {
            let entries = start..elements.min(start + size);
            Chunk { tensor, place, entries }
        })
    };
    tensors.iter().enumerate().flat_map(of_tensor).collect()
}

/// The blocks of a chunk, in order. Where blocks are of rows, none goes over the end of a row.
pub(super) fn blocks(
    chunk: &Chunk,
    tensor: &Tensor,
    blocks: Blocks,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let run = match blocks {
        Blocks::Flat => chunk.entries.len(),
        Blocks::Rows => tensor.subject().row_length(),
    };
    let end = chunk.entries.end;
    chunk.entries.clone().step_by(run.max(1)).flat_map(move |row| {
        let end = end.min(row + run);
        (row..end).step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
    })
}

/// Cut `tensors` into windows.
pub(super) fn windows<'t, 'm>(tensors: &'t [Tensor<'m>]) -> Vec<&'t [Tensor<'m>]> {
    let mut windows = Vec::new();
    let mut rest = tensors;
    while let Some(first) = rest.first() {
        let precision = first.precision;
        let mut entries = 0;
        let fits = |tensor: &&Tensor| {
            entries += tensor.elements();
            tensor.precision == precision && entries <= WINDOW_ENTRIES
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
    window.first().map_or(Precision::Single, |tensor| tensor.precision)
}
