use std::path::PathBuf;

use pyo3::prelude::*;
use sensmerge_core::engine::{DEFAULT_CHUNK_BYTES, Monitor, Options, Sidecar, commit, execute};

use crate::checkpoint::Checkpoint;
use crate::door::enter;
use crate::manifest::{Manifest, inputs, opened};

/// Carry a manifest out and write the model.
///
/// Args:
///     manifest: The merge.
///     output: The folder to write.
///     max_shard_bytes: Largest size of a weight file's data; a larger tensor gets a file of its own.
///     models: The manifest's models, in their order; by default its own files are opened.
///     copies: Files to copy beside the weights: pairs of name and path.
///     texts: Files to write beside the weights: pairs of name and content.
///     cards: The same, with the notes of the merge listed at the end.
///     notes: Notes for the user that are kept with those of the merge.
///     threads: Threads to use; all cores by default.
///     chunk_bytes: Bytes that a thread works on at a time; does not change the output.
///     sync: Flush the output to disk before returning.
///     hash: Hash every file that is written; a merge that was killed goes on only from hashed files.
///     resume: Whether the same merge may go on if it is killed; not where inputs are temporary.
///     overwrite: Replace the output of an earlier merge in the folder.
///     allow_nan: Write NaN and infinite values instead of refusing them.
///     keep: Leave what is written if the merge fails, for the same merge to go on from.
///     only_commit: Merge nothing, and put in place what ``merge_shards`` merged.
///     progress: Called several times a second with the bytes read and the expected bytes to read.
///     committed: Called once, on another thread, when Ctrl-C cannot cancel the merge any more.
///
/// Returns:
///     JSON that describes the written model: ``output``, ``tensors``, ``parameters``, ``bytes``,
///     ``shards``, ``notes`` and ``seconds``.
///
/// Raises:
///     WaitingError: With ``only_commit``, weight files are missing.
///     InputError: The checkpoints cannot be merged as asked, or the folder cannot be written to.
///     OSError: A file cannot be read or written.
///     KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
#[pyfunction]
#[pyo3(signature = (
    manifest, output, max_shard_bytes, models = None, *,
    copies: "collections.abc.Sequence[tuple[str, str | os.PathLike[str]]]" = Vec::new(),
    texts: "collections.abc.Sequence[tuple[str, str]]" = Vec::new(),
    cards: "collections.abc.Sequence[tuple[str, str]]" = Vec::new(),
    notes: "collections.abc.Sequence[str]" = Vec::new(),
    threads = None, chunk_bytes = None, sync = true, hash = true, resume = true, overwrite = false,
    allow_nan = false, keep = false, only_commit = false,
    progress: "collections.abc.Callable[[int, int], object] | None" = None,
    committed: "collections.abc.Callable[[], object] | None" = None
))]
#[expect(
    clippy::too_many_arguments,
    clippy::fn_params_excessive_bools,
    reason = "keywords in Python"
)]
pub(crate) fn merge(
    py: Python<'_>,
    manifest: PyRef<'_, Manifest>,
    output: PathBuf,
    max_shard_bytes: u64,
    models: Option<Vec<PyRef<'_, Checkpoint>>>,
    copies: Vec<(String, PathBuf)>,
    texts: Vec<(String, String)>,
    cards: Vec<(String, String)>,
    notes: Vec<String>,
    threads: Option<usize>,
    chunk_bytes: Option<usize>,
    sync: bool,
    hash: bool,
    resume: bool,
    overwrite: bool,
    allow_nan: bool,
    keep: bool,
    only_commit: bool,
    progress: Option<&Bound<'_, PyAny>>,
    committed: Option<Py<PyAny>>,
) -> PyResult<String> {
    let (manifest, models) = (manifest.inner(), models.map(|models| opened(&models)));
    let copies = copies.into_iter().map(|(name, from)| Sidecar::Copy { name, from });
    let texts = texts.into_iter().map(|(name, content)| Sidecar::Text { name, content });
    let cards = cards.into_iter().map(|(name, content)| Sidecar::Card { name, content });
    let sidecars: Vec<Sidecar> = copies.chain(texts).chain(cards).collect();
    let chunk_bytes = chunk_bytes.unwrap_or(DEFAULT_CHUNK_BYTES);
    let options = Options {
        threads,
        chunk_bytes,
        max_shard_bytes,
        sync,
        hash,
        resume,
        overwrite,
        allow_nan,
        keep,
        ..Options::default()
    };
    let monitor = committed.map_or_else(Monitor::new, |call| Monitor::with_committed(told(call)));
    let summary = enter(py, &monitor, progress, || {
        let inputs = inputs(&manifest, models)?;
        let carry_out = if only_commit { commit } else { execute };
        carry_out(&manifest, &inputs, &output, &sidecars, &notes, &options, &monitor)
    })?;
    Ok(serde_json::json!(summary).to_string())
}

/// A call of a Python function by the merging thread. Too late for an exception of it to stop the merge:
/// it is reported as one that nobody catches.
fn told(call: Py<PyAny>) -> impl Fn() + Send + Sync {
    move || {
        Python::attach(|py| {
            if let Err(error) = call.call0(py) {
                error.write_unraisable(py, Some(call.bind(py)));
            }
        });
    }
}
