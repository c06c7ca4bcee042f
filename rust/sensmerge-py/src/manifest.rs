use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pyo3::prelude::*;
use sensmerge_core::checkpoint;
use sensmerge_core::checkpoint::layout::layout;
use sensmerge_core::engine::Inputs;
use sensmerge_core::error::{Error, Result};
use sensmerge_core::manifest::{
    self, Activations, Builder, Change, Content, Missing, Numbers, OutDtype, Part, Patch,
    Reordered, Selection, View,
};
use sensmerge_core::method::Semantics;
use serde::Deserialize;

use crate::checkpoint::Checkpoint;
use crate::error::{bad_input, to_python};

/// How an output tensor is quantised.
#[pyclass(frozen, get_all, module = "sensmerge._core")]
#[derive(Clone)]
pub(crate) struct Packing {
    /// The code of its entries, such as ``int4``.
    code: String,
    /// Rows and columns that share a scale.
    tile: (usize, usize),
    /// Whether scales are powers of two.
    powers_of_two: bool,
    /// All of it in a few words.
    words: String,
}

impl Packing {
    fn of(packing: manifest::Packing) -> Self {
        let [rows, columns] = packing.tile();
        Self {
            code: packing.code().name().to_owned(),
            tile: (rows, columns),
            powers_of_two: matches!(packing, manifest::Packing::Float8 { powers_of_two: true, .. }),
            words: packing.to_string(),
        }
    }
}

/// An output tensor of a manifest.
#[pyclass(frozen, get_all, module = "sensmerge._core")]
pub(crate) struct OutputTensor {
    /// Its name.
    name: String,
    /// Name of the dtype in the safetensors format, such as ``BF16``; of a quantised tensor the one
    /// that it stands for.
    dtype: String,
    /// Shape.
    shape: Vec<usize>,
    /// Size of its data in bytes, scales included.
    nbytes: usize,
    /// Name, dtype and shape of the tensors that it is written as: itself, or codes and scales.
    parts: Vec<(String, String, Vec<usize>)>,
    /// How it is quantised; None if it is not.
    packing: Option<Packing>,
    /// Whether it is merged; otherwise it is a copy.
    merged: bool,
}

/// A merge as plain data: every output tensor with its inputs and its numbers.
///
/// It is complete and holds no files open, so that another process can carry it out.
#[pyclass(frozen, module = "sensmerge._core")]
pub(crate) struct Manifest {
    inner: Arc<manifest::Manifest>,
}

impl Manifest {
    pub(crate) fn inner(&self) -> Arc<manifest::Manifest> {
        Arc::clone(&self.inner)
    }
}

/// The description of a merge, without the checkpoints.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    method: String,
    semantics: Semantics,
    switches: BTreeMap<String, bool>,
    parts: Vec<RequestedPart>,
    #[serde(default)]
    missing: Missing,
    /// Given if task vectors are damped by the base's activations.
    #[serde(default)]
    omega: Option<f64>,
    seed: u64,
    out_dtype: Option<OutDtype>,
    /// Whether merged tensors are left unquantised where `out_dtype` says nothing.
    #[serde(default)]
    dequantised: bool,
    #[serde(default)]
    notes: Vec<String>,
}

/// Output tensors that are merged from the same models.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestedPart {
    base: Option<RequestedView>,
    models: Vec<RequestedView>,
    /// The numbers of every output tensor.
    tensors: BTreeMap<String, Numbers>,
}

/// A model, and the rules for its tensors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestedView {
    /// Index of the model's checkpoint.
    checkpoint: usize,
    /// The stored tensor of every output tensor; `None` if they have the same names.
    #[serde(default)]
    names: Option<BTreeMap<String, String>>,
    /// Tensors that the model may lack, each with the tensor to use instead.
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// Rows to take in place of those of some tensors.
    #[serde(default)]
    rows: Option<RequestedRows>,
    /// Output tensors whose rows or columns are taken in another order.
    #[serde(default)]
    orders: BTreeMap<String, Reordered>,
    /// Changes to stored tensors, by their names, in order.
    #[serde(default)]
    patches: BTreeMap<String, Vec<RequestedPatch>>,
    /// What was measured of the model.
    #[serde(default)]
    statistics: Option<RequestedStatistics>,
    /// What was measured of the model's activations.
    #[serde(default)]
    activations: Option<RequestedActivations>,
}

/// What was measured of a model, tensor by tensor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestedStatistics {
    /// Index of the checkpoint that holds it.
    checkpoint: usize,
    /// The name there of what was measured of every stored tensor.
    tensors: BTreeMap<String, String>,
}

/// What was measured of a model's activations.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestedActivations {
    /// Index of the checkpoint that holds it.
    checkpoint: usize,
    /// The stored tensors whose inputs are rows.
    transposed: BTreeSet<String>,
}

