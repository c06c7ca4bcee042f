//! Reading all entries of some tensors once, and what is found on the way.
//!
//! Entries are read by chunks, in parallel, and within a chunk block by block in index order. A
//! reduction gives every chunk (or every thread) a partial result of its own; these are merged when
//! all chunks are done. So that a result depends neither on threads nor on who computed which part:
//!
//! - partial results of a tensor are merged in index order, and a sum keeps the sums of blocks until
//!   the end, since floating-point addition is not associative;
//! - partial results of the model are merged in any order, and hold only what can be: counts, least
//!   and greatest values.

use std::ops::Range;
use std::sync::OnceLock;

use super::Subject;
use super::block::Block;
use super::idle::Idle;
use crate::dtype::Real;
use crate::error::Result;

/// A run of entries of one tensor: what one thread does at a time.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The tensor's place among the subjects.
    pub tensor: usize,
    /// The chunk's place in its tensor.
    pub place: usize,
    /// Its entries.
    pub entries: Range<usize>,
}

/// Which rows are to be read: told a tensor's place and a model's.
pub type Wants<'w> = &'w (dyn Fn(usize, usize) -> bool + Sync);

/// Told a chunk's place among all chunks, the chunk, and its blocks.
pub type LookAtChunk<'l, T> = &'l (dyn Fn(usize, &Chunk, &mut dyn Blocks<T>) + Sync);

/// Told a tensor's place, and where to read from it.
pub type LookAtTensor<'l, T> = &'l (dyn Fn(usize, &mut dyn Reader<T>) + Sync);

/// The tensors that are decided together, to be read as often as needed.
pub trait Sweep<T: Real>: Sync {
    /// The tensors.
    fn subjects(&self) -> &[Subject<'_>];

    /// Their chunks, in order. An empty tensor has none.
    fn chunks(&self) -> &[Chunk];

    /// Read every chunk of which some row is wanted, in parallel.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    fn read_chunks(&self, wants: Wants, look: LookAtChunk<T>) -> Result<()>;

    /// Visit every tensor, in parallel, to read from it here and there.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    fn visit_tensors(&self, look: LookAtTensor<T>) -> Result<()>;
}

/// The blocks of a chunk, one after the other.
pub trait Blocks<T: Real> {
    /// The next block, its rows as the steps that are decided leave them.
    fn next(&mut self) -> Option<&mut Block<T>>;
}

/// Reads from any place of a tensor.
pub trait Reader<T: Real> {
    /// Some entries of all models, as the steps that are decided leave them. These must not carry
    /// anything from block to block.
    fn read(&mut self, entries: Range<usize>) -> &mut Block<T>;
}

/// A look at all entries whose partial results can be merged.
pub trait Reduction<T: Real>: Sync {
    /// A partial result.
    type Partial: Send + Sync;

    /// Whether a model's rows in a tensor are looked at.
    fn wants(&self, tensor: usize, model: usize) -> bool {
        let _ = (tensor, model);
        true
    }

    /// The partial result of no entries; for a chunk of a tensor, where partial results are kept by
    /// chunk.
    fn identity(&self, chunk: Option<&Chunk>) -> Self::Partial;

    /// Add the entries of a block of a tensor.
    fn block(&self, tensor: usize, block: &mut Block<T>, partial: &mut Self::Partial);

    /// Merge two partial results; of the same tensor, `next` is of the entries that follow.
    fn merge(&self, partial: &mut Self::Partial, next: Self::Partial);
}

/// One result for every tensor.
///
/// # Errors
/// What the sweep finds.
pub fn reduce_tensors<T: Real, R: Reduction<T>>(
    sweep: &dyn Sweep<T>,
    reduction: &R,
) -> Result<Vec<R::Partial>> {
    let chunks = sweep.chunks();
    let found: Vec<OnceLock<R::Partial>> = chunks.iter().map(|_| OnceLock::new()).collect();
    let wants = |tensor, model| reduction.wants(tensor, model);
    sweep.read_chunks(&wants, &|place, chunk, blocks| {
        let mut partial = reduction.identity(Some(chunk));
        while let Some(block) = blocks.next() {
            reduction.block(chunk.tensor, block, &mut partial);
        }
        // Every chunk is read once.
        let _ = found[place].set(partial);
    })?;
    let subjects = 0..sweep.subjects().len();
    let mut results: Vec<R::Partial> = subjects.map(|_| reduction.identity(None)).collect();
    for (chunk, partial) in chunks.iter().zip(found) {
        if let Some(partial) = partial.into_inner() {
            reduction.merge(&mut results[chunk.tensor], partial);
        }
    }
    Ok(results)
}

/// One result for all tensors.
///
/// # Errors
/// What the sweep finds.
pub fn reduce_model<T: Real, R: Reduction<T>>(
    sweep: &dyn Sweep<T>,
    reduction: &R,
) -> Result<R::Partial> {
    let partials = Idle::new(|| reduction.identity(None));
    let wants = |tensor, model| reduction.wants(tensor, model);
    sweep.read_chunks(&wants, &|_, chunk, blocks| {
        partials.lend(|partial| {
            while let Some(block) = blocks.next() {
                reduction.block(chunk.tensor, block, partial);
            }
        });
    })?;
    let mut result = reduction.identity(None);
    for partial in partials.into_all() {
        reduction.merge(&mut result, partial);
    }
    Ok(result)
}
