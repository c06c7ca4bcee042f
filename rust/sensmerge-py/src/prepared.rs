use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use pyo3::prelude::*;
use sensmerge_core::engine::{self, Inputs, Monitor, Options, reduce};
use sensmerge_core::manifest;

use crate::buffers::{Bytes, dtype};
use crate::checkpoint::Checkpoint;
use crate::door::enter;
use crate::error::to_python;
use crate::manifest::{Manifest, opened};
use crate::memory::{slices, writable};
use crate::pool::pool;

/// A merge whose reductions (thresholds, norms, products) are done, for searches over its weights.
///
/// Args:
///     manifest: The merge.
///     models: The manifest's models, in their order.
///     threads: Threads to use; all cores by default.
///     allow_nan: Write NaN and infinite values instead of refusing them.
///
/// Raises:
///     InputError: The checkpoints cannot be merged as asked.
///     KeyboardInterrupt: Ctrl-C was pressed.
#[pyclass(frozen, module = "sensmerge._core")]
pub(crate) struct Prepared {
    inner: RwLock<engine::Prepared>,
    /// The addresses of inputs in memory.
    ranges: Vec<Range<usize>>,
    threads: Option<usize>,
}

#[pymethods]
impl Prepared {
    #[new]
    #[pyo3(signature = (manifest, models, *, threads = None, allow_nan = false))]
    fn new(
        py: Python<'_>,
        manifest: PyRef<'_, Manifest>,
        models: Vec<PyRef<'_, Checkpoint>>,
        threads: Option<usize>,
        allow_nan: bool,
    ) -> PyResult<Self> {
        let manifest = manifest::Manifest::clone(&manifest.inner());
        let checkpoints = opened(&models);
        let ranges = models.iter().flat_map(|model| model.ranges()).cloned().collect();
        let options = Options { threads, allow_nan, ..Options::default() };
        let monitor = Monitor::new();
        let inner = enter(py, &monitor, None, || {
            let inputs = Inputs::of(&manifest, checkpoints)?;
            engine::Prepared::new(manifest, inputs, options, &monitor)
        })?;
        Ok(Self { inner: RwLock::new(inner), ranges, threads })
    }

    /// Take the weights of another manifest of the same models.
    ///
    /// Args:
    ///     manifest: It may differ in weights, lambda, normalize and the output's dtype.
    ///
    /// Returns:
    ///     Whether it was taken; False if it differs in more, so that other entries might be kept.
    fn reweigh(&self, py: Python<'_>, manifest: PyRef<'_, Manifest>) -> PyResult<bool> {
        let manifest = manifest.inner();
        py.detach(|| {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            let serves = inner.serves(&manifest);
            if serves {
                inner.reweigh(manifest::Manifest::clone(&manifest))?;
            }
            Ok(serves)
        })
        .map_err(to_python)
    }

    /// Merge into memory, in one sweep.
    ///
    /// Args:
    ///     outputs: A contiguous, writable uint8 view for every tensor of the merged model, by name.
    ///
    /// Raises:
    ///     InputError: An output is missing, of another size, read-only, or overlaps another or an
    ///         input; or merged values are not finite.
    ///     KeyboardInterrupt: Ctrl-C was pressed; some outputs are written, others are not.
    #[pyo3(signature = (
        outputs: "collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]]"
    ))]
    fn merge_into(
        &self,
        py: Python<'_>,
        outputs: BTreeMap<String, Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let mut buffers = writable(&outputs, self.ranges.iter())?;
        let slices = slices(&mut buffers);
        let monitor = Monitor::new();
        enter(py, &monitor, None, || {
            let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            inner.merge_into(slices, &monitor)
        })
    }

    /// The derivatives of a loss by every expert's weight of one tensor.
    ///
    /// The kept entries and the elected signs are held fixed.
    ///
    /// Args:
    ///     tensor: Its name.
    ///     gradient: The gradient of the loss by the merged tensor, as a contiguous uint8 view.
    ///     gradient_dtype: The gradient's dtype, such as ``bfloat16``.
    ///
    /// Returns:
    ///     One derivative per expert, at the current weights.
    ///
    /// Raises:
    ///     InputError: The tensor is not merged, the gradient is of another size, or the weights of
    ///         the method cannot be learned.
    #[pyo3(signature = (
        tensor, gradient: "numpy.typing.NDArray[numpy.uint8]", gradient_dtype
    ))]
    fn derivatives(
        &self,
        py: Python<'_>,
        tensor: &str,
        gradient: &Bound<'_, PyAny>,
        gradient_dtype: &str,
    ) -> PyResult<Vec<f64>> {
        let bytes = Bytes::of("gradient", gradient)?;
        let gradient_dtype = dtype("gradient_dtype", gradient_dtype)?;
        let pool = pool(self.threads)?;
        let bytes = bytes.as_slice();
        py.detach(|| {
            let gradient = reduce::Buffer::new("gradient", bytes, gradient_dtype)?;
            let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            pool.install(|| inner.derivatives(tensor, gradient))
        })
        .map_err(to_python)
    }
}
