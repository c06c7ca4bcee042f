//! Thread pools.

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::processor::reset_float_mode;

/// A pool of `threads` threads (one per core by default) in the floating-point mode that Rust
/// assumes, whatever the mode of the calling thread.
///
/// # Errors
/// [`Error::Setting`] if the threads cannot be started.
pub fn pool(threads: Option<usize>) -> Result<ThreadPool> {
    let threads = threads.unwrap_or(0);
    let builder = ThreadPoolBuilder::new().num_threads(threads);
    builder.start_handler(|_| reset_float_mode()).build().map_err(|error| {
        Error::setting("threads", format!("{threads} threads cannot be started: {error}"))
    })
}
