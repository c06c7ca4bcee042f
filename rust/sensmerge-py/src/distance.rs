use pyo3::prelude::*;
use sensmerge_core::engine::reduce::{self, Buffer, Columns};

use crate::buffers::{Bytes, dtype as parse_dtype};
use crate::error::to_python;
use crate::pool::pool;

/// L2 norm of every row of ``a - b`` (Sens-Merging, Eq. 4).
///
/// Differences are float32 (float64 for float64 matrices), squares and sums float64; the result does
/// not depend on the number of threads.
///
/// Args:
///     a: A row-major matrix, as a contiguous uint8 view.
///     b: Another of as many rows and the same dtype.
///     dtype: Their dtype, such as ``float32``.
///     rows: Number of rows.
///     columns: The columns that are compared, in runs: the first in ``a``, the first in ``b``, and
///         how many. The result does not depend on where they stand.
///     threads: Threads to use; all cores by default.
///
/// Raises:
///     InputError: A length is not a multiple of ``rows``, a column does not exist, a view is not
///         contiguous, or the dtype is unknown.
#[pyfunction]
#[pyo3(signature = (
    a: "numpy.typing.NDArray[numpy.uint8]", b: "numpy.typing.NDArray[numpy.uint8]", dtype, rows,
    columns, threads = None
))]
pub(crate) fn row_distances(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: &Bound<'_, PyAny>,
    dtype: &str,
    rows: usize,
    columns: Vec<(usize, usize, usize)>,
    threads: Option<usize>,
) -> PyResult<Vec<f64>> {
    let (a, b) = (Bytes::of("a", a)?, Bytes::of("b", b)?);
    let dtype = parse_dtype("dtype", dtype)?;
    let pool = pool(threads)?;
    let (a, b) = (a.as_slice(), b.as_slice());
    py.detach(|| {
        let (a, b) = (Buffer::new("a", a, dtype)?, Buffer::new("b", b, dtype)?);
        let run = |(a, b, count)| Columns { a, b, count };
        let columns: Vec<Columns> = columns.into_iter().map(run).collect();
        pool.install(|| reduce::row_distances(a, b, rows, &columns))
    })
    .map_err(to_python)
}
