use std::collections::BTreeMap;

use pyo3::prelude::*;
use sensmerge_core::engine::{self, Monitor};

use crate::checkpoint::Checkpoint;
use crate::door::enter;
use crate::error::{bad_input, to_python};
use crate::manifest::{RequestedView, opened};
use crate::memory::{slices, writable};

/// Write tensors of a model as they enter a merge, with the changes of its adapters.
///
/// Args:
///     view: JSON: the model as the request of a manifest has it.
///     checkpoints: The checkpoints that the view names by their index.
///     outputs: A contiguous, writable uint8 view for every wanted tensor, by its stored name. Each is
///         rounded once to the dtype that it is stored in.
///     threads: Threads to use; all cores by default.
///
/// Raises:
///     InputError: The view is malformed, or a tensor is missing, of another size or not computed with.
///     KeyboardInterrupt: Ctrl-C was pressed; some outputs are written, others are not.
#[pyfunction]
#[pyo3(signature = (
    view, checkpoints, outputs: "collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]]", *,
    threads = None
))]
pub(crate) fn read_into(
    py: Python<'_>,
    view: &str,
    checkpoints: Vec<PyRef<'_, Checkpoint>>,
    outputs: BTreeMap<String, Bound<'_, PyAny>>,
    threads: Option<usize>,
) -> PyResult<()> {
    let view: RequestedView =
        serde_json::from_str(view).map_err(|error| bad_input(format!("view: {error}")))?;
    let view = view.build(&opened(&checkpoints)).map_err(to_python)?;
    let ranges = checkpoints.iter().flat_map(|checkpoint| checkpoint.ranges());
    let mut buffers = writable(&outputs, ranges)?;
    let slices = slices(&mut buffers);
    let monitor = Monitor::new();
    enter(py, &monitor, None, || engine::read_into(&view, slices, threads, &monitor))
}