/// A change to a tensor by an adapter; the other names are those of the adapter's tensors.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum RequestedPatch {
    LowRank {
        checkpoint: usize,
        a: String,
        b: String,
        scale: f64,
        transposed: bool,
        magnitude: Option<String>,
    },
    Whole {
        checkpoint: usize,
        tensor: String,
    },
    Rows {
        checkpoint: usize,
        tensor: String,
        places: Vec<usize>,
    },
}

/// Rows to take in place of those of tensors of a vocabulary.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestedRows {
    /// The tensors.
    names: Vec<String>,
    /// The rows, the same for all of them.
    selection: Selection,
}

impl Request {
    fn build(self, checkpoints: Vec<Arc<checkpoint::Checkpoint>>) -> Result<manifest::Manifest> {
        let mut builder = Builder::new(self.method)
            .semantics(self.semantics)
            .seed(self.seed)
            .missing(self.missing)
            .notes(self.notes);
        if let Some(dtype) = self.out_dtype {
            builder = builder.out_dtype(dtype);
        }
        if self.dequantised {
            builder = builder.dequantised();
        }
        if let Some(omega) = self.omega {
            builder = builder.omega(omega);
        }
        for (name, on) in self.switches {
            builder = builder.switch(name, on);
        }
        for part in self.parts {
            builder = builder.part(part.build(&checkpoints)?);
        }
        builder.checkpoints(checkpoints).build()
    }
}

impl RequestedPart {
    fn build(self, checkpoints: &[Arc<checkpoint::Checkpoint>]) -> Result<Part> {
        let mut part = Part::default();
        if let Some(base) = self.base {
            part = part.base(base.build(checkpoints)?);
        }
        for model in self.models {
            part = part.model(model.build(checkpoints)?);
        }
        for (name, numbers) in self.tensors {
            part = part.tensor(name, numbers);
        }
        Ok(part)
    }
}

impl RequestedView {
    pub(crate) fn build(self, checkpoints: &[Arc<checkpoint::Checkpoint>]) -> Result<View> {
        let mut view = View::new(numbered(checkpoints, self.checkpoint)?);
        if let Some(names) = self.names {
            view = view.names(names);
        }
        for (name, stand_in) in self.aliases {
            view = view.alias(name, stand_in);
        }
        if let Some(RequestedRows { names, selection }) = self.rows {
            let selection = Arc::new(selection);
            for name in names {
                view = view.rows(name, Arc::clone(&selection));
            }
        }
        for (name, order) in self.orders {
            view = view.reorder(name, order);
        }
        if let Some(RequestedStatistics { checkpoint, tensors }) = self.statistics {
            view = view.statistics(numbered(checkpoints, checkpoint)?, tensors);
        }
        if let Some(RequestedActivations { checkpoint, transposed }) = self.activations {
            let checkpoint = numbered(checkpoints, checkpoint)?;
            view = view.activations(Activations { checkpoint, transposed });
        }
        for (name, patches) in self.patches {
            for patch in patches {
                view = view.patch(&name, patch.build(checkpoints)?);
            }
        }
        Ok(view)
    }
}

impl RequestedPatch {
    fn build(self, checkpoints: &[Arc<checkpoint::Checkpoint>]) -> Result<Patch> {
        let (number, change) = match self {
            Self::LowRank { checkpoint, a, b, scale, transposed, magnitude } => {
                (checkpoint, Change::LowRank { a, b, scale, transposed, magnitude })
            }
            Self::Whole { checkpoint, tensor } => (checkpoint, Change::Whole { tensor }),
            Self::Rows { checkpoint, tensor, places } => {
                (checkpoint, Change::Rows { tensor, places })
            }
        };
        Ok(Patch::new(numbered(checkpoints, number)?, change))
    }
}

fn numbered(
    checkpoints: &[Arc<checkpoint::Checkpoint>],
    number: usize,
) -> Result<Arc<checkpoint::Checkpoint>> {
    checkpoints.get(number).map(Arc::clone).ok_or_else(|| {
        let reason = format!("there is no checkpoint of number {number}");
        Error::Setting { key: "request".to_owned(), reason }
    })
}

