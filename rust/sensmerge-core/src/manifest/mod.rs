//! A merge as plain data: every output tensor with its inputs and its numbers.
//!
//! A manifest that [`Builder`] makes is complete: every number and every switch is in it, and every
//! rule for matching tensors has been applied. It names files and byte ranges and holds nothing open,
//! so that it can be written as JSON, read by people, and carried out by another process. It does not
//! say where the output will be: the same manifest serves a folder and the caller's memory.
//!
//! [`Builder`] reads headers and no tensor data.

mod advice;
mod builder;
mod check;
mod damping;
mod matching;
mod matrices;
mod packing;
mod patch;
mod prefix;
mod selection;
mod source;
mod symmetry;
mod view;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use builder::{Builder, Part};
pub use damping::{Activations, Damping};
pub use matching::Missing;
pub use packing::{OutDtype, Packing};
pub use patch::{Change, Patch};
pub use selection::Selection;
pub use source::{File, LowRank, Run, Scaled, Source, Stored};
pub use symmetry::{Level, Order, Portion, Reordered, Symmetry};
pub use view::View;

pub use crate::numbers::{Number, Numbers};

use crate::checkpoint::layout::TensorSpec;
use crate::checkpoint::{Checkpoint, Origin};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::method::{IDENTITY, Settings};
use crate::program::Subject;
pub(crate) use symmetry::Pair;

/// The version of the format that is written and read.
pub const VERSION: u32 = 1;

/// A merge: all of it but the tensors' data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format.
    pub version: u32,
    /// The method and the choices that shape its program.
    pub method: Settings,
    /// Key of the random streams.
    pub seed: u64,
    /// The models that tensors are read from.
    pub models: Vec<Model>,
    /// Every output tensor, by name.
    pub tensors: Vec<Output>,
    /// Pairs of tensors that must hold the same bytes; otherwise the merge is refused.
    pub identical: Vec<[Stored; 2]>,
    /// Notes for the user on the rules that were applied.
    pub notes: Vec<String>,
}

/// A model that tensors are read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its folder or file; the name of a model in memory.
    pub path: PathBuf,
    /// Its files; empty for a model in memory.
    pub files: Vec<File>,
    /// Digest of its weights; see [`Manifest::with_fingerprints`].
    pub fingerprint: Option<String>,
    /// The place on the Hub that it was downloaded from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// An output tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The dtype it is stored in; the one that it stands for, if it is quantised.
    pub dtype: Dtype,
    /// How it is quantised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packing: Option<Packing>,
    /// The origin of its entries.
    pub content: Content,
}

/// The origin of an output tensor's entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "nearly all tensors are merged")]
pub enum Content {
    /// The method merges inputs.
    Merge(Merge),
    /// A copy of one model's tensor, whose dtype is not merged or which is a buffer rather than a
    /// parameter.
    Copy(Stored),
}

/// The inputs of a merged tensor, by role, and its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// The base's tensor, if task vectors are merged.
    pub base: Option<Source>,
    /// The models' tensors, in the order in which they are summed.
    pub experts: Vec<Source>,
    /// What was measured of the models' tensors, in the same order, if the method needs it; empty for
    /// tensors of which nothing was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statistics: Vec<Source>,
    /// By how much the merged task vector is damped, entry by entry; `None` leaves it as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<Damping>,
    /// The number of every parameter of the method.
    pub numbers: Numbers,
}

impl Manifest {
    /// One model as it is, its floats stored as `dtype` where one is given. Without one, the parts of
    /// quantised tensors are copied.
    ///
    /// # Errors
    /// As for [`Builder::build`].
    pub fn conversion(model: View, dtype: Option<OutDtype>) -> Result<Self> {
        let checkpoint = Arc::clone(model.checkpoint());
        let builder = Builder::new(IDENTITY).model(model).dequantised();
        if let Some(dtype) = dtype {
            return builder.out_dtype(dtype).build();
        }
        let mut built = builder.build()?;
        built.tensors.retain(|output| checkpoint.packed(&output.name).is_none());
        let stored = checkpoint.stored().into_values();
        let parts = stored.filter(|tensor| {
            let shown = checkpoint.get(&tensor.name);
            shown.is_none_or(|_| checkpoint.packed(&tensor.name).is_some())
        });
        built.tensors.extend(parts.map(|tensor| Output {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
            packing: None,
            content: Content::Copy(Stored::of(0, tensor)),
        }));
        built.tensors.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(built)
    }

    /// Read a manifest.
    ///
    /// # Errors
    /// [`Error::Setting`] for text that is not a manifest, a manifest of another version, or numbers
    /// and shapes that do not fit the method.
    pub fn from_json(text: &str) -> Result<Self> {
        let manifest: Self = serde_json::from_str(text)
            .map_err(|error| Error::setting("manifest", format!("cannot be read: {error}")))?;
        if manifest.version != VERSION {
            let found = manifest.version;
            let reason = format!("is of version {found}; this program reads version {VERSION}");
            return Err(Error::setting("manifest.version", reason));
        }
        check::check(&manifest)?;
        Ok(manifest)
    }

    /// The manifest as JSON.
    ///
    /// # Errors
    /// [`Error::Setting`] for a path that is not UTF-8.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|error| Error::setting("manifest", format!("cannot be written: {error}")))
    }

    /// Name, dtype and shape of every tensor that is written, in the order of the output tensors: one
    /// for each of them, and several for those that are quantised.
    #[must_use]
    pub fn specs(&self) -> Vec<TensorSpec> {
        self.tensors.iter().flat_map(Output::specs).collect()
    }

    /// The tensors that are merged.
    pub fn merges(&self) -> impl Iterator<Item = (&Output, &Merge)> {
        self.tensors.iter().filter_map(|output| match &output.content {
            Content::Merge(merge) => Some((output, merge)),
            Content::Copy(_) => None,
        })
    }

    /// The models' folders and files, which the output must not touch.
    #[must_use]
    pub fn inputs(&self) -> Vec<PathBuf> {
        let on_disk = self.models.iter().filter(|model| !model.files.is_empty());
        on_disk.map(|model| model.path.clone()).collect()
    }

    /// Add digests of the weights, so that [`Inputs::open`](crate::engine::Inputs::open) can tell
    /// whether the weights have changed. `checkpoints` are the manifest's models, in their order.
    #[must_use]
    pub fn with_fingerprints<'c>(
        mut self,
        checkpoints: impl IntoIterator<Item = &'c Checkpoint>,
    ) -> Self {
        for (model, checkpoint) in self.models.iter_mut().zip(checkpoints) {
            model.fingerprint = Some(checkpoint.fingerprint());
        }
        self
    }
}

impl Output {
    /// Number of entries.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of bytes.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.specs().iter().map(|spec| spec.nbytes() as usize).sum()
    }

    /// Name, dtype and shape of the tensors that it is written as.
    #[must_use]
    pub fn specs(&self) -> Vec<TensorSpec> {
        let (name, shape) = (self.name.clone(), self.shape.clone());
        match &self.packing {
            None => vec![TensorSpec { name, dtype: self.dtype, shape }],
            Some(packing) => packing.specs(&name, &shape),
        }
    }
}

impl Merge {
    /// The description of the tensor for the program.
    pub(crate) fn subject<'m>(&'m self, output: &'m Output, seed: u64) -> Subject<'m> {
        Subject {
            name: &output.name,
            shape: &output.shape,
            models: self.experts.len(),
            measured: !self.statistics.is_empty(),
            numbers: &self.numbers,
            seed,
        }
    }
}
