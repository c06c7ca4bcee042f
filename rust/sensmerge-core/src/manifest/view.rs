//! A model as a part of a merge sees it: the names of its tensors, and stand-ins for those that it lacks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::damping::Activations;
use super::patch::Patch;
use super::selection::Selection;
use super::source::{Source, Stored};
use super::symmetry::Reordered;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::dtype::Float;
use crate::error::{Error, Result};

/// A model to be merged: a checkpoint, and rules for tensors that it has under another name, lacks, or
/// has in another shape.
///
/// All names but those of stored tensors are names of output tensors.
#[derive(Clone, Debug)]
pub struct View {
    checkpoint: Arc<Checkpoint>,
    names: Option<BTreeMap<String, String>>,
    aliases: BTreeMap<String, String>,
    selections: BTreeMap<String, Arc<Selection>>,
    constants: BTreeMap<String, (Vec<usize>, f64)>,
    reordered: BTreeMap<String, Reordered>,
    /// What was measured of it, and the tensors of that by the names of stored tensors.
    statistics: Option<(Arc<Checkpoint>, BTreeMap<String, String>)>,
    /// What was measured of its activations.
    activations: Option<Activations>,
    /// By the names of stored tensors.
    patches: BTreeMap<String, Vec<Patch>>,
}

impl View {
    /// A checkpoint without rules.
    #[must_use]
    pub fn new(checkpoint: Arc<Checkpoint>) -> Self {
        Self {
            checkpoint,
            names: None,
            aliases: BTreeMap::new(),
            selections: BTreeMap::new(),
            constants: BTreeMap::new(),
            reordered: BTreeMap::new(),
            statistics: None,
            activations: None,
            patches: BTreeMap::new(),
        }
    }

    /// Use only the tensors that `names` lists: for every output tensor, the stored tensor's name. For
    /// layers that get another number, and for models whose names have another prefix.
    #[must_use]
    pub fn names(mut self, names: BTreeMap<String, String>) -> Self {
        self.names = Some(names);
        self
    }

    /// Use the tensor `stand_in` if the checkpoint has no tensor `name`, as for an output head that is
    /// tied to the input embedding.
    #[must_use]
    pub fn alias(mut self, name: impl Into<String>, stand_in: impl Into<String>) -> Self {
        self.aliases.insert(name.into(), stand_in.into());
        self
    }

    /// Take the rows that `selection` names in place of those of the tensor `name`, as for a vocabulary
    /// in another order. Tensors may share a selection.
    #[must_use]
    pub fn rows(mut self, name: impl Into<String>, selection: Arc<Selection>) -> Self {
        self.selections.insert(name.into(), selection);
        self
    }

    /// Use the number `value` for every entry of a tensor `name` that the checkpoint lacks.
    #[must_use]
    pub fn constant(mut self, name: impl Into<String>, shape: Vec<usize>, value: f64) -> Self {
        self.constants.insert(name.into(), (shape, value));
        self
    }

    /// Take rows and columns of the tensor `name` in another order, as for neurons that are to be those
    /// of another model.
    #[must_use]
    pub fn reorder(mut self, name: impl Into<String>, order: Reordered) -> Self {
        self.reordered.insert(name.into(), order);
        self
    }

    /// Change the stored tensor `name`, as an adapter does. Several changes to a tensor are made in the
    /// order in which they are given.
    #[must_use]
    pub fn patch(mut self, name: impl Into<String>, patch: Patch) -> Self {
        self.patches.entry(name.into()).or_default().push(patch);
        self
    }

    /// Take what was measured of the model from another checkpoint: `names` lists the tensor there for
    /// every stored tensor of which something was. Several may share one.
    #[must_use]
    pub fn statistics(
        mut self,
        checkpoint: Arc<Checkpoint>,
        names: BTreeMap<String, String>,
    ) -> Self {
        self.statistics = Some((checkpoint, names));
        self
    }

    /// Take what was measured of the model's activations, for [`Builder::omega`](super::Builder::omega).
    #[must_use]
    pub fn activations(mut self, activations: Activations) -> Self {
        self.activations = Some(activations);
        self
    }

    /// What was measured of its activations, if anything was.
    pub(super) fn measured_activations(&self) -> Option<&Activations> {
        self.activations.as_ref()
    }

    /// What was measured of the stored tensor `name`; `None` if nothing was.
    ///
    /// # Errors
    /// [`Error::Setting`] if nothing was measured of the model, [`Error::Tensor`] for a tensor that is
    /// missing where it should be.
    pub(super) fn statistic_of(
        &self,
        name: &str,
    ) -> Result<Option<(&Arc<Checkpoint>, &TensorInfo)>> {
        let Some((checkpoint, names)) = &self.statistics else {
            let path = self.path().display();
            let reason =
                format!("nothing was measured of {path}, which the method needs; calibrate");
            return Err(Error::setting("merge_method", reason));
        };
        let Some(measured) = names.get(name) else { return Ok(None) };
        match checkpoint.get(measured) {
            Some(tensor) => Ok(Some((checkpoint, &**tensor))),
            None => Err(Error::tensor(checkpoint.path(), measured, "is missing; calibrate again")),
        }
    }

