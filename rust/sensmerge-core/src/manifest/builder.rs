//! Builds a manifest from a method, models and numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::check::check;
use super::matching::{Matched, Matcher};
use super::{Content, File, Manifest, Merge, Model, Output, VERSION};
use crate::checkpoint::Checkpoint;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::method::{Base, Kind, Owner, Schema, Semantics, Settings, find};
use crate::numbers::{Number, Numbers};
use crate::program::Operand;

/// A model to be merged: a checkpoint, and rules for tensors that it lacks or has in another shape.
#[derive(Clone, Debug)]
pub struct Input {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) aliases: BTreeMap<String, String>,
    pub(super) leading_rows: Vec<String>,
    pub(super) constants: BTreeMap<String, (Vec<usize>, f64)>,
}

impl Input {
    /// A checkpoint without rules.
    #[must_use]
    pub fn new(checkpoint: Arc<Checkpoint>) -> Self {
        Self {
            checkpoint,
            aliases: BTreeMap::new(),
            leading_rows: Vec::new(),
            constants: BTreeMap::new(),
        }
    }

    /// Use the tensor `stand_in` if the checkpoint has no tensor `name`, as for an output head that is
    /// tied to the input embedding.
    #[must_use]
    pub fn alias(mut self, name: impl Into<String>, stand_in: impl Into<String>) -> Self {
        self.aliases.insert(name.into(), stand_in.into());
        self
    }

    /// Read only as many leading rows of the tensor `name` as the output has: the other rows belong
    /// to tokens that the output does not have.
    #[must_use]
    pub fn leading_rows(mut self, name: impl Into<String>) -> Self {
        self.leading_rows.push(name.into());
        self
    }

    /// Use the number `value` for every entry of a tensor `name` that the checkpoint lacks.
    #[must_use]
    pub fn constant(mut self, name: impl Into<String>, shape: Vec<usize>, value: f64) -> Self {
        self.constants.insert(name.into(), (shape, value));
        self
    }
}

/// Builds a [`Manifest`]. Parameters that are not set have the method's defaults.
///
/// ```
/// # use std::sync::Arc;
/// # use sensmerge_core::checkpoint::{Checkpoint, MemoryTensor};
/// # use sensmerge_core::dtype::Dtype;
/// # use sensmerge_core::manifest::{Builder, Input};
/// # let open = |name: &str| {
/// #     let bytes = Box::new(vec![0_u8; 8]);
/// #     let tensor = MemoryTensor { name: "w".into(), dtype: Dtype::F32, shape: vec![2], bytes };
/// #     Checkpoint::from_memory(name, vec![tensor]).map(Arc::new)
/// # };
/// let manifest = Builder::new("task_arithmetic")
///     .base(Input::new(open("base")?))
///     .model(Input::new(open("chat")?))
///     .model(Input::new(open("math")?))
///     .numbers("weight", &[1.0, 0.5])
///     .number("lambda", 0.4)
///     .build()?;
/// assert_eq!(manifest.tensors[0].name, "w");
/// # Ok::<(), sensmerge_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    method: String,
    semantics: Semantics,
    base: Option<Input>,
    models: Vec<Input>,
    switches: BTreeMap<String, bool>,
    numbers: Numbers,
    by_tensor: BTreeMap<String, Numbers>,
    seed: u64,
    out_dtype: Option<Float>,
}

