use std::collections::BTreeSet;
use std::path::PathBuf;

use pyo3::prelude::*;
use sensmerge_core::checkpoint;

use crate::error::to_python;

/// Choose the files that hold the weights of a model.
///
/// Args:
///     folder: The model's folder. It must hold the config and the index, and may lack weights, as
///         before a download.
///     names: Names of the model's files, whether the folder holds them or not.
///
/// Returns:
///     Names of the files that are read: of the index first, where there is one.
///
/// Raises:
///     InputError: The files hold no model, more than one, or one of another format.
///     OSError: The config or the index cannot be read.
#[pyfunction]
#[pyo3(signature = (
    folder, names: "collections.abc.Set[str]"
))]
pub(crate) fn weight_files(
    py: Python<'_>,
    folder: PathBuf,
    names: BTreeSet<String>,
) -> PyResult<Vec<String>> {
    py.detach(|| checkpoint::weight_files(&folder, &names)).map_err(to_python)
}
