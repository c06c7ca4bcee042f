//! The division of a merge into pieces of work.
//!
//! A *chunk* is a run of consecutive entries of one tensor that one thread computes; all chunks of a
//! tensor but the last have the same size. A *window* is a run of consecutive tensors of one precision
//! and number of models whose reductions run together: it bounds the memory for their results, and holds enough chunks for
//! all threads. A *block* is the part of a chunk that is computed at a time. The output depends on
//! none of the sizes that can be chosen: results of reductions are exact or sums of a fixed shape.

use std::ops::Range;

use super::tensor::{Precision, Tensor};
use crate::dtype::Real;
use crate::program::Blocks;
use crate::program::block::BLOCK;
use crate::program::sweep::Chunk;

/// Entries of a window, at most, unless a single tensor has more: 256 chunks of float32.
pub(super) const WINDOW_ENTRIES: usize = 1 << 26;

/// Tensors of a window, at most. Not one: a model may have 20,000 small tensors.
const WINDOW_TENSORS: usize = 4096;

/// Entries of a chunk of whole rows, about. Unlike the size of other chunks it is not an option: sums
/// over columns are sums of the chunks' sums, and would change with it.
const CHUNK_OF_ROWS: usize = 1 << 18;

/// Number of entries of a chunk of `tensor`: a matrix or tensor that is taken as a whole; otherwise whole blocks or rows, and whole rows of tiles where its
/// output is quantised.
pub(super) fn chunk_entries<T: Real>(tensor: &Tensor, blocks: Blocks, chunk_bytes: usize) -> usize {
    let row_length = tensor.subject().row_length().max(1);
    let (unit, about) = match blocks {
        _ if tensor.matrices.is_some() => {
            let size = tensor.matrices.map_or(0, |[rows, columns]| rows * columns);
            (size, size)
        }
        _ if tensor.whole => (tensor.elements().max(1), tensor.elements().max(1)),
        Blocks::Flat => (BLOCK, chunk_bytes / size_of::<T>()),
        Blocks::Rows | Blocks::WholeRows => (row_length, CHUNK_OF_ROWS),
    };
    let unit = match tensor.output.packing {
        None => unit,
        Some(packing) => least_common_multiple(unit, packing.tile()[0] * row_length),
    };
    (about / unit).max(1) * unit
}

/// Number of entries of as many whole rows as `entries` hold, at least one row.
fn whole_rows(tensor: &Tensor, entries: usize) -> usize {
    let row_length = tensor.subject().row_length().max(1);
    (entries / row_length).max(1) * row_length
}

/// Number of entries of the largest block of any of `tensors`.
pub(super) fn block_entries(tensors: &[Tensor], blocks: Blocks) -> usize {
    let largest = tensors.iter().map(|tensor| whole_rows(tensor, BLOCK)).max();
    match blocks {
        Blocks::Flat | Blocks::Rows => BLOCK,
        Blocks::WholeRows => largest.map_or(BLOCK, |largest| largest.max(BLOCK)),
    }
}

fn least_common_multiple(one: usize, other: usize) -> usize {
    let (mut divisor, mut rest) = (one, other);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    one / divisor * other
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

/// The blocks of a chunk, in order. With [`Blocks::Rows`] a block ends where its row ends, and with
/// [`Blocks::WholeRows`] no row is cut.
pub(super) fn blocks(
    chunk: &Chunk,
    tensor: &Tensor,
    blocks: Blocks,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let (run, block) = match blocks {
        Blocks::Flat => (chunk.entries.len(), BLOCK),
        Blocks::Rows => (tensor.subject().row_length(), BLOCK),
        Blocks::WholeRows => (chunk.entries.len(), whole_rows(tensor, BLOCK)),
    };
    let end = chunk.entries.end;
    chunk.entries.clone().step_by(run.max(1)).flat_map(move |row| {
        let end = end.min(row + run);
        (row..end).step_by(block).map(move |start| start..end.min(start + block))
    })
}

/// Cut `tensors` into windows of so many entries at most, unless a single tensor has more.
pub(super) fn windows<'t, 'm>(tensors: &'t [Tensor<'m>], most: usize) -> Vec<&'t [Tensor<'m>]> {
    let mut windows = Vec::new();
    let mut rest = tensors;
    while let Some(first) = rest.first() {
        let (precision, experts) = (first.precision, first.experts());
        let mut entries = 0;
        let fits = |tensor: &&Tensor| {
            entries += tensor.elements();
            let alike = tensor.precision == precision && tensor.experts() == experts;
            alike && entries <= most
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