impl Builder {
    /// A merge by the method that recipes call `method`.
    #[must_use]
    pub fn new(method: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            semantics: Semantics::default(),
            base: None,
            models: Vec::new(),
            switches: BTreeMap::new(),
            numbers: Numbers::new(),
            by_tensor: BTreeMap::new(),
            seed: 0,
            out_dtype: None,
        }
    }

    /// The semantics of the method; mergekit's by default.
    #[must_use]
    pub fn semantics(mut self, semantics: Semantics) -> Self {
        self.semantics = semantics;
        self
    }

    /// The base. The output has its tensors, and task vectors are differences from it.
    #[must_use]
    pub fn base(mut self, base: Input) -> Self {
        self.base = Some(base);
        self
    }

    /// One more model to be merged.
    #[must_use]
    pub fn model(mut self, model: Input) -> Self {
        self.models.push(model);
        self
    }

    /// Turn a switch of the method on or off.
    #[must_use]
    pub fn switch(mut self, name: impl Into<String>, on: bool) -> Self {
        self.switches.insert(name.into(), on);
        self
    }

    /// A number of the merge, for all tensors.
    #[must_use]
    pub fn number(mut self, parameter: impl Into<String>, number: f64) -> Self {
        self.numbers.insert(parameter.into(), Number::Merge(number));
        self
    }

    /// A number for every model, in their order, for all tensors.
    #[must_use]
    pub fn numbers(mut self, parameter: impl Into<String>, numbers: &[f64]) -> Self {
        self.numbers.insert(parameter.into(), Number::Models(numbers.to_vec()));
        self
    }

    /// The numbers of one output tensor, which take precedence over those for all tensors.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>, numbers: Numbers) -> Self {
        self.by_tensor.insert(name.into(), numbers);
        self
    }

    /// Seed of the random masks.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The dtype of merged tensors; by default that of the base's tensor (or of the first model's).
    #[must_use]
    pub fn out_dtype(mut self, dtype: Float) -> Self {
        self.out_dtype = Some(dtype);
        self
    }

    /// Build the manifest, from headers alone: no tensor data is read.
    ///
    /// # Errors
    /// [`Error::Setting`] for a method, numbers or models that do not go together,
    /// [`Error::Tensor`] for a tensor that is missing, of another shape or of another kind.
    pub fn build(mut self) -> Result<Manifest> {
        let method = find(&self.method).ok_or_else(|| {
            Error::setting("merge_method", format!("'{}' is not a known method", self.method))
        })?;
        let schema = method.schema(self.semantics);
        let switches = self.switches(&schema)?;
        if schema.base == Base::Merged
            && let Some(base) = self.base.take()
        {
            self.models.insert(0, base);
        }
        self.check_models(&schema)?;
        let settings = Settings {
            name: self.method.clone(),
            semantics: self.semantics,
            switches,
            base: self.base.is_some() && schema.base != Base::Unused,
        };
        let operand = method.program(&settings).operand;

        let mut matcher = Matcher::new(self.base.as_ref(), &self.models);
        let outputs = matcher.matches(operand == Operand::TaskVectors, self.out_dtype)?;
        let (identical, notes) = matcher.findings();
        let mut tensors = Vec::with_capacity(outputs.len());
        for Matched { name, shape, dtype, content } in outputs {
            let content = match content {
                Ok((base, experts)) => {
                    let numbers = self.numbers_of(&schema, &name)?;
                    Content::Merge(Merge { base, experts, numbers })
                }
                Err(stored) => {
                    self.by_tensor.remove(&name);
                    Content::Copy(stored)
                }
            };
            tensors.push(Output { name, shape, dtype, content });
        }
        if let Some(name) = self.by_tensor.keys().next() {
            return Err(Error::setting(
                name,
                "numbers are given for it, but it is not an output tensor",
            ));
        }
        let models = self.base.iter().chain(&self.models).map(|input| model(&input.checkpoint));
        let manifest = Manifest {
            version: VERSION,
            method: settings,
            seed: self.seed,
            models: models.collect(),
            tensors,
            identical,
            notes,
        };
        check(&manifest)?;
        Ok(manifest)
    }

    /// Every switch of the method: as it was set, or its default.
    fn switches(&self, schema: &Schema) -> Result<BTreeMap<String, bool>> {
        let mut switches = BTreeMap::new();
        for parameter in &schema.parameters {
            if let Kind::Switch { default } = parameter.kind {
                let set = self.switches.get(parameter.name).copied();
                switches.insert(parameter.name.to_owned(), set.unwrap_or(default));
            }
        }
        match self.switches.keys().find(|name| !switches.contains_key(*name)) {
            None => Ok(switches),
            Some(name) => Err(Error::setting(
                format!("parameters.{name}"),
                format!("{} has no such switch", described(schema, self.semantics)),
            )),
        }
    }

    fn check_models(&self, schema: &Schema) -> Result<()> {
        if schema.base == Base::Needed && self.base.is_none() {
            return Err(Error::setting(
                "base_model",
                "this method adds task vectors to a base; name the model that the experts were \
                 tuned from",
            ));
        }
        let (found, count) = (self.models.len(), schema.models);
        if count.admits(found) {
            return Ok(());
        }
        let needed = match count.most {
            Some(most) if most == count.least => format!("exactly {most}"),
            _ => format!("at least {}", count.least),
        };
        let reason = format!("{} merges {needed} models, not {found}", schema.name);
        Err(Error::setting("models", reason))
    }

    /// The numbers of one tensor, for every parameter of the method.
    fn numbers_of(&mut self, schema: &Schema, tensor: &str) -> Result<Numbers> {
        let mut own = self.by_tensor.remove(tensor).unwrap_or_default();
        let mut numbers = Numbers::new();
        for parameter in &schema.parameters {
            let Kind::Number { default, .. } = parameter.kind else { continue };
            let set = own.remove(parameter.name);
            let set = set.or_else(|| self.numbers.get(parameter.name).cloned());
            let by_default = || {
                default.map(|number| match parameter.owner {
                    Owner::Merge => Number::Merge(number),
                    Owner::Model => Number::Models(vec![number; self.models.len()]),
                })
            };
            let number = set.or_else(by_default).ok_or_else(|| {
                let key = format!("parameters.{}", parameter.name);
                Error::setting(key, format!("{} needs it for '{tensor}'", schema.name))
            })?;
            numbers.insert(parameter.name.to_owned(), number);
        }
        let unknown =
            own.keys().chain(self.numbers.keys()).find(|name| !numbers.contains_key(*name));
        match unknown {
            None => Ok(numbers),
            Some(name) => Err(Error::setting(
                format!("parameters.{name}"),
                format!("{} has no such number", described(schema, self.semantics)),
            )),
        }
    }
}

fn described(schema: &Schema, semantics: Semantics) -> String {
    match semantics {
        Semantics::Mergekit => schema.name.to_owned(),
        Semantics::Original => format!("{} with semantics: original", schema.name),
    }
}

fn model(checkpoint: &Checkpoint) -> Model {
    let files = checkpoint.identities().into_iter();
    let file = |(path, bytes, header): (_, _, String)| File { path, bytes, header };
    Model {
        path: checkpoint.path().to_path_buf(),
        files: files.map(file).collect(),
        fingerprint: None,
        origin: checkpoint.origin(),
    }
}
