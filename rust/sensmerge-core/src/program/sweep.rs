//! Sweeps over all entries of some tensors, and reductions on them.
//!
//! Chunks are read in parallel, and the blocks of a chunk in index order. A reduction has a partial
//! result for every chunk (for a result per tensor) or for every thread (for one result over all
//! tensors); they are merged when all chunks are done. The result must not depend on threads:
//!
//! - Partial results of a tensor are merged in index order, and a sum keeps the sums of blocks until
//!   the end, since floating-point addition is not associative.
//! - Partial results over all tensors are merged in any order, and may hold only values whose merging
//!   is associative and commutative: counts, and least and greatest values. So several processes may
//!   each reduce some tensors of a model and exchange what they found ([`Together`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::Subject;
use super::block::Block;
use super::idle::Idle;
use crate::dtype::Real;
use crate::error::{Error, Result};

/// A run of consecutive entries of one tensor, processed by one thread at a time.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// The tensor's index among the subjects.
    pub(crate) tensor: usize,
    /// The chunk's index in its tensor.
    pub(crate) place: usize,
    /// The range of its entries.
    pub(crate) entries: Range<usize>,
}

/// Whether a row is to be read, given the index of the tensor and that of the model.
pub(crate) type Wants<'w> = &'w (dyn Fn(usize, usize) -> bool + Sync);

/// Called with the index of a chunk among all chunks, the chunk, and its blocks.
pub(crate) type LookAtChunk<'l, T> = &'l (dyn Fn(usize, &Chunk, &mut dyn Blocks<T>) + Sync);

/// Called with the index of a tensor and a reader of its entries.
pub(crate) type LookAtTensor<'l, T> = &'l (dyn Fn(usize, &mut dyn Reader<T>) + Sync);

/// Reads the tensors of a stage, as often as a reduction needs.
pub(crate) trait Sweep<T: Real>: Sync {
    /// The tensors.
    fn subjects(&self) -> &[Subject<'_>];

    /// Their chunks, in order. An empty tensor has none.
    fn chunks(&self) -> &[Chunk];

    /// Whether all is done once these tensors are merged: results that need a bit for every entry may be
    /// kept until then.
    fn is_brief(&self) -> bool;

    /// Read every chunk of which `wants` asks for a row, in parallel.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    fn read_chunks(&self, wants: Wants, look: LookAtChunk<T>) -> Result<()>;

    /// Call `look` for every tensor, in parallel, with random access to its entries.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    fn visit_tensors(&self, look: LookAtTensor<T>) -> Result<()>;

    /// The rest of the model, where other processes merge it; `None` where these tensors are all.
    fn together(&self) -> Option<&dyn Together>;
}

/// The model of which a sweep reads some tensors, while other processes see to the rest.
pub(crate) trait Together: Sync {
    /// Number of entries of all tensors that are merged.
    fn entries(&self) -> usize;

    /// Whether a tensor of this sweep counts here; one that is written in two files is read twice.
    fn counts(&self, tensor: usize) -> bool;

    /// Exchange a result: `find` is asked for that of this sweep's tensors unless it is known already, and
    /// `take` gets those of all processes, in any order. All processes exchange the same results in the
    /// same order.
    ///
    /// # Errors
    /// [`Error::Waiting`] while results of other processes are missing; [`Error::Io`]; the errors of
    /// `find` and `take`.
    fn exchange(
        &self,
        find: &mut dyn FnMut() -> Result<Vec<i64>>,
        take: &mut dyn FnMut(&[i64]) -> Result<()>,
    ) -> Result<()>;
}

/// A partial result over tensors of a model as plain numbers, for another process.
pub(crate) trait Portable {
    /// All that it holds.
    fn to_numbers(&self) -> Vec<i64>;

    /// Take over what [`to_numbers`](Self::to_numbers) gave for a result of the same reduction; whether it
    /// was that.
    fn take_numbers(&mut self, numbers: &[i64]) -> bool;
}

/// Numbers of another process that are not what it should have found.
pub(crate) fn foreign_numbers() -> Error {
    let reason = "the numbers that a process left for the others are not a result of this merge; remove \
                  the output folder and begin anew";
    Error::setting("reductions", reason)
}

/// The blocks of a chunk, one after the other.
pub(crate) trait Blocks<T: Real> {
    /// The next block, with its rows as the decided steps leave them.
    fn next(&mut self) -> Option<&mut Block<T>>;
}

/// Reads any range of a tensor's entries.
pub(crate) trait Reader<T: Real> {
    /// Read a range of at most a block, of all models, as the decided steps leave it. These steps must
    /// not carry state from block to block.
    fn read(&mut self, entries: Range<usize>) -> &mut Block<T>;
}

/// A computation over all entries whose partial results can be merged.
pub(crate) trait Reduction<T: Real>: Sync {
    /// A partial result.
    type Partial: Send + Sync;

