use std::path::PathBuf;

use pyo3::prelude::*;
use sensmerge_core::checkpoint;

use crate::error::to_python;

/// One tensor of a checkpoint, as its header describes it.
#[pyclass(frozen, get_all, module = "sensmerge._core")]
pub(crate) struct TensorInfo {
    /// Name in the checkpoint.
    name: String,
    /// Name of the dtype in the safetensors format, such as ``BF16``.
    dtype: String,
    /// Shape.
    shape: Vec<usize>,
    /// Size of its data in bytes.
    nbytes: usize,
    /// Name of the file that holds it.
    file: String,
    /// Where its data starts in that file, in bytes.
    start: usize,
}

/// A safetensors checkpoint, opened and validated: one file or several shards, mapped read-only.
///
/// Args:
///     path: The model's folder, or one ``.safetensors`` file.
///
/// Raises:
///     InputError: A file is missing, truncated or malformed.
#[pyclass(frozen, module = "sensmerge._core")]
pub(crate) struct Checkpoint {
    inner: checkpoint::Checkpoint,
}

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py.detach(|| checkpoint::Checkpoint::open(&path)).map_err(to_python)?;
        Ok(Self { inner })
    }

    /// The folder or file that was opened.
    #[getter]
    fn path(&self) -> String {
        self.inner.path().display().to_string()
    }

    /// Its tensors, by name.
    #[getter]
    fn tensors(&self) -> Vec<TensorInfo> {
        let files = self.inner.shard_paths();
        let file = |shard: usize| {
            let name = files[shard].file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let info = |tensor: &checkpoint::TensorInfo| TensorInfo {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name().to_owned(),
            shape: tensor.shape.clone(),
            nbytes: tensor.nbytes(),
            file: file(tensor.shard),
            start: tensor.start,
        };
        self.inner.tensors().map(info).collect()
    }

    /// A short digest of the weights: names, dtypes, shapes and sampled bytes.
    ///
    /// How the tensors are spread over files does not matter.
    fn fingerprint(&self, py: Python<'_>) -> String {
        py.detach(|| self.inner.fingerprint())
    }
}
