use std::collections::BTreeSet;
use std::path::PathBuf;

use pyo3::prelude::*;
use sensmerge_core::checkpoint;

use crate::error::to_python;

/// Choose the pickled files that hold the weights of a model without safetensors files.
///
/// Args:
///     folder: The model's folder, which must hold the index, where there is one.
///     names: Names of the model's files, whether the folder holds them or not.
///
/// Returns:
///     Names of the files: of the index first, where there is one. Empty where there are safetensors
///     files, which are read instead, or no pickles of a model.
///
/// Raises:
///     InputError: The index is malformed.
///     OSError: The index cannot be read.
#[pyfunction]
#[pyo3(signature = (
    folder, names: "collections.abc.Set[str]"
))]
pub(crate) fn pickle_files(
    py: Python<'_>,
    folder: PathBuf,
    names: BTreeSet<String>,
) -> PyResult<Vec<String>> {
    py.detach(|| checkpoint::pickle_files(&folder, &names)).map_err(to_python)
}
