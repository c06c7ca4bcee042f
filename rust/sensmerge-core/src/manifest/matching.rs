//! The rules by which tensors of different checkpoints are matched. Nothing is skipped in silence:
//! a tensor is matched, handled by a rule that leaves a note, or refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::advice::{advice, not_floats};
use super::damping::{Damping, damping};
use super::packing::{OutFormat, Packing};
use super::source::{Source, Stored};
use super::view::{Checkpoints, View};
use crate::checkpoint::TensorInfo;
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};
use crate::method::Statistic;

/// Buffers that old checkpoints store and newer ones compute; they are no parameters.
const COMPUTED_BUFFERS: [&str; 1] = ["rotary_emb.inv_freq"];

/// What becomes of tensors that only some of the models have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The merge is refused.
    #[default]
    Error,
    /// The output has the tensors of the base (without one, of the first model), which stand in for
    /// those that a model lacks.
    Base,
    /// The output has the tensors that all models have.
    Skip,
}

/// An output tensor and its inputs.
pub(super) struct Matched {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
    pub(super) packing: Option<Packing>,
    /// The inputs where it is merged, or the tensor that it is a copy of.
    pub(super) content: std::result::Result<Inputs, Stored>,
}

/// The inputs of a merged tensor, by role.
pub(super) struct Inputs {
    pub(super) base: Option<Source>,
    pub(super) experts: Vec<Source>,
    pub(super) statistics: Vec<Source>,
    pub(super) damping: Option<Damping>,
}

/// Matches the tensors of a part's models with those of the first: the base, where there is one.
pub(super) struct Matcher<'v> {
    template: &'v View,
    experts: Vec<&'v View>,
    /// The base, if there is one, and the experts.
    views: Vec<&'v View>,
    checkpoints: &'v Checkpoints,
    missing: Missing,
    statistic: Option<Statistic>,
    /// Given if task vectors are damped by the base's activations.
    omega: Option<f64>,
    identical: Vec<[Stored; 2]>,
    notes: BTreeSet<String>,
    /// Tensors that a model lacks, and those that only it has, by the model's path.
    lacking: BTreeMap<PathBuf, Vec<String>>,
    left_out: BTreeMap<PathBuf, Vec<String>>,
}

impl<'v> Matcher<'v> {
    /// # Panics
    /// If there is neither a base nor a model.
    pub(super) fn new(
        base: Option<&'v View>,
        models: &'v [View],
        checkpoints: &'v Checkpoints,
        missing: Missing,
        statistic: Option<Statistic>,
    ) -> Self {
        Self {
            template: base.unwrap_or_else(|| &models[0]),
            experts: models.iter().collect(),
            views: base.into_iter().chain(models).collect(),
            checkpoints,
            missing,
            statistic,
            omega: None,
            identical: Vec::new(),
            notes: BTreeSet::new(),
            lacking: BTreeMap::new(),
            left_out: BTreeMap::new(),
        }
    }

    /// Damp merged task vectors by the base's activations.
    pub(super) fn damped(mut self, omega: Option<f64>) -> Self {
        self.omega = omega;
        self
    }

    /// What is left to verify and to tell once every tensor is matched.
    pub(super) fn findings(mut self) -> (Vec<[Stored; 2]>, Vec<String>) {
        let path = self.template.path().display();
        let instead = match self.missing {
            Missing::Skip => "the output has none of them".to_owned(),
            _ => format!("those of {path} stand in for them"),
        };
        for (model, names) in &self.lacking {
            let (model, named) = (model.display(), named(names));
            self.notes.insert(format!("{model}: lacks {named} that {path} has; {instead}"));
        }
        for (model, names) in &self.left_out {
            let (model, named) = (model.display(), named(names));
            self.notes.insert(format!("{model}: {named} that {path} lacks; left out"));
        }
        (self.identical, self.notes.into_iter().collect())
    }

