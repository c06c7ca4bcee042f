use pyo3::prelude::*;
use sensmerge_core::engine::{Monitor, difference};

use crate::checkpoint::Checkpoint;
use crate::door::enter;

/// The comparison of one tensor of two checkpoints, entry by entry.
///
/// Sums are float64, of a fixed shape. With a base, task vectors stand for ``a`` and ``b`` in all but
/// ``changed``, ``largest`` and ``squared_difference``, which a base does not change.
#[pyclass(frozen, get_all, module = "sensmerge._core")]
#[expect(clippy::struct_field_names, reason = "Python reads these names")]
pub(crate) struct Difference {
    /// Number of entries.
    entries: u64,
    /// Number of entries that differ.
    changed: u64,
    /// Number of entries that are zero in neither.
    signed: u64,
    /// Number of those that have one sign in both.
    agreeing: u64,
    /// Largest absolute difference; NaN is passed over.
    largest: f64,
    /// Squared L2 norm of ``b - a``.
    squared_difference: f64,
    /// Squared L2 norm of ``a``.
    squared_a: f64,
    /// Squared L2 norm of ``b``.
    squared_b: f64,
    /// Scalar product of ``a`` and ``b``.
    product: f64,
}

/// Compare tensors of two checkpoints.
///
/// Args:
///     a: One checkpoint.
///     b: The other.
///     base: The model that both were tuned from; None compares the weights themselves.
///     tensors: Names of tensors that all of them have, in one shape and as floats.
///     threads: Threads to use; all cores by default. The result does not depend on it.
///     progress: Called several times a second with the bytes read and the bytes to read.
///
/// Returns:
///     The comparison of every tensor, in the order of ``tensors``.
///
/// Raises:
///     InputError: A tensor is missing, of another shape, or not of floats.
///     KeyboardInterrupt: Ctrl-C was pressed.
#[pyfunction]
#[pyo3(signature = (
    a, b, base, tensors: "collections.abc.Sequence[str]", *, threads = None,
    progress: "collections.abc.Callable[[int, int], object] | None" = None
))]
pub(crate) fn differences(
    py: Python<'_>,
    a: PyRef<'_, Checkpoint>,
    b: PyRef<'_, Checkpoint>,
    base: Option<PyRef<'_, Checkpoint>>,
    tensors: Vec<String>,
    threads: Option<usize>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Vec<Difference>> {
    let (a, b, base) = (a.inner(), b.inner(), base.map(|base| base.inner()));
    let monitor = Monitor::new();
    let found = enter(py, &monitor, progress, || {
        difference::differences(&a, &b, base.as_ref(), &tensors, threads, &monitor)
    })?;
    Ok(found.into_iter().map(Difference::of).collect())
}

impl Difference {
    fn of(found: difference::Difference) -> Self {
        let difference::Difference {
            entries,
            changed,
            signed,
            agreeing,
            largest,
            squared_difference,
            squared_a,
            squared_b,
            product,
        } = found;
        Self {
            entries,
            changed,
            signed,
            agreeing,
            largest,
            squared_difference,
            squared_a,
            squared_b,
            product,
        }
    }
}
