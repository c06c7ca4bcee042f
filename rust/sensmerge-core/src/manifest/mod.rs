//! What a merge is made of, in plain data: every output tensor with its inputs and its numbers.
//!
//! A manifest is complete: nothing in it is left to a default or to another rule. It names files and
//! ranges and holds nothing open, so that it can be written as JSON, read by people, and carried out
//! by another process. Where the output's bytes will lie is not its matter: a folder and a caller's
//! memory are written from the same one.
//!
//! [`Builder`] makes one from a method, models and numbers; no tensor data is read for that.

mod advice;
mod builder;
mod matching;
mod source;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use builder::{Builder, Input};
pub use source::{File, Run, Source, Stored};

pub use crate::numbers::{Number, Numbers};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::layout::TensorSpec;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::method::Settings;
use crate::program::Subject;

/// The version of the format that is written and read.
pub const VERSION: u32 = 1;

/// A merge, complete but for the tensors' data.
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
    /// Pairs of tensors that must hold the same bytes, or the merge is refused.
    pub identical: Vec<[Stored; 2]>,
    /// What the caller should be told: rules that were applied.
    pub notes: Vec<String>,
}

/// A model that tensors are read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its folder or file; what it is called, where it lies in memory.
    pub path: PathBuf,
    /// Its files; none in memory.
    pub files: Vec<File>,
    /// Digest of its weights, where one was asked for.
    pub fingerprint: Option<String>,
}

/// An output tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The dtype it is stored in.
    pub dtype: Dtype,
    /// How its entries come about.
    pub content: Content,
}

/// How the entries of an output tensor come about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Content {
    /// By the method.
    Merge(Merge),
    /// As they are: the dtype is not computed with, or it is a buffer and no parameter.
    Copy(Stored),
}

/// The inputs of a merged tensor, by role, and its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// The base's tensor, where task vectors are merged.
    pub base: Option<Source>,
    /// The models' tensors, in the order in which they are summed.
    pub experts: Vec<Source>,
    /// The method's numbers.
    pub numbers: Numbers,
}

impl Manifest {
    /// Read a manifest.
    ///
    /// # Errors
    /// [`Error::Setting`] for text that is no manifest, or one of another version.
    pub fn from_json(text: &str) -> Result<Self> {
        let manifest: Self = serde_json::from_str(text)
            .map_err(|error| Error::setting("manifest", format!("cannot be read: {error}")))?;
        if manifest.version != VERSION {
            let found = manifest.version;
            let reason = format!("is of version {found}; this program reads version {VERSION}");
            return Err(Error::setting("manifest.version", reason));
        }
        builder::check(&manifest)?;
        Ok(manifest)
    }

    /// The manifest as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Plain data with string keys is always JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Name, dtype and shape of every output tensor.
    #[must_use]
    pub fn specs(&self) -> Vec<TensorSpec> {
        let spec = |output: &Output| TensorSpec {
            name: output.name.clone(),
            dtype: output.dtype,
            shape: output.shape.clone(),
        };
        self.tensors.iter().map(spec).collect()
    }

    /// The tensors that are merged.
    pub fn merges(&self) -> impl Iterator<Item = (&Output, &Merge)> {
        self.tensors.iter().filter_map(|output| match &output.content {
            Content::Merge(merge) => Some((output, merge)),
            Content::Copy(_) => None,
        })
    }

    /// Folders and files that the output must not touch.
    #[must_use]
    pub fn inputs(&self) -> Vec<PathBuf> {
        let on_disk = self.models.iter().filter(|model| !model.files.is_empty());
        on_disk.map(|model| model.path.clone()).collect()
    }

    /// Add digests of the weights, so that whoever carries the manifest out can tell whether they are
    /// still the same. `checkpoints` are its models, opened.
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
        self.elements() * self.dtype.bits() / 8
    }
}

impl Merge {
    /// What a program may know of the tensor.
    pub(crate) fn subject<'m>(&'m self, output: &'m Output, seed: u64) -> Subject<'m> {
        let (name, shape) = (&output.name, &output.shape);
        Subject { name, shape, models: self.experts.len(), numbers: &self.numbers, seed }
    }
}
