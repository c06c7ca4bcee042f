//! What a running merge shares with whoever waits for it: how far it is, and whether to stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Progress out, cancellation in. Share it between the thread that merges and one that watches.
#[derive(Debug, Default)]
pub struct Monitor {
    total: AtomicU64,
    done: AtomicU64,
    cancelled: AtomicBool,
}

impl Monitor {
    /// Nothing done, nothing to do yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes read so far and bytes to read in all; a method that looks at a tensor several times
    /// counts it several times.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Ask the merge to stop; it leaves nothing behind and returns [`Error::Interrupted`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Called between pieces of work, so that a cancellation is heard within milliseconds.
    pub(super) fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
