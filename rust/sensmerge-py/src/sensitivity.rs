use pyo3::prelude::*;
use sensmerge_core::engine::reduce::{self, Buffer};

use crate::buffers::{Bytes, dtype};
use crate::error::to_python;
use crate::pool::pool;

/// Sum of ``|theta * gradient|`` over one parameter tensor (Sens-Merging, Eq. 1 and 3).
///
/// Products are float32 (float64 where an input is), sums float64; the result does not depend on
/// the number of threads.
///
/// Args:
///     theta: The parameter, as a contiguous uint8 view.
///     theta_dtype: Its dtype, such as ``bfloat16``.
///     gradient: Its gradient, of as many entries, as a contiguous uint8 view.
///     gradient_dtype: The gradient's dtype.
///     threads: Threads to use; all cores by default.
///
/// Raises:
///     InputError: Lengths differ, a view is not contiguous, or a dtype is unknown.
#[pyfunction]
#[pyo3(signature = (
    theta: "numpy.typing.NDArray[numpy.uint8]", theta_dtype,
    gradient: "numpy.typing.NDArray[numpy.uint8]", gradient_dtype, threads = None
))]
pub(crate) fn sum_abs_product(
    py: Python<'_>,
    theta: &Bound<'_, PyAny>,
    theta_dtype: &str,
    gradient: &Bound<'_, PyAny>,
    gradient_dtype: &str,
    threads: Option<usize>,
) -> PyResult<f64> {
    let (theta, gradient) = (Bytes::of("theta", theta)?, Bytes::of("gradient", gradient)?);
    let theta_dtype = dtype("theta_dtype", theta_dtype)?;
    let gradient_dtype = dtype("gradient_dtype", gradient_dtype)?;
    let pool = pool(threads)?;
    let (theta, gradient) = (theta.as_slice(), gradient.as_slice());
    py.detach(|| {
        let theta = Buffer::new("theta", theta, theta_dtype)?;
        let gradient = Buffer::new("gradient", gradient, gradient_dtype)?;
        pool.install(|| reduce::sum_abs_product(theta, gradient))
    })
    .map_err(to_python)
}

/// Sum of ``gradient ** 2`` over one parameter tensor: the trace of the empirical Fisher information.
///
/// Squares and sums are float64; the result does not depend on the number of threads.
///
/// Args:
///     gradient: The gradient, as a contiguous uint8 view.
///     gradient_dtype: Its dtype, such as ``bfloat16``.
///     threads: Threads to use; all cores by default.
///
/// Raises:
///     InputError: The view is not contiguous, or the dtype is unknown.
#[pyfunction]
#[pyo3(signature = (
    gradient: "numpy.typing.NDArray[numpy.uint8]", gradient_dtype, threads = None
))]
pub(crate) fn sum_squares(
    py: Python<'_>,
    gradient: &Bound<'_, PyAny>,
    gradient_dtype: &str,
    threads: Option<usize>,
) -> PyResult<f64> {
    let gradient = Bytes::of("gradient", gradient)?;
    let gradient_dtype = dtype("gradient_dtype", gradient_dtype)?;
    let pool = pool(threads)?;
    let gradient = gradient.as_slice();
    py.detach(|| {
        let gradient = Buffer::new("gradient", gradient, gradient_dtype)?;
        Ok(pool.install(|| reduce::sum_squares(gradient)))
    })
    .map_err(to_python)
}