    /// Every output tensor, by name.
    pub(super) fn matches(&mut self, with_base: bool, format: OutFormat) -> Result<Vec<Matched>> {
        for expert in self.experts.clone() {
            self.check_extra_tensors(expert)?;
        }
        for view in std::iter::once(self.template).chain(self.experts.iter().copied()) {
            if let Some(name) = view.patched_nothing() {
                let reason = "is missing, and an adapter changes it";
                return Err(Error::tensor(view.path(), name, reason));
            }
        }
        let template = self.template;
        let of_tensor = |(name, tensor)| self.matched(name, tensor, with_base, format);
        template.tensors().map(of_tensor).filter_map(Result::transpose).collect()
    }

    fn matched(
        &mut self,
        name: &str,
        tensor: &TensorInfo,
        with_base: bool,
        format: OutFormat,
    ) -> Result<Option<Matched>> {
        let first = self.chosen(self.template, name, tensor)?;
        let shape = first.shape();
        let mut sources = Vec::with_capacity(self.experts.len());
        for expert in self.experts.clone() {
            sources.push(self.find(expert, name, tensor, &first)?);
        }
        let sources: Option<Vec<Source>> = sources.into_iter().collect();
        let copy = || Err(self.checkpoints.stored(self.template, tensor));
        let mut packing = None;
        let (dtype, content) = match (tensor.dtype.float(), sources) {
            (_, None) if !is_computed_buffer(name) => return Ok(None),
            // A computed buffer may be missing in some models: then it is the template's.
            (_, None) => {
                self.notes.insert(format!(
                    "buffers '*.{}' are not in every model; they are copied from {}",
                    COMPUTED_BUFFERS[0],
                    self.template.path().display()
                ));
                (tensor.dtype, copy())
            }
            (Some(float), Some(sources)) => {
                let base = with_base.then_some(first);
                packing = format.packing(self.template.checkpoint(), name, tensor);
                let statistics = self.statistics(name, &shape)?;
                let omega = self.omega.filter(|_| with_base);
                let damping = omega
                    .map(|omega| damping(self.template, name, tensor, omega, self.checkpoints))
                    .transpose()?
                    .flatten();
                let inputs = Inputs { base, experts: sources, statistics, damping };
                (format.dtype(float), Ok(inputs))
            }
            (None, Some(_)) if shape != tensor.shape => {
                let (path, checkpoint) = (self.template.path(), self.template.checkpoint());
                return Err(Error::tensor(path, name, not_floats(tensor, checkpoint)));
            }
            (None, Some(sources)) => {
                self.require_equal(tensor, &sources)?;
                (tensor.dtype, copy())
            }
        };
        Ok(Some(Matched { name: name.to_owned(), shape, dtype, packing, content }))
    }

    /// A model's tensor, or the rows that are to be taken in place of its own.
    fn chosen(&self, view: &View, name: &str, found: &TensorInfo) -> Result<Source> {
        let mut own = self.checkpoints.source(view, found)?;
        if let Some(order) = view.order(name) {
            own = order.of(own).map_err(|reason| Error::tensor(view.path(), name, reason))?;
        }
        let Some(selection) = view.selection(name) else { return Ok(own) };
        let of_model = |number: usize| {
            let other = self.views.get(number).ok_or_else(|| {
                let count = self.views.len();
                Error::setting(name, format!("rows are to be taken of model {number}, of {count}"))
            })?;
            let found = other.own(name).or_else(|| other.alias_of(name)).ok_or_else(|| {
                let reason = "is missing, and rows of it are to be taken";
                Error::tensor(other.path(), name, reason)
            })?;
            self.checkpoints.source(other, found)
        };
        let row = found.shape.get(1..).unwrap_or_default();
        selection.source(row, &of_model)
    }

