//! Builds a manifest from a method, models and numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::check::check;
use super::matching::{Inputs, Matched, Matcher, Missing};
use super::matrices;
use super::packing::{OutDtype, OutFormat};
use super::prefix::under_the_names_of;
use super::view::{Checkpoints, View};
use super::{Content, File, Manifest, Merge, Model, Output, VERSION};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::method::{Base, Form, Kind, Owner, Schema, Semantics, Settings, find};
use crate::numbers::{Number, Numbers};
use crate::program::Operand;

/// Output tensors that are merged from the same models: a whole model, or a slice of it.
///
/// The output has the tensors of the base or, without one, of the first model.
#[derive(Clone, Debug, Default)]
pub struct Part {
    base: Option<View>,
    models: Vec<View>,
    tensors: BTreeMap<String, Numbers>,
}

impl Part {
    /// The base. Task vectors are differences from it.
    #[must_use]
    pub fn base(mut self, base: View) -> Self {
        self.base = Some(base);
        self
    }

    /// One more model to be merged.
    #[must_use]
    pub fn model(mut self, model: View) -> Self {
        self.models.push(model);
        self
    }

    /// The numbers of one output tensor, which take precedence over those for all tensors.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>, numbers: Numbers) -> Self {
        self.tensors.insert(name.into(), numbers);
        self
    }

    fn views(&self) -> impl Iterator<Item = &View> {
        self.base.iter().chain(&self.models)
    }
}

/// Builds a [`Manifest`]. Parameters that are not set have the method's defaults.
///
/// ```
/// # use std::sync::Arc;
/// # use sensmerge_core::checkpoint::{Checkpoint, MemoryTensor};
/// # use sensmerge_core::dtype::Dtype;
/// # use sensmerge_core::manifest::{Builder, View};
/// # let open = |name: &str| {
/// #     let bytes = Box::new(vec![0_u8; 8]);
/// #     let tensor = MemoryTensor { name: "w".into(), dtype: Dtype::F32, shape: vec![2], bytes };
/// #     Checkpoint::from_memory(name, vec![tensor]).map(Arc::new)
/// # };
/// let manifest = Builder::new("task_arithmetic")
///     .base(View::new(open("base")?))
///     .model(View::new(open("chat")?))
///     .model(View::new(open("math")?))
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
    checkpoints: Vec<Arc<Checkpoint>>,
    parts: Vec<Part>,
    switches: BTreeMap<String, bool>,
    numbers: Numbers,
    seed: u64,
    missing: Missing,
    omega: Option<f64>,
    format: OutFormat,
    notes: Vec<String>,
}

