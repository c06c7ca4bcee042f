//! A stock of idle buffers, lent to threads: as many are made as threads use one at a time.

use std::sync::{Mutex, PoisonError};

/// A stock of values that are costly to make.
pub(crate) struct Idle<A, M> {
    stock: Mutex<Vec<A>>,
    make: M,
}

impl<A, M: Fn() -> A> Idle<A, M> {
    pub(crate) fn new(make: M) -> Self {
        Self { stock: Mutex::new(Vec::new()), make }
    }

    /// Call `work` with an idle value, or with a new one if none is idle.
    pub(crate) fn lend<R>(&self, work: impl FnOnce(&mut A) -> R) -> R {
        let idle = self.stock.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut lent = idle.unwrap_or_else(&self.make);
        let result = work(&mut lent);
        self.stock.lock().unwrap_or_else(PoisonError::into_inner).push(lent);
        result
    }

    /// All values that were made.
    pub(crate) fn into_all(self) -> Vec<A> {
        self.stock.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
