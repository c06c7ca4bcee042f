use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use sensmerge_core::checkpoint::output;

use crate::error::to_python;

/// Refuse an output folder that a merge could not write to. Nothing is changed.
///
/// Args:
///     output: The folder.
///     inputs: Folders and files that are merged.
///     overwrite: Whether the output of an earlier merge there may be replaced.
///
/// Raises:
///     InputError: The path is not a folder; the folder is not empty (without ``overwrite``), holds
///         weights that no earlier merge listed, or is, contains or lies in an input.
///     OSError: The folder or an input cannot be examined, or nothing can be written there.
#[pyfunction]
#[pyo3(signature = (
    output, inputs: "collections.abc.Sequence[str | os.PathLike[str]]", overwrite
))]
pub(crate) fn check_output(output: PathBuf, inputs: Vec<PathBuf>, overwrite: bool) -> PyResult<()> {
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    output::check(&output, overwrite, &inputs).map_err(to_python)
}

/// Refuse an output folder whose file system has too little space left.
///
/// Args:
///     output: The folder.
///     needed: Bytes of the files to write.
///
/// Raises:
///     InputError: There is less.
///     OSError: The folder cannot be examined.
#[pyfunction]
pub(crate) fn check_space(output: PathBuf, needed: u64) -> PyResult<()> {
    output::check_space(&output, needed).map_err(to_python)
}
