//! Thread pools for calls too short to start threads for.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::PyResult;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::bad_input;

/// The last pool used, and for which process and number of threads it was made: threads do not
/// survive a fork.
static LAST: Mutex<Option<(u32, usize, Arc<ThreadPool>)>> = Mutex::new(None);

/// A pool of `threads` threads (all cores by default).
pub(crate) fn pool(threads: Option<usize>) -> PyResult<Arc<ThreadPool>> {
    let (process, threads) = (std::process::id(), threads.unwrap_or(0));
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, size, pool)) = last.as_ref()
        && (*owner, *size) == (process, threads)
    {
        return Ok(Arc::clone(pool));
    }
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| bad_input(format!("threads: {threads} cannot be started: {error}")))?;
    let pool = Arc::new(pool);
    if let Some((owner, _, stale)) = last.replace((process, threads, Arc::clone(&pool)))
        && owner != process
    {
        // Joining threads that a fork left behind would wait for ever.
        std::mem::forget(stale);
    }
    Ok(pool)
}