impl Builder {
    /// A merge by the method that recipes call `method`.
    #[must_use]
    pub fn new(method: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            semantics: Semantics::default(),
            checkpoints: Vec::new(),
            parts: Vec::new(),
            switches: BTreeMap::new(),
            numbers: Numbers::new(),
            seed: 0,
            missing: Missing::default(),
            omega: None,
            format: OutFormat::default(),
            notes: Vec::new(),
        }
    }

    /// The semantics of the method; mergekit's by default.
    #[must_use]
    pub fn semantics(mut self, semantics: Semantics) -> Self {
        self.semantics = semantics;
        self
    }

    /// The order of the manifest's models. By default, that of the parts.
    #[must_use]
    pub fn checkpoints(mut self, checkpoints: Vec<Arc<Checkpoint>>) -> Self {
        self.checkpoints = checkpoints;
        self
    }

    /// One more part of the output; no two parts have a tensor of the same name.
    #[must_use]
    pub fn part(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }

    /// The base of the first part, which is the whole output unless there are others.
    #[must_use]
    pub fn base(mut self, base: View) -> Self {
        self.first().base = Some(base);
        self
    }

    /// One more model of the first part.
    #[must_use]
    pub fn model(mut self, model: View) -> Self {
        self.first().models.push(model);
        self
    }

    fn first(&mut self) -> &mut Part {
        if self.parts.is_empty() {
            self.parts.push(Part::default());
        }
        &mut self.parts[0]
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

    /// A number for every model of a part, in their order, for all tensors.
    #[must_use]
    pub fn numbers(mut self, parameter: impl Into<String>, numbers: &[f64]) -> Self {
        self.numbers.insert(parameter.into(), Number::Models(numbers.to_vec()));
        self
    }

    /// The numbers of one output tensor of the first part, which take precedence over those for all
    /// tensors.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>, numbers: Numbers) -> Self {
        self.first().tensors.insert(name.into(), numbers);
        self
    }

    /// Seed of the random masks.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// What becomes of tensors that only some of the models have; the merge is refused by default.
    #[must_use]
    pub fn missing(mut self, missing: Missing) -> Self {
        self.missing = missing;
        self
    }

    /// Damp merged task vectors by `1 − s (1 − ω)`, where `s` is what was measured of the activations of
    /// the base ([`View::activations`]).
    #[must_use]
    pub fn omega(mut self, omega: f64) -> Self {
        self.omega = Some(omega);
        self
    }

    /// The dtype of merged tensors; by default that of the base's tensor (or of the first model's),
    /// and where that is quantised, quantised likewise.
    #[must_use]
    pub fn out_dtype(mut self, dtype: impl Into<OutDtype>) -> Self {
        self.format.dtype = Some(dtype.into());
        self
    }

    /// Leave merged tensors unquantised by default, even those that are quantised in the base.
    #[must_use]
    pub fn dequantised(mut self) -> Self {
        self.format.dequantised = true;
        self
    }

    /// Notes on what was decided before: they are the first of the manifest's.
    #[must_use]
    pub fn notes(mut self, notes: Vec<String>) -> Self {
        self.notes = notes;
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
        let mut parts = self.first_and_others();
        for part in &mut parts {
            if schema.base == Base::Merged
                && let Some(base) = part.base.take()
            {
                part.models.insert(0, base);
            }
            check_models(&schema, part)?;
        }
        let with_base = parts.iter().filter(|part| part.base.is_some()).count();
        if with_base != 0 && with_base != parts.len() {
            let reason = "some slices have a base and others have none; give all of them one";
            return Err(Error::setting("base_model", reason));
        }
        let settings = Settings {
            name: self.method.clone(),
            semantics: self.semantics,
            switches,
            base: with_base != 0 && schema.base != Base::Unused,
            package: method.package().cloned(),
        };
        let program = method.program(&settings);
        let operand = program.operand;
        if self.omega.is_some() && operand != Operand::TaskVectors {
            let reason = format!(
                "{} merges no task vectors here, so that none can be damped; remove the section",
                schema.name
            );
            return Err(Error::setting("aim", reason));
        }
        let given = std::mem::take(&mut self.checkpoints);
        let checkpoints = Checkpoints::new(given, parts.iter().flat_map(Part::views));
        let mut built = Manifest {
            version: VERSION,
            method: settings,
            seed: self.seed,
            models: checkpoints.all().iter().map(|checkpoint| model(checkpoint)).collect(),
            tensors: Vec::new(),
            identical: Vec::new(),
            notes: Vec::new(),
        };
        for part in parts {
            self.add(&mut built, &schema, part, &checkpoints, operand)?;
        }
        built.tensors.sort_by(|one, other| one.name.cmp(&other.name));
        let notes = self.format.notes(&built, checkpoints.all())?;
        built.notes.extend(notes);
        let notes = program.matrices.as_ref().map(|combine| matrices::notes(&built, &**combine));
        built.notes.extend(notes.unwrap_or_default());
        let called = program.combine.called().filter(|called| called.form == Form::Tensors);
        built.notes.extend(called.and_then(|called| matrices::note_on_tensors(&built, called)));
        built.notes.sort();
        built.notes.dedup();
        built.notes.splice(0..0, std::mem::take(&mut self.notes));
        let twice = built.tensors.windows(2).find(|pair| pair[0].name == pair[1].name);
        if let Some(pair) = twice {
            return Err(Error::setting(&pair[0].name, "is an output tensor of two parts"));
        }
        check(&built)?;
        Ok(built)
    }

    /// The parts of the output; at least one, so that a merge without models is refused as such.
    fn first_and_others(&mut self) -> Vec<Part> {
        self.first();
        std::mem::take(&mut self.parts)
    }

    /// Add the tensors of a part to the manifest.
    fn add(
        &self,
        manifest: &mut Manifest,
        schema: &Schema,
        part: Part,
        checkpoints: &Checkpoints,
        operand: Operand,
    ) -> Result<()> {
        let Part { base, models, tensors: mut numbers } = part;
        let template = base.as_ref().or(models.first()).cloned();
        let mut renamed = Vec::with_capacity(models.len());
        for model in models {
            let (model, note) = match &template {
                Some(template) => under_the_names_of(template, model),
                None => (model, None),
            };
            renamed.push(model);
            manifest.notes.extend(note);
        }
        let mut matcher =
            Matcher::new(base.as_ref(), &renamed, checkpoints, self.missing, schema.statistic)
                .damped(self.omega);
        let outputs = matcher.matches(operand == Operand::TaskVectors, self.format)?;
        let (identical, notes) = matcher.findings();
        manifest.identical.extend(identical);
        manifest.notes.extend(notes);
        for Matched { name, shape, dtype, packing, content } in outputs {
            let own = numbers.remove(&name);
            let content = match content {
                Ok(Inputs { base, experts, statistics, damping }) => {
                    let own = own.unwrap_or_default();
                    let numbers = self.numbers_of(schema, &name, own, experts.len())?;
                    Content::Merge(Merge { base, experts, statistics, damping, numbers })
                }
                Err(stored) => Content::Copy(stored),
            };
            manifest.tensors.push(Output { name, shape, dtype, packing, content });
        }
        // Numbers of tensors that are skipped, since some model lacks them, are of no use.
        let skipped = |name: &str| template.as_ref().is_some_and(|view| view.own(name).is_some());
        match numbers.into_keys().find(|name| !skipped(name)) {
            None => Ok(()),
            Some(name) => {
                let reason = "numbers are given for it, but it is not an output tensor";
                Err(Error::setting(name, reason))
            }
        }
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

    /// The numbers of one tensor, for every parameter of the method.
    fn numbers_of(
        &self,
        schema: &Schema,
        tensor: &str,
        mut own: Numbers,
        models: usize,
    ) -> Result<Numbers> {
        let mut numbers = Numbers::new();
        for parameter in &schema.parameters {
            let Kind::Number { default, .. } = parameter.kind else { continue };
            let set = own.remove(parameter.name);
            let set = set.or_else(|| self.numbers.get(parameter.name).cloned());
            let by_default = || {
                default.map(|number| match parameter.owner {
                    Owner::Merge => Number::Merge(number),
                    Owner::Model => Number::Models(vec![number; models]),
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

fn check_models(schema: &Schema, part: &Part) -> Result<()> {
    if schema.base == Base::Needed && part.base.is_none() {
        return Err(Error::setting(
            "base_model",
            "this method adds task vectors to a base; name the model that the experts were tuned \
             from",
        ));
    }
    let (found, count) = (part.models.len(), schema.models);
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
