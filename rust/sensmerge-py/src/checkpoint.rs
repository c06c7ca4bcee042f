use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use sensmerge_core::checkpoint::{self, MemoryTensor};
use sensmerge_core::dtype::Dtype;

use crate::buffers::Bytes;
use crate::error::{bad_input, to_python};

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
///     OSError: A file cannot be looked at or read.
#[pyclass(frozen, module = "sensmerge._core")]
pub(crate) struct Checkpoint {
    inner: Arc<checkpoint::Checkpoint>,
    /// Where in memory its tensors lie, if that is where they are.
    ranges: Vec<std::ops::Range<usize>>,
}

impl Checkpoint {
    pub(crate) fn inner(&self) -> Arc<checkpoint::Checkpoint> {
        Arc::clone(&self.inner)
    }

    pub(crate) fn ranges(&self) -> &[std::ops::Range<usize>] {
        &self.ranges
    }
}

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py.detach(|| checkpoint::Checkpoint::open(&path)).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner), ranges: Vec::new() })
    }

    /// A checkpoint of tensors in memory, which are not copied and must not change meanwhile.
    ///
    /// Args:
    ///     name: What messages call it.
    ///     tensors: Name, dtype in the safetensors format such as ``BF16``, shape, and a contiguous
    ///         uint8 view of every tensor.
    ///
    /// Raises:
    ///     InputError: A tensor is given twice, or its bytes do not fit its shape.
    #[staticmethod]
    #[pyo3(signature = (
        name,
        tensors: "collections.abc.Sequence[tuple[str, str, collections.abc.Sequence[int], \
                  numpy.typing.NDArray[numpy.uint8]]]"
    ))]
    fn from_memory(
        name: &str,
        tensors: Vec<(String, String, Vec<usize>, Bound<'_, PyAny>)>,
    ) -> PyResult<Self> {
        let mut ranges = Vec::with_capacity(tensors.len());
        let mut views = Vec::with_capacity(tensors.len());
        for (tensor, dtype, shape, buffer) in tensors {
            let known = Dtype::from_name(&dtype)
                .ok_or_else(|| bad_input(format!("{name}, tensor '{tensor}': unknown {dtype}")))?;
            let bytes = Bytes::of(&format!("{name}, tensor '{tensor}'"), &buffer)?;
            ranges.push(bytes.range());
            let bytes = Box::new(bytes);
            views.push(MemoryTensor { name: tensor, dtype: known, shape, bytes });
        }
        let inner = checkpoint::Checkpoint::from_memory(name, views).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner), ranges })
    }

    /// Whether it lies in memory rather than on disk.
    #[getter]
    fn in_memory(&self) -> bool {
        self.inner.in_memory()
    }

    /// Names of tensors in memory that share another's bytes, and that other's name.
    #[getter]
    fn tied(&self) -> BTreeMap<String, String> {
        self.inner.tied().clone()
    }

    /// What the caller should be told about which files were read: one sentence each.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.inner.notes().to_vec()
    }

    /// Whether it holds floats, and all of them are zero: no model, and nothing to merge.
    fn is_zero(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.is_zero())
    }

    /// What a sound file can hold and a trained model does not, one sentence each: tensors of no
    /// entries, or zeros throughout.
    ///
    /// Data is read until an entry is found that is not zero: one page of a sound model.
    fn suspicions(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.inner.suspicions())
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
            let name = files.get(shard).and_then(|file| file.file_name()).unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let info = |tensor: &Arc<checkpoint::TensorInfo>| TensorInfo {
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
