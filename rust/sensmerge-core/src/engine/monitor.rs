//! Progress and cancellation of a running merge, shared with the thread that waits for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// The progress of a merge, and the request to cancel it. Share it between the merging thread and a
/// waiting one.
#[derive(Debug, Default)]
pub struct Monitor {
    total: AtomicU64,
    done: AtomicU64,
    cancelled: AtomicBool,
}

impl Monitor {
    /// A monitor with no progress, not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
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
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Return an error if the merge is cancelled. Called between chunks, so that a merge stops within
    /// milliseconds.
    pub(super) fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
