use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use sensmerge_core::checkpoint::{self, MemoryTensor};
use sensmerge_core::dtype::Dtype;
use sensmerge_core::engine::{Monitor, read_into};
use sensmerge_core::manifest::View;

use crate::buffers::Bytes;
use crate::door::enter;
use crate::error::{bad_input, to_python};
use crate::memory::{slices, writable};

/// A tensor of a checkpoint, as its header describes it.
#[pyclass(frozen, get_all, module = "sensmerge._core")]
pub(crate) struct TensorInfo {
    /// Name in the checkpoint.
    name: String,
    /// Name of the dtype in the safetensors format, such as ``BF16``; of a quantised tensor the one
    /// that it stands for.
    dtype: String,
    /// The code in which a quantised tensor is stored, such as ``int4``; None for others.
    code: Option<String>,
    /// Shape.
    shape: Vec<usize>,
    /// Size of its data in bytes, scales included.
    nbytes: usize,
    /// Name of the file that holds it; empty for a checkpoint in memory.
    file: String,
    /// Offset of its data in that file, in bytes.
    start: usize,
}

/// The quantisation of a checkpoint.
#[pyclass(frozen, get_all, module = "sensmerge._core")]
pub(crate) struct Quantised {
    /// It in a few words, such as ``fp8, a scale per 128 × 128``.
    words: String,
    /// What to do about it if it is not read; None if it is.
    advice: Option<String>,
}

/// A checkpoint whose headers are checked: safetensors files, mapped read-only, or tensors in memory.
///
/// Args:
///     path: The model's folder, or one ``.safetensors`` file.
///
/// Raises:
///     InputError: A file is missing, truncated or malformed, or of another format.
///     OSError: A file cannot be read.
#[pyclass(frozen, module = "sensmerge._core")]
pub(crate) struct Checkpoint {
    inner: Arc<checkpoint::Checkpoint>,
    /// The addresses of tensors in memory; empty for files.
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

    /// The weights of an adapter, which are no model of their own.
    ///
    /// Args:
    ///     path: The ``.safetensors`` file.
    ///
    /// Raises:
    ///     InputError: The file is truncated or malformed, or of another format.
    ///     OSError: It cannot be read.
    #[staticmethod]
    fn adapter(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py.detach(|| checkpoint::Checkpoint::open_adapter(&path)).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner), ranges: Vec::new() })
    }

    /// A checkpoint of tensors in memory, which are not copied and must not change while it is used.
    ///
    /// Args:
    ///     name: The checkpoint's name in messages.
    ///     tensors: For every tensor: name, dtype in the safetensors format such as ``BF16``, shape,
    ///         and a contiguous uint8 view.
    ///
    /// Raises:
    ///     InputError: A tensor is given twice, its dtype is unknown, its size does not fit its shape,
    ///         or its view is not contiguous.
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
            let known = Dtype::from_name(&dtype).ok_or_else(|| {
                bad_input(format!("{name}, tensor '{tensor}': unknown dtype '{dtype}'"))
            })?;
            let bytes = Bytes::of(&format!("{name}, tensor '{tensor}'"), &buffer)?;
            ranges.push(bytes.range());
            let bytes = Box::new(bytes);
            views.push(MemoryTensor { name: tensor, dtype: known, shape, bytes });
        }
        let inner = checkpoint::Checkpoint::from_memory(name, views).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner), ranges })
    }

    /// Whether its tensors are in memory rather than on disk.
    #[getter]
    fn in_memory(&self) -> bool {
        self.inner.in_memory()
    }

    /// Tensors in memory that are views of another tensor's memory: their names, each with the other
    /// tensor's name.
    #[getter]
    fn tied(&self) -> BTreeMap<String, String> {
        self.inner.tied().clone()
    }

    /// Notes for the user on the choice of files, one sentence each.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.inner.notes().to_vec()
    }

    /// Whether it holds floats and all of them are zero, so that merging it is pointless.
    fn is_zero(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.is_zero())
    }

    /// Signs that the model was badly saved, one sentence each: empty tensors, or zeros throughout.
    ///
    /// Data is read until an entry is found that is not zero, which is usually in the first page.
    fn suspicions(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.inner.suspicions())
    }

    /// The folder or file that was opened; the name of a checkpoint in memory.
    #[getter]
    fn path(&self) -> String {
        self.inner.path().display().to_string()
    }

    /// The quantisation that its config names; None if no tensor is quantised.
    #[getter]
    fn quantised(&self) -> Option<Quantised> {
        self.inner.quantised().map(|found| Quantised {
            words: found.words.clone(),
            advice: found.scheme.as_ref().err().cloned(),
        })
    }

    /// Read tensors into memory, quantised ones as what they stand for.
    ///
    /// Args:
    ///     outputs: A contiguous, writable uint8 view for every tensor that is read, by name.
    ///     threads: Threads to use; all cores by default.
    ///
    /// Raises:
    ///     InputError: There is no such tensor, or an output is of another size, read-only, or overlaps
    ///         another.
    ///     KeyboardInterrupt: Ctrl-C was pressed.
    #[pyo3(signature = (
        outputs: "collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]]", *, threads = None
    ))]
    fn read_into(
        &self,
        py: Python<'_>,
        outputs: BTreeMap<String, Bound<'_, PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let mut buffers = writable(&outputs, self.ranges.iter())?;
        let slices = slices(&mut buffers);
        let monitor = Monitor::new();
        let view = View::new(self.inner());
        enter(py, &monitor, None, || read_into(&view, slices, threads, &monitor))
    }

    /// The repository on the Hub and the commit that it was downloaded from; None if it does not lie
    /// in a Hub cache.
    #[getter]
    fn origin(&self) -> Option<(String, String)> {
        self.inner.origin().map(|origin| (origin.repository, origin.commit))
    }

    /// Its tensors, by name. Quantised ones have the name and shape of what they stand for.
    #[getter]
    fn tensors(&self) -> Vec<TensorInfo> {
        let files = self.inner.shard_paths();
        let file = |shard: usize| {
            let name = files.get(shard).and_then(|file| file.file_name()).unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let info = |tensor: &Arc<checkpoint::TensorInfo>| {
            let packed = self.inner.packed(&tensor.name);
            TensorInfo {
                name: tensor.name.clone(),
                dtype: tensor.dtype.name().to_owned(),
                code: packed.map(|packed| packed.encoding.code.name().to_owned()),
                shape: tensor.shape.clone(),
                nbytes: tensor.nbytes() + packed.map_or(0, |packed| packed.scales.nbytes()),
                file: file(tensor.shard),
                start: tensor.start,
            }
        };
        self.inner.tensors().map(info).collect()
    }

    /// Refuse the checkpoint if one of its files is no longer what it was when it was opened.
    ///
    /// Raises:
    ///     InputError: A file was written to, truncated, replaced or removed.
    ///     OSError: A file cannot be examined.
    fn check_unchanged(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.check_unchanged()).map_err(to_python)
    }

    /// A short digest of the weights: names, dtypes, shapes and sampled bytes.
    ///
    /// The distribution of tensors over files does not matter.
    fn fingerprint(&self, py: Python<'_>) -> String {
        py.detach(|| self.inner.fingerprint())
    }
}