    /// Whether it needs a model's rows of a tensor.
    fn wants(&self, tensor: usize, model: usize) -> bool {
        let _ = (tensor, model);
        true
    }

    /// The partial result of no entries: at the start of `chunk`, or of no chunk at all.
    fn identity(&self, chunk: Option<&Chunk>) -> Self::Partial;

    /// Add the entries of a block of a tensor.
    fn block(&self, tensor: usize, block: &mut Block<T>, partial: &mut Self::Partial);

    /// Merge `next` into `partial`. In [`reduce_tensors`], `next` belongs to the entries that follow.
    fn merge(&self, partial: &mut Self::Partial, next: Self::Partial);
}

/// Run a reduction with one result for every tensor.
///
/// # Errors
/// The errors of the sweep.
pub(crate) fn reduce_tensors<T: Real, R: Reduction<T>>(
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
        // Every chunk is read once, so that the cell is empty.
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

/// Run a reduction with one result for every tensor whose partial results are large: they are merged in
/// pairs while the sweep goes on, so that few wait at a time.
///
/// ```text
/// merge the results of chunks 0 and 1, of 2 and 3, ...; of these the 0th and 1st, the 2nd and 3rd, ...;
/// and so on. One that has no neighbour goes on alone.
/// ```
///
/// The shape of the sums depends on the number of chunks alone. All rows are read.
///
/// # Errors
/// The errors of the sweep.
pub(crate) fn reduce_by_halves<T: Real, R: Reduction<T>>(
    sweep: &dyn Sweep<T>,
    reduction: &R,
) -> Result<Vec<R::Partial>> {
    let mut counts = vec![0; sweep.subjects().len()];
    for chunk in sweep.chunks() {
        counts[chunk.tensor] += 1;
    }
    let found: Vec<OnceLock<R::Partial>> = counts.iter().map(|_| OnceLock::new()).collect();
    let waiting: Mutex<BTreeMap<(usize, u32, usize), R::Partial>> = Mutex::default();
    sweep.read_chunks(&|_, _| true, &|_, chunk, blocks| {
        let mut partial = reduction.identity(Some(chunk));
        while let Some(block) = blocks.next() {
            reduction.block(chunk.tensor, block, &mut partial);
        }
        let (mut place, mut count) = (chunk.place, counts[chunk.tensor]);
        let mut level = 0;
        while count > 1 {
            let neighbour = place ^ 1;
            if neighbour < count {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(other) = waiting.remove(&(chunk.tensor, level, neighbour)) else {
                    waiting.insert((chunk.tensor, level, place), partial);
                    return;
                };
                drop(waiting);
                let (mut first, second) =
                    if place < neighbour { (partial, other) } else { (other, partial) };
                reduction.merge(&mut first, second);
                partial = first;
            }
            (place, count, level) = (place / 2, count.div_ceil(2), level + 1);
        }
        // The last of a tensor's chunks to be read comes here, so that the cell is empty.
        let _ = found[chunk.tensor].set(partial);
    })?;
    let whole = |found: OnceLock<R::Partial>| {
        found.into_inner().unwrap_or_else(|| reduction.identity(None))
    };
    Ok(found.into_iter().map(whole).collect())
}

/// Run a reduction with one result for the whole model.
///
/// # Errors
/// The errors of the sweep, and of [`Together::exchange`].
pub(crate) fn reduce_model<T: Real, R: Reduction<T, Partial: Portable>>(
    sweep: &dyn Sweep<T>,
    reduction: &R,
) -> Result<R::Partial> {
    let Some(together) = sweep.together() else { return reduce_all(sweep, reduction) };
    let mut result = reduction.identity(None);
    let mut find = || {
        let ours = reduce(sweep, reduction, &|tensor| together.counts(tensor))?;
        Ok(ours.to_numbers())
    };
    together.exchange(&mut find, &mut |numbers| {
        let mut next = reduction.identity(None);
        if !next.take_numbers(numbers) {
            return Err(foreign_numbers());
        }
        reduction.merge(&mut result, next);
        Ok(())
    })?;
    Ok(result)
}

/// Run a reduction with one result for all tensors of the sweep.
///
/// # Errors
/// The errors of the sweep.
pub(crate) fn reduce_all<T: Real, R: Reduction<T>>(
    sweep: &dyn Sweep<T>,
    reduction: &R,
) -> Result<R::Partial> {
    reduce(sweep, reduction, &|_| true)
}

fn reduce<T: Real, R: Reduction<T>>(
    sweep: &dyn Sweep<T>,
    reduction: &R,
    counts: &(dyn Fn(usize) -> bool + Sync),
) -> Result<R::Partial> {
    let partials = Idle::new(|| reduction.identity(None));
    let wants = |tensor, model| counts(tensor) && reduction.wants(tensor, model);
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
