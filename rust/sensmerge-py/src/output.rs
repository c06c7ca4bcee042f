use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use sensmerge_core::checkpoint::output;

use crate::error::to_python;

/// Refuse an output folder that a merge could not write to, without touching anything.
///
/// Args:
///     output: The folder.
///     inputs: Folders and files that are merged.
///     overwrite: Whether a model in the folder may be replaced.
///
/// Raises:
///     InputError: The folder is not empty, is no folder, or belongs to an input.
#[pyfunction]
#[pyo3(signature = (
    output, inputs: "collections.abc.Sequence[str | os.PathLike[str]]", overwrite
))]
pub(crate) fn check_output(output: PathBuf, inputs: Vec<PathBuf>, overwrite: bool) -> PyResult<()> {
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    output::check(&output, overwrite, &inputs).map_err(to_python)
}
