use pyo3::prelude::*;
use sensmerge_core::engine::difference;

use crate::buffers::BytesMut;
use crate::checkpoint::Checkpoint;
use crate::error::to_python;
use crate::pool::pool;

/// Write entries of the task vector of one tensor, ``expert - base``, as float32.
///
/// Args:
///     expert: The model that was tuned.
///     base: The model that it was tuned from.
///     tensor: Name of the tensor.
///     first: Index of the first entry.
///     output: A contiguous, writable uint8 view of as many float32 entries as are wanted.
///     threads: Threads to use; all cores by default.
///
/// Raises:
///     InputError: The tensor is missing, of another shape, or not of floats; or the output
///         reaches beyond it or is read-only.
#[pyfunction]
#[pyo3(signature = (
    expert, base, tensor, first, output: "numpy.typing.NDArray[numpy.uint8]", *, threads = None
))]
pub(crate) fn task_vector(
    py: Python<'_>,
    expert: PyRef<'_, Checkpoint>,
    base: PyRef<'_, Checkpoint>,
    tensor: &str,
    first: usize,
    output: &Bound<'_, PyAny>,
    threads: Option<usize>,
) -> PyResult<()> {
    let (expert, base) = (expert.inner(), base.inner());
    let mut output = BytesMut::of("output", output)?;
    let output = output.as_mut_slice();
    let pool = pool(threads)?;
    py.detach(|| pool.install(|| difference::task_vector(&expert, &base, tensor, first, output)))
        .map_err(to_python)
}
