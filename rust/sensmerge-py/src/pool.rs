//! The thread pool of short calls, kept between them: starting threads would take longer than a call.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::PyResult;
use rayon::ThreadPool;
use sensmerge_core::engine;

use crate::error::to_python;

/// A pool, with the process and the number of threads it was made for: threads do not survive a fork.
type Made = (u32, Option<usize>, Arc<ThreadPool>);

/// The last pool used.
static LAST: Mutex<Option<Made>> = Mutex::new(None);

/// A pool of `threads` threads (all cores by default).
pub(crate) fn pool(threads: Option<usize>) -> PyResult<Arc<ThreadPool>> {
    let process = std::process::id();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, size, pool)) = last.as_ref()
        && (*owner, *size) == (process, threads)
    {
        return Ok(Arc::clone(pool));
    }
    let pool = Arc::new(engine::pool(threads).map_err(to_python)?);
    if let Some((owner, _, stale)) = last.replace((process, threads, Arc::clone(&pool)))
        && owner != process
    {
        // Not dropped: joining threads that exist only in the parent process would wait forever.
        std::mem::forget(stale);
    }
    Ok(pool)
}
