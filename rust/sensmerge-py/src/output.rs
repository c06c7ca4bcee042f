use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use sensmerge_core::checkpoint::output;

use crate::error::to_python;

/// Refuse an output folder that a merge could not write to, without touching anything.
///
/// Args:
///     output: The folder.
///     inputs: Folders and files that are merged.
///     overwrite: Whether what an earlier merge wrote there may be replaced.
///
/// Raises:
///     InputError: The folder is not empty, is no folder, holds weights that no merge listed, or
///         is, contains or lies in an input.
///     OSError: The folder or an input cannot be looked at.
#[pyfunction]
#[pyo3(signature = (
    output, inputs: "collections.abc.Sequence[str | os.PathLike[str]]", overwrite
))]
pub(crate) fn check_output(output: PathBuf, inputs: Vec<PathBuf>, overwrite: bool) -> PyResult<()> {
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    output::check(&output, overwrite, &inputs).map_err(to_python)
}
