use pyo3::prelude::*;
use sensmerge_core::engine::reduce::{self, Buffer};

use crate::buffers::{Bytes, dtype as parse_dtype};
use crate::error::to_python;
use crate::pool::pool;

/// L2 norm of every row of ``a - b`` (Sens-Merging, Eq. 4).
///
/// Differences are float32 (float64 for float64 matrices), squares and sums float64; the result does
/// not depend on the number of threads.
///
/// Args:
///     a: A row-major ``[rows, columns]`` matrix, as a contiguous uint8 view.
///     b: Another of the same shape and dtype.
///     dtype: Their dtype, such as ``float32``.
///     rows: Number of rows.
///     threads: Threads to use; all cores by default.
///
/// Raises:
///     InputError: Lengths differ or are not a multiple of ``rows``, a view is not contiguous, or the
///         dtype is unknown.
#[pyfunction]
#[pyo3(signature = (
    a: "numpy.typing.NDArray[numpy.uint8]", b: "numpy.typing.NDArray[numpy.uint8]", dtype, rows,
    threads = None
))]
pub(crate) fn row_distances(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: &Bound<'_, PyAny>,
    dtype: &str,
    rows: usize,
    threads: Option<usize>,
) -> PyResult<Vec<f64>> {
    let (a, b) = (Bytes::of("a", a)?, Bytes::of("b", b)?);
    let dtype = parse_dtype("dtype", dtype)?;
    let pool = pool(threads)?;
    let (a, b) = (a.as_slice(), b.as_slice());
    py.detach(|| {
        let (a, b) = (Buffer::new("a", a, dtype)?, Buffer::new("b", b, dtype)?);
        pool.install(|| reduce::row_distances(a, b, rows))
    })
    .map_err(to_python)
}
