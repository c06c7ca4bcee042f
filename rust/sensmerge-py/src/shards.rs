use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use sensmerge_core::engine::{Inputs, Monitor, Options, execute_shards};

use crate::door::enter;
use crate::manifest::Manifest;

/// Merge the tensors of some weight files of a model that other processes merge, too.
///
/// The files stay in the folder under temporary names until ``merge`` with ``commit`` puts all in place.
/// Files that are whole already are left as they are, so that a call may be repeated.
///
/// Args:
///     manifest: The merge, with digests of the weights; its own files are opened.
///     output: The folder, the same for all processes.
///     max_shard_bytes: Largest size of a weight file's data, the same for all processes.
///     shards: Indices of the weight files, from 0.
///     wait: Seconds to wait for other processes, where the method has to know something of the whole
///         model.
///     threads: Threads to use; all cores by default.
///     sync: Flush files to disk before saying that they are whole.
///     overwrite: Replace the output of an earlier merge in the folder.
///     allow_nan: Write NaN and infinite values instead of refusing them.
///     progress: Called several times a second with the bytes read and the expected bytes to read.
///
/// Returns:
///     JSON: ``output``, ``merged`` and ``whole`` (names of weight files that were merged now, and of those
///     that were whole already), ``bytes`` and ``seconds``.
///
/// Raises:
///     WaitingError: Other processes have not done their part in time; call again.
///     InputError: The checkpoints cannot be merged as asked, or the folder cannot be written to.
///     OSError: A file cannot be read or written.
///     KeyboardInterrupt: Ctrl-C was pressed; files that are whole stay.
#[pyfunction]
#[pyo3(signature = (
    manifest, output, max_shard_bytes,
    shards: "collections.abc.Sequence[int]", *, wait = 0.0, threads = None, sync = true, overwrite = false,
    allow_nan = false,
    progress: "collections.abc.Callable[[int, int], object] | None" = None
))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub(crate) fn merge_shards(
    py: Python<'_>,
    manifest: PyRef<'_, Manifest>,
    output: PathBuf,
    max_shard_bytes: u64,
    shards: Vec<usize>,
    wait: f64,
    threads: Option<usize>,
    sync: bool,
    overwrite: bool,
    allow_nan: bool,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<String> {
    let manifest = manifest.inner();
    let options =
        Options { threads, max_shard_bytes, sync, overwrite, allow_nan, ..Options::default() };
    let which: BTreeSet<usize> = shards.into_iter().collect();
    let wait = Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX);
    let monitor = Monitor::new();
    let done = enter(py, &monitor, progress, || {
        let inputs = Inputs::open(&manifest)?;
        execute_shards(&manifest, &inputs, &output, &which, wait, &options, &monitor)
    })?;
    Ok(serde_json::json!(done).to_string())
}
