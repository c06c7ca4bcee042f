//! Progress and cancellation of a running merge, shared with the thread that waits for it.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// The progress of a merge, and the request to cancel it. Share it between the merging thread and a
/// waiting one.
#[derive(Default)]
pub struct Monitor {
    total: AtomicU64,
    done: AtomicU64,
    /// One of the three below.
    state: AtomicU8,
    committed: Option<Box<dyn Fn() + Send + Sync>>,
}

const RUNNING: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

impl Monitor {
    /// A monitor with no progress, not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same; `committed` is called on the merging thread once the merge cannot be cancelled any
    /// more, before its first file is in place.
    #[must_use]
    pub fn with_committed(committed: impl Fn() + Send + Sync + 'static) -> Self {
        Self { committed: Some(Box::new(committed)), ..Self::default() }
    }

    /// Bytes read so far, and the expected number of bytes to read; an input counts once for every
    /// sweep over it. The search for a threshold may need more sweeps than expected, so that the first
    /// number may exceed the second.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Ask the merge to stop. It then returns [`Error::Interrupted`]. A merge that is already renaming
    /// its files finishes.
    pub fn cancel(&self) {
        let _ = self.change(CANCELLED);
    }

    /// Whether the merge is past the point at which it could be cancelled.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.state.load(Ordering::Acquire) == COMMITTED
    }

    /// From here on the merge cannot be cancelled; an error if it is already.
    pub(super) fn commit(&self) -> Result<()> {
        self.change(COMMITTED).map_err(|_| Error::Interrupted)?;
        if let Some(committed) = &self.committed {
            committed();
        }
        Ok(())
    }

    fn change(&self, state: u8) -> std::result::Result<u8, u8> {
        self.state.compare_exchange(RUNNING, state, Ordering::AcqRel, Ordering::Acquire)
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Take progress back to what it was.
    pub(super) fn rewind(&self, (done, total): (u64, u64)) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Return an error if the merge is cancelled. Called between chunks, so that a merge stops within
    /// milliseconds.
    pub(super) fn check(&self) -> Result<()> {
        match self.state.load(Ordering::Relaxed) {
            CANCELLED => Err(Error::Interrupted),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load(Ordering::Relaxed);
        to.debug_struct("Monitor").field("state", &state).finish_non_exhaustive()
    }
}