    /// What was measured of the experts' tensors of a name, if the method needs it; nothing if no expert's
    /// was.
    fn statistics(&self, name: &str, shape: &[usize]) -> Result<Vec<Source>> {
        let Some(shape) = self.statistic.and_then(|statistic| statistic.shape(shape)) else {
            return Ok(Vec::new());
        };
        let found = self.experts.iter().map(|expert| self.statistic_of(expert, name, &shape));
        let found = found.collect::<Result<Vec<_>>>()?;
        if found.iter().all(Option::is_none) {
            return Ok(Vec::new());
        }
        let named = self.experts.iter().zip(found).map(|(expert, source)| {
            source.ok_or_else(|| {
                let reason = "was not measured, and that of other models was: no token of its samples \
                              came there; give it more samples";
                Error::tensor(expert.path(), name, reason)
            })
        });
        named.collect()
    }

    /// What was measured of an expert's tensor.
    fn statistic_of(&self, expert: &View, name: &str, shape: &[usize]) -> Result<Option<Source>> {
        let Some(found) = expert.own(name).or_else(|| expert.alias_of(name)) else {
            return Ok(None);
        };
        let Some((checkpoint, tensor)) = expert.statistic_of(&found.name)? else {
            return Ok(None);
        };
        let refused = |reason: String| Err(Error::tensor(checkpoint.path(), &tensor.name, reason));
        if !matches!(tensor.dtype.float(), Some(Float::Bf16 | Float::F16 | Float::F32)) {
            return refused(format!("is {}; statistics are BF16 or F32", tensor.dtype.name()));
        }
        if tensor.shape != shape {
            let (ours, path) = (&tensor.shape, expert.path().display());
            return refused(format!("has shape {ours:?}, and '{name}' of {path} needs {shape:?}"));
        }
        if expert.selection(name).is_some() || expert.order(name).is_some() {
            let reason = "its rows or columns are taken in another order, and what was measured of the \
                          model is not; merge models of one vocabulary, without align";
            return Err(Error::tensor(expert.path(), name, reason));
        }
        Ok(Some(Source::Stored(self.checkpoints.stored_in(checkpoint, tensor))))
    }

    /// A tensor that is not computed with is copied, where all models hold the same bytes.
    fn require_equal(&mut self, tensor: &TensorInfo, sources: &[Source]) -> Result<()> {
        for twin in sources.iter().flat_map(Source::stored) {
            if twin.dtype != tensor.dtype {
                return Err(Error::tensor(
                    self.checkpoints.all()[twin.model].path(),
                    &twin.name,
                    format!(
                        "is {} here and {} in {}; only tensors of the same dtype can be copied, \
                         and only BF16, F16, F32 and F64 can be merged",
                        twin.dtype.name(),
                        tensor.dtype.name(),
                        self.template.path().display()
                    ),
                ));
            }
            let ours = self.checkpoints.stored(self.template, tensor);
            self.identical.push([ours, twin.clone()]);
        }
        Ok(())
    }

    /// The source of an expert that answers to a tensor of the template, whose source is `first`;
    /// `None` for a tensor that the expert lacks and that nothing stands in for.
    fn find(
        &mut self,
        expert: &View,
        name: &str,
        tensor: &TensorInfo,
        first: &Source,
    ) -> Result<Option<Source>> {
        let checkpoint = expert.checkpoint();
        let Some(found) = expert.own(name).or_else(|| expert.alias_of(name)) else {
            if let Some(constant) = expert.constant_of(name) {
                return Ok(Some(constant));
            }
            if is_computed_buffer(name) {
                return Ok(None);
            }
            if self.missing == Missing::Error {
                let reason = self.why_missing(expert, name);
                return Err(Error::tensor(checkpoint.path(), name, reason));
            }
            self.lacking.entry(expert.path().into()).or_default().push(name.to_owned());
            return Ok((self.missing == Missing::Base).then(|| first.clone()));
        };
        if tensor.dtype.float().is_some() && found.dtype.float().is_none() {
            return Err(Error::tensor(
                checkpoint.path(),
                &found.name,
                format!(
                    "is {} here and {} in {}; {}",
                    found.dtype.name(),
                    tensor.dtype.name(),
                    self.template.path().display(),
                    not_floats(found, checkpoint)
                ),
            ));
        }
        let source = self.chosen(expert, name, found)?;
        let (ours, theirs) = (source.shape(), first.shape());
        if ours == theirs {
            return Ok(Some(source));
        }
        let path = self.template.path().display();
        let reason = if ours.contains(&0) {
            format!(
                "is empty (shape {ours:?}) and {theirs:?} in {path}; the checkpoint was probably saved \
                 from a sharded run without gathering its parts"
            )
        } else if ours.get(1..) == theirs.get(1..) {
            format!(
                "has {} rows and {} in {path}; only rows of an embedding or an output head are chosen, \
                 by the models' tokens",
                ours.first().unwrap_or(&1),
                theirs.first().unwrap_or(&1)
            )
        } else {
            format!(
                "has shape {ours:?} and {theirs:?} in {path}; models of different sizes cannot be merged"
            )
        };
        Err(Error::tensor(checkpoint.path(), name, reason))
    }

