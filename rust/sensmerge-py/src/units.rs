use pyo3::prelude::*;
use sensmerge_core::engine::{self, Monitor};
use sensmerge_core::manifest::Symmetry;

use crate::checkpoint::Checkpoint;
use crate::door::enter;
use crate::error::{bad_input, to_python};
use crate::manifest::{RequestedView, opened};

/// Match the units of a model, such as neurons, with those of another by their weights.
///
/// Args:
///     template: JSON: the model whose order counts, as the request of a manifest has it.
///     model: JSON: the other model, likewise.
///     checkpoints: The checkpoints that the two name by their index.
///     symmetries: JSON: a list of units that can change places: ``units`` and ``members`` (how many),
///         and ``portions``, the rows (``axis`` 0) or columns (1) of tensors that move with them:
///         ``tensor``, ``axis``, ``first``, ``count`` and ``level`` (``units`` or ``members``).
///     threads: Threads to use; all cores by default. The result does not depend on it.
///     progress: Called several times a second with the bytes done and the bytes to do.
///
/// Returns:
///     For every symmetry the units of the model in the order of those of the template, and their
///     members, numbered over all units. Nothing moves where the model lacks a tensor or has it in
///     another shape.
///
/// Raises:
///     InputError: An argument is malformed, or a tensor cannot be read.
///     KeyboardInterrupt: Ctrl-C was pressed.
#[pyfunction]
#[pyo3(signature = (
    template, model, checkpoints, symmetries, *, threads = None,
    progress: "collections.abc.Callable[[int, int], object] | None" = None
))]
pub(crate) fn match_units(
    py: Python<'_>,
    template: &str,
    model: &str,
    checkpoints: Vec<PyRef<'_, Checkpoint>>,
    symmetries: &str,
    threads: Option<usize>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Vec<(Vec<usize>, Vec<usize>)>> {
    let opened = opened(&checkpoints);
    let view = |text: &str| {
        let view: RequestedView =
            serde_json::from_str(text).map_err(|error| bad_input(format!("view: {error}")))?;
        view.build(&opened).map_err(to_python)
    };
    let (template, model) = (view(template)?, view(model)?);
    let symmetries: Vec<Symmetry> = serde_json::from_str(symmetries)
        .map_err(|error| bad_input(format!("symmetries: {error}")))?;
    let monitor = Monitor::new();
    let found = enter(py, &monitor, progress, || {
        engine::match_units(&template, &model, &symmetries, threads, &monitor)
    })?;
    Ok(found.into_iter().map(|order| (order.units, order.members)).collect())
}
