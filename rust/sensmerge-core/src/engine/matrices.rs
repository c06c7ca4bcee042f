//! Merges whole matrices, each on one thread, and as many at a time as memory is allowed for.
//!
//! A chunk of a tensor whose matrices are taken as wholes is one matrix. Its merged task vector is
//! computed first; then the chunk is written like any other, block by block, with the base, λ and
//! rounding.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::Job;
use super::tensor::Tensor;
use super::write::{Input, input_of};
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::kernel::finite::{all_finite, has_nan};
use crate::kernel::task_vector::subtract;
use crate::linear::Matrix;
use crate::program::Join;
use crate::program::block::{BLOCK, Block};
use crate::program::matrix::{CombineMatrices, Inputs};
use crate::program::sweep::Chunk;

/// The merged task vector of the matrix that is a chunk of `tensor`.
///
/// # Errors
/// [`Error::Tensor`] for entries of an input that are not finite, [`Error::Interrupted`], and those of
/// the combination.
pub(super) fn merged(
    job: &Job,
    tensor: &Tensor,
    chunk: &Chunk,
    combine: &dyn CombineMatrices,
) -> Result<Merged> {
    let subject = tensor.subject();
    let shape = [chunk.entries.len() / subject.row_length(), subject.row_length()];
    let mut inputs = OfMatrix { job, tensor, start: chunk.entries.start, shape };
    let matrix = combine.combine(&subject, shape, &mut inputs)?;
    job.monitor.check()?;
    Ok(Merged { matrix, start: chunk.entries.start })
}

/// The inputs of the matrix of `tensor` whose first entry is `start`.
struct OfMatrix<'o, 'm> {
    job: &'o Job<'o>,
    tensor: &'o Tensor<'m>,
    start: usize,
    shape: [usize; 2],
}

impl Inputs for OfMatrix<'_, '_> {
    fn task_vector(&mut self, model: usize) -> Result<Matrix> {
        let Self { job, tensor, .. } = *self;
        let mut base = [0.0; BLOCK];
        read(job, self.start, self.shape, |entries, part| {
            let base = &mut base[..part.len()];
            tensor.read_expert(model, entries.clone(), part);
            check_finite(job, tensor, Input::Expert(model), part)?;
            tensor.read_base(entries, base);
            check_finite(job, tensor, Input::Base, base)?;
            subtract(part, base);
            Ok(())
        })
    }

    fn statistic(&mut self, model: usize) -> Result<Matrix> {
        let Self { job, tensor, shape: [_, columns], .. } = *self;
        read(job, 0, [columns, columns], |entries, part| {
            tensor.read_statistic(model, entries, part);
            check_finite(job, tensor, Input::Statistic(model), part)
        })
    }
}

/// Read a matrix whose first entry is `start`, in parts of a row.
fn read(
    job: &Job,
    start: usize,
    [rows, columns]: [usize; 2],
    mut read: impl FnMut(Range<usize>, &mut [f64]) -> Result<()>,
) -> Result<Matrix> {
    job.monitor.check()?;
    let mut matrix = Matrix::zeros(rows, columns);
    for row in 0..rows {
        let mut first = start + row * columns;
        for part in matrix.row_mut(row).chunks_mut(BLOCK) {
            let length = part.len();
            read(first..first + length, part)?;
            first += length;
        }
    }
    Ok(matrix)
}

/// Refuse entries of an input that no matrix can be decomposed with.
fn check_finite(job: &Job, tensor: &Tensor, input: Input, entries: &[f64]) -> Result<()> {
    if all_finite(entries) {
        return Ok(());
    }
    let (path, name) = input_of(job, tensor, input);
    let found = if has_nan(entries) { "NaN" } else { "infinite entries" };
    let method = &job.manifest.method.name;
    let reason =
        format!("holds {found}, with which {method} cannot merge matrices; repair the checkpoint");
    Err(Error::tensor(path, name, reason))
}

/// A merged matrix, from which blocks are taken.
pub(super) struct Merged {
    matrix: Matrix,
    /// The index of its first entry in the tensor.
    start: usize,
}