    /// Tensors of an expert that the template does not have.
    fn check_extra_tensors(&mut self, expert: &View) -> Result<()> {
        let (checkpoint, template) = (expert.checkpoint(), self.template);
        for (name, tensor) in expert.tensors() {
            if template.own(name).is_some() {
                continue;
            }
            if is_computed_buffer(name) {
                self.notes.insert(format!(
                    "{}: buffers '*.{}' are left out; {} has none",
                    checkpoint.path().display(),
                    COMPUTED_BUFFERS[0],
                    template.path().display()
                ));
                continue;
            }
            if let Some(twin) = expert.alias_of(name) {
                let twin = self.checkpoints.stored(expert, twin);
                self.identical.push([twin, self.checkpoints.stored(expert, tensor)]);
                self.notes.insert(format!(
                    "{}: '{name}' is left out: it holds the same bytes as the tensor it is tied to",
                    checkpoint.path().display(),
                ));
                continue;
            }
            if self.missing != Missing::Error {
                self.left_out.entry(expert.path().into()).or_default().push(name.to_owned());
                continue;
            }
            let reason = self.why_extra(expert, name);
            return Err(Error::tensor(checkpoint.path(), name, reason));
        }
        Ok(())
    }

    /// Why an expert is refused that lacks a tensor of the template.
    fn why_missing(&self, expert: &View, name: &str) -> String {
        let stood_for =
            |name: &str| expert.alias_of(name).is_some() || expert.constant_of(name).is_some();
        let more = absent(self.template, expert).filter(|name| !stood_for(name)).count();
        let path = self.template.path().display();
        let advice =
            advice(name, self.template.checkpoint(), expert.checkpoint(), expert.checkpoint());
        match more.saturating_sub(1) {
            0 => format!("is missing, and {path} has it{advice}"),
            more => format!("is missing, like {more} more that {path} has{advice}"),
        }
    }

    /// Why an expert is refused that has a tensor which the template lacks.
    fn why_extra(&self, expert: &View, name: &str) -> String {
        let tied = |name: &str| expert.alias_of(name).is_some();
        let more = absent(expert, self.template).filter(|name| !tied(name)).count();
        let path = self.template.path().display();
        let advice =
            advice(name, expert.checkpoint(), self.template.checkpoint(), expert.checkpoint());
        match more.saturating_sub(1) {
            0 => format!("is not in {path}{advice}"),
            more => format!("is not in {path}, like {more} more{advice}"),
        }
    }
}

/// Some tensors' names in words.
fn named(names: &[String]) -> String {
    match names {
        [one] => format!("'{one}'"),
        _ => format!("{} tensors, such as '{}',", names.len(), names[0]),
    }
}

/// Names of one model's tensors that another lacks, but for buffers that may be left out.
fn absent<'v>(holder: &'v View, lacking: &'v View) -> impl Iterator<Item = &'v str> {
    let names = holder.tensors().map(|(name, _)| name);
    names.filter(|name| lacking.own(name).is_none() && !is_computed_buffer(name))
}

fn is_computed_buffer(name: &str) -> bool {
    COMPUTED_BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}