#[pymethods]
impl Manifest {
    /// Build a manifest from headers alone: no tensor data is read.
    ///
    /// Args:
    ///     request: JSON: ``method``, ``semantics``, ``switches``, ``seed``, ``out_dtype``,
    ///         ``dequantised``, ``notes``, ``omega`` (with it, merged task vectors are damped
    ///         by the base's activations), ``missing`` (``error``, ``base`` or ``skip``: what becomes of
    ///         tensors that only some models have) and ``parts``, which are output tensors that are merged from the same models: ``base`` (or
    ///         null), ``models`` (the index of the ``checkpoint`` of each, and rules for its tensors:
    ///         ``names``, ``aliases``, ``rows``, ``orders``, ``patches``, ``statistics``,
    ///         ``activations``), and ``tensors``: the numbers of every output tensor,
    ///         by parameter.
    ///     checkpoints: The checkpoints that the request names by their index.
    ///
    /// Raises:
    ///     InputError: The request is malformed, or the models cannot be merged as asked.
    #[staticmethod]
    fn build(
        py: Python<'_>,
        request: &str,
        checkpoints: Vec<PyRef<'_, Checkpoint>>,
    ) -> PyResult<Self> {
        let request: Request = serde_json::from_str(request)
            .map_err(|error| bad_input(format!("request: {error}")))?;
        let checkpoints = opened(&checkpoints);
        let inner = py.detach(|| request.build(checkpoints)).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Build the manifest of a conversion: one model as it is, its floats stored in another dtype.
    ///
    /// Args:
    ///     view: JSON: the rules for the model's tensors, as in the request of a merge.
    ///     models: The model's checkpoint, and those of its adapters.
    ///     dtype: The dtype, such as ``bfloat16`` or ``int4``; None keeps every tensor's own, and
    ///         quantised ones as they are stored.
    ///
    /// Raises:
    ///     InputError: The rules are malformed, or the dtype is unknown.
    #[staticmethod]
    fn conversion(
        py: Python<'_>,
        view: &str,
        models: Vec<PyRef<'_, Checkpoint>>,
        dtype: Option<&str>,
    ) -> PyResult<Self> {
        let view: RequestedView =
            serde_json::from_str(view).map_err(|error| bad_input(format!("view: {error}")))?;
        let parse = |dtype: &str| {
            let unknown = |_| bad_input(format!("dtype: unknown dtype '{dtype}'"));
            dtype.parse::<OutDtype>().map_err(unknown)
        };
        let dtype = dtype.map(parse).transpose()?;
        let checkpoints = opened(&models);
        let inner = py
            .detach(|| manifest::Manifest::conversion(view.build(&checkpoints)?, dtype))
            .map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Read a manifest that was written as JSON.
    ///
    /// Raises:
    ///     InputError: The text is not a manifest, a manifest of another version, or has numbers that
    ///         do not fit its method.
    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Self> {
        let inner = py.detach(|| manifest::Manifest::from_json(text)).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The manifest as JSON.
    ///
    /// Raises:
    ///     InputError: A path is not UTF-8.
    fn to_json(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.inner.to_json()).map_err(to_python)
    }

    /// The same with digests of the weights, so that another process can tell whether the weights have
    /// changed. ``models`` are the manifest's models, in their order.
    fn with_fingerprints(&self, py: Python<'_>, models: Vec<PyRef<'_, Checkpoint>>) -> Self {
        let checkpoints = opened(&models);
        let inner = py.detach(|| {
            let manifest = manifest::Manifest::clone(&self.inner);
            manifest.with_fingerprints(checkpoints.iter().map(AsRef::as_ref))
        });
        Self { inner: Arc::new(inner) }
    }

    /// Every output tensor, by name.
    #[getter]
    fn tensors(&self) -> Vec<OutputTensor> {
        let describe = |output: &manifest::Output| OutputTensor {
            name: output.name.clone(),
            dtype: output.dtype.name().to_owned(),
            shape: output.shape.clone(),
            nbytes: output.nbytes(),
            parts: output
                .specs()
                .into_iter()
                .map(|spec| (spec.name, spec.dtype.name().to_owned(), spec.shape))
                .collect(),
            packing: output.packing.map(Packing::of),
            merged: matches!(output.content, Content::Merge(_)),
        };
        self.inner.tensors.iter().map(describe).collect()
    }

    /// Notes for the user on the rules that were applied.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.inner.notes.clone()
    }

    /// The names of the weight files that an output folder would have, each with its tensors' names.
    fn files(&self, max_shard_bytes: u64) -> Vec<(String, Vec<String>)> {
        let shards = layout(self.inner.specs(), max_shard_bytes).into_iter();
        let names = |shard: sensmerge_core::checkpoint::layout::ShardLayout| {
            let names = shard.tensors.into_iter().map(|(spec, _)| spec.name);
            (shard.file_name, names.collect())
        };
        shards.map(names).collect()
    }
}

/// The core's checkpoints of Python's ones.
pub(crate) fn opened(models: &[PyRef<'_, Checkpoint>]) -> Vec<Arc<checkpoint::Checkpoint>> {
    models.iter().map(|model| model.inner()).collect()
}

/// The inputs of a manifest: the given checkpoints, or its own files, opened.
pub(crate) fn inputs(
    manifest: &manifest::Manifest,
    models: Option<Vec<Arc<checkpoint::Checkpoint>>>,
) -> Result<Inputs> {
    match models {
        Some(models) => Inputs::of(manifest, models),
        None => Inputs::open(manifest),
    }
}