impl<T: Real> Join<T> for Merged {
    fn join(&self, block: &mut Block<T>) {
        let columns = self.matrix.columns();
        let first = block.entries().start - self.start;
        let (mut row, mut column) = (first / columns, first % columns);
        let mut out = block.parts().out;
        while !out.is_empty() {
            let length = (columns - column).min(out.len());
            let (now, later) = out.split_at_mut(length);
            let entries = &self.matrix.row(row)[column..column + length];
            for (slot, &entry) in now.iter_mut().zip(entries) {
                *slot = T::from_f64(entry);
            }
            (row, column, out) = (row + 1, 0, later);
        }
    }
}

/// The budget where nothing tells of memory.
const UNKNOWN: u64 = 4_000_000_000;

/// Limits of a container's memory, in the two forms that Linux has.
const LIMITS: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Half of the memory that is available, to the machine and to a container.
pub(super) fn half_of_memory() -> u64 {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let limits = LIMITS.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    half_of(&told, limits.filter_map(|limit| limit.trim().parse().ok()))
}

fn half_of(told: &str, limits: impl Iterator<Item = u64>) -> u64 {
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    let available = kilobytes.map(|kilobytes: u64| kilobytes.saturating_mul(1024));
    available.into_iter().chain(limits).min().map_or(UNKNOWN, |bytes| bytes / 2)
}

/// Work on every piece, each of which needs some bytes of memory, on all threads of the pool; so many
/// at a time that together they need no more than `budget`, but at least one.
pub(super) fn within<P: Send>(
    budget: u64,
    pieces: Vec<(u64, P)>,
    work: impl Fn(P) -> Result<()> + Sync,
) -> Result<()> {
    let queue = Queue { budget, state: Mutex::new((pieces.into(), 0)), freed: Condvar::new() };
    let threads = rayon::current_num_threads();
    (0..threads).into_par_iter().with_max_len(1).try_for_each(|_| {
        while let Some((bytes, piece)) = queue.take() {
            let _held = Held { queue: &queue, bytes };
            work(piece).inspect_err(|_| queue.clear())?;
        }
        Ok(())
    })
}

/// The pieces that are left, and the bytes that are in use.
type State<P> = (VecDeque<(u64, P)>, u64);

struct Queue<P> {
    budget: u64,
    state: Mutex<State<P>>,
    freed: Condvar,
}

impl<P> Queue<P> {
    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece, as soon as there is memory for it; `None` if there is none.
    fn take(&self) -> Option<(u64, P)> {
        let mut state = self.lock();
        loop {
            let (pieces, used) = &mut *state;
            let bytes = pieces.front()?.0;
            if *used == 0 || used.saturating_add(bytes) <= self.budget {
                *used += bytes;
                return pieces.pop_front();
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn clear(&self) {
        self.lock().0.clear();
        self.freed.notify_all();
    }
}

/// Memory in use by a piece; freed when dropped.
struct Held<'q, P> {
    queue: &'q Queue<P>,
    bytes: u64,
}

impl<P> Drop for Held<'_, P> {
    fn drop(&mut self) {
        self.queue.lock().1 -= self.bytes;
        self.queue.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pool;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn pieces_stay_within_the_budget() {
        for (threads, budget) in [(1, 10), (4, 10), (4, 1)] {
            let (used, most, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
            let pieces = (0..200).map(|place| (1 + place % 7, place)).collect();
            let work = |place: u64| {
                let now = used.fetch_add(1 + place % 7, Ordering::SeqCst) + 1 + place % 7;
                most.fetch_max(now, Ordering::SeqCst);
                std::thread::yield_now();
                used.fetch_sub(1 + place % 7, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            };
            let pool = pool(Some(threads)).expect("threads start");
            pool.install(|| within(budget, pieces, work)).expect("no piece fails");
            assert_eq!(done.into_inner(), 200);
            assert!(most.into_inner() <= budget.max(7));
        }
    }

    #[test]
    fn half_of_the_least_limit_is_the_budget() {
        let told = "MemTotal:       24 kB\nMemAvailable:       16 kB\n";
        assert_eq!(half_of(told, [].into_iter()), 8 * 1024);
        assert_eq!(half_of(told, [1 << 40, 1000].into_iter()), 500);
        assert_eq!(half_of("", [].into_iter()), UNKNOWN);
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let pieces = (0..100).map(|place| (5, place)).collect();
        let work = |place| if place == 3 { Err(Error::Interrupted) } else { Ok(()) };
        let found = pool(Some(3)).expect("threads start").install(|| within(10, pieces, work));
        assert!(matches!(found, Err(Error::Interrupted)));
    }
}