    /// The checkpoint.
    pub(super) fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// The checkpoint's path.
    pub(super) fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// Every tensor that is visible, with its name in the output.
    pub(super) fn tensors(&self) -> Box<dyn Iterator<Item = (&str, &TensorInfo)> + '_> {
        match &self.names {
            None => {
                Box::new(self.checkpoint.tensors().map(|tensor| (tensor.name.as_str(), &**tensor)))
            }
            Some(names) => Box::new(names.iter().filter_map(|(name, stored)| {
                self.checkpoint.get(stored).map(|tensor| (name.as_str(), &**tensor))
            })),
        }
    }

    /// The tensor that has a name itself, without stand-ins.
    pub(super) fn own(&self, name: &str) -> Option<&TensorInfo> {
        let stored = match &self.names {
            None => name,
            Some(names) => names.get(name)?,
        };
        self.checkpoint.get(stored).map(|tensor| &**tensor)
    }

    /// The tensor that stands in for one of this name, if the model lacks it.
    pub(super) fn alias_of(&self, name: &str) -> Option<&TensorInfo> {
        self.aliases.get(name).and_then(|stand_in| self.own(stand_in))
    }

    /// The number in every entry of a tensor of this name, which the model lacks.
    pub(super) fn constant_of(&self, name: &str) -> Option<Source> {
        let (shape, value) = self.constants.get(name)?;
        Some(Source::Constant { value: *value, shape: shape.clone() })
    }

    /// Its checkpoint, those of its patches, and those of what was measured.
    pub(crate) fn checkpoints(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        let adapters = self.patches.values().flatten().map(Patch::adapter);
        let measured = self.statistics.iter().map(|(checkpoint, _)| checkpoint);
        let activations = self.activations.iter().map(|found| &found.checkpoint);
        std::iter::once(&self.checkpoint).chain(adapters).chain(measured).chain(activations)
    }

    /// The entries of the stored tensor `name`, with its changes, by tensors of `checkpoints`; and the
    /// dtype that it is stored in.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that the checkpoint lacks or that is not computed with.
    pub(crate) fn source(
        &self,
        name: &str,
        checkpoints: &[Arc<Checkpoint>],
    ) -> Result<(Source, Float)> {
        let refused = |reason: &str| Error::tensor(self.path(), name, reason);
        let found = self.checkpoint.get(name).ok_or_else(|| refused("is missing"))?;
        let dtype = found.dtype.float().ok_or_else(|| refused("is not computed with"))?;
        Ok((Checkpoints(checkpoints.to_vec()).source(self, found)?, dtype))
    }

    /// A stored tensor that is changed and that the checkpoint lacks.
    pub(super) fn patched_nothing(&self) -> Option<&str> {
        self.patches.keys().map(String::as_str).find(|name| self.checkpoint.get(name).is_none())
    }

    /// The order of the rows and columns of the tensor of this name, if it is another one.
    pub(super) fn order(&self, name: &str) -> Option<&Reordered> {
        self.reordered.get(name)
    }

    /// The rows to take in place of those of the tensor of this name.
    pub(super) fn selection(&self, name: &str) -> Option<&Selection> {
        self.selections.get(name).map(|selection| &**selection)
    }
}

/// The checkpoints of a manifest, by which its stored tensors are numbered.
pub(super) struct Checkpoints(Vec<Arc<Checkpoint>>);

impl Checkpoints {
    /// The checkpoints that are `given`, in their order, and those of the `views` that are not among
    /// them.
    pub(super) fn new<'v>(
        given: Vec<Arc<Checkpoint>>,
        views: impl IntoIterator<Item = &'v View>,
    ) -> Self {
        let mut all = given;
        for checkpoint in views.into_iter().flat_map(View::checkpoints) {
            if !all.iter().any(|known| Arc::ptr_eq(known, checkpoint)) {
                all.push(Arc::clone(checkpoint));
            }
        }
        Self(all)
    }

    /// All of them, in the order of their numbers.
    pub(super) fn all(&self) -> &[Arc<Checkpoint>] {
        &self.0
    }

    /// The description of a tensor of a view's checkpoint that is stored as it is.
    pub(super) fn stored(&self, view: &View, tensor: &TensorInfo) -> Stored {
        self.stored_in(view.checkpoint(), tensor)
    }

    /// The description of a tensor of one of the checkpoints that is stored as it is.
    pub(super) fn stored_in(&self, checkpoint: &Arc<Checkpoint>, tensor: &TensorInfo) -> Stored {
        Stored::of(self.number(checkpoint), tensor)
    }

    fn number(&self, checkpoint: &Arc<Checkpoint>) -> usize {
        let number = self.0.iter().position(|known| Arc::ptr_eq(known, checkpoint));
        number.unwrap_or(self.0.len())
    }

    /// The entries of a tensor of a view's checkpoint, with the view's changes.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a change that does not fit the tensor, or to one that is not computed
    /// with.
    pub(super) fn source(&self, view: &View, tensor: &TensorInfo) -> Result<Source> {
        let checkpoint = view.checkpoint();
        let own = Source::of(self.number(checkpoint), checkpoint, tensor);
        let Some(patches) = view.patches.get(&tensor.name) else { return Ok(own) };
        if tensor.dtype.float().is_none() {
            let reason = format!("is {}, which an adapter cannot change", tensor.dtype.name());
            return Err(Error::tensor(view.path(), &tensor.name, reason));
        }
        patches.iter().try_fold(own, |source, patch| patch.apply(source, self))
    }
}
