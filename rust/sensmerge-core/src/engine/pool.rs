//! Thread pools.

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::processor::reset_float_mode;

/// A pool of `threads` threads (all cores by default) that round and keep subnormals as Rust
/// assumes, whatever mode the calling thread is in.
///
/// # Errors
/// [`Error::Setting`] where the threads cannot be started.
pub fn pool(threads: Option<usize>) -> Result<ThreadPool> {
    let threads = threads.unwrap_or(0);
    let builder = ThreadPoolBuilder::new().num_threads(threads);
    builder.start_handler(|_| reset_float_mode()).build().map_err(|error| {
        Error::setting("threads", format!("{threads} threads cannot be started: {error}"))
    })
}
