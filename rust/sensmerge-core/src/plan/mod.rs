//! From a recipe and headers to ordered steps: what each output tensor is made of, and where it
//! goes. No tensor data is read here.

mod recipe;
mod resolve;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

pub use recipe::{Model, Recipe, Setting};

use crate::checkpoint::layout::{ShardLayout, TensorSpec, layout};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::method::{Divisor, Method, Operand, SMALLEST_DIVISOR, Scope, TrimDensity};
use resolve::Resolver;

/// The checkpoints of a recipe, opened. They may serve other merges too.
pub struct Inputs {
    base: Option<Arc<Checkpoint>>,
    models: Vec<Arc<Checkpoint>>,
}

impl Inputs {
    /// Open every checkpoint that `recipe` names.
    ///
    /// # Errors
    /// What [`Checkpoint::open`] refuses.
    pub fn open(recipe: &Recipe) -> Result<Self> {
        let paths = recipe.base.iter().chain(recipe.models.iter().map(|model| &model.path));
        let opened = paths.map(|path| Checkpoint::open(path).map(Arc::new));
        Self::new(recipe, opened.collect::<Result<_>>()?)
    }

    /// Checkpoints that are open already, or lie in memory: the base first, where `recipe` has
    /// one, then the models in its order. Its paths are not looked at.
    ///
    /// # Errors
    /// [`Error::Setting`] for other than as many checkpoints as the recipe names.
    pub fn new(recipe: &Recipe, mut checkpoints: Vec<Arc<Checkpoint>>) -> Result<Self> {
        let models = checkpoints.split_off(checkpoints.len().min(recipe.base.iter().len()));
        if (checkpoints.len(), models.len()) != (recipe.base.iter().len(), recipe.models.len()) {
            return Err(Error::setting(
                "models",
                format!(
                    "{} checkpoints are given for the {} that the recipe names",
                    checkpoints.len() + models.len(),
                    recipe.base.iter().len() + recipe.models.len()
                ),
            ));
        }
        Ok(Self { base: checkpoints.pop(), models })
    }

    /// Every checkpoint, the base first.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        self.base.iter().chain(&self.models).map(Arc::as_ref)
    }
}

/// The floating-point type that a tensor is computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// float32: no input of the tensor is wider.
    Single,
    /// float64: some input of the tensor is float64.
    Double,
}

/// A tensor and the checkpoint it lies in, kept open.
#[derive(Clone, Debug)]
pub struct Located {
    /// The checkpoint.
    pub checkpoint: Arc<Checkpoint>,
    /// The tensor in it.
    pub tensor: Arc<TensorInfo>,
}

impl Located {
    /// Its data.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.checkpoint.bytes(&self.tensor)
    }
}

/// One input of a step.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it lies.
    pub at: Located,
    /// Its dtype, one of those that are computed with.
    pub dtype: Float,
}

/// One expert's part in a step.
#[derive(Clone, Debug)]
pub struct Term {
    /// Its tensor.
    pub source: Source,
    /// `w_i` for this tensor.
    pub weight: f64,
    /// Fraction kept by the random drop; 1 where the method has none.
    pub drop_density: f64,
    /// Fraction kept by the trim; 1 where the method has none.
    pub trim_density: f64,
}

/// A tensor that is computed.
#[derive(Clone, Debug)]
pub struct Merge {
    /// The base's tensor; `None` where parameters themselves are combined.
    pub base: Option<Source>,
    /// The experts' tensors, in the recipe's order.
    pub terms: Vec<Term>,
    /// λ for this tensor.
    pub lambda: f64,
    /// The type it is computed in.
    pub precision: Precision,
    /// The dtype it is stored in.
    pub out_dtype: Float,
}

/// How an output tensor comes about.
#[derive(Clone, Debug)]
pub enum Content {
    /// It is computed.
    Merge(Merge),
    /// It is copied: its dtype is not computed with, or it is a buffer and no parameter.
    Copy(Located),
}

/// One output tensor.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Its number of entries.
    pub elements: usize,
    /// How it comes about.
    pub content: Content,
    /// The shard that holds it.
    pub shard: usize,
    /// Where its bytes lie in that shard's file.
    pub bytes: Range<u64>,
}

/// A merge, ready to be executed.
pub struct Plan {
    /// The method, taken apart.
    pub method: Method,
    /// Key of the random streams.
    pub seed: u64,
    /// Every output tensor, in the order of the shards.
    pub steps: Vec<Step>,
    /// The output files.
    pub shards: Vec<ShardLayout>,
    /// What the caller should be told: buffers left alone, vocabulary rows left out.
    pub notes: Vec<String>,
    /// Pairs of tensors that must hold the same bytes, or the merge is refused.
    pub identical: Vec<[Located; 2]>,
    /// Folders and files that the output must not touch.
    pub inputs: Vec<PathBuf>,
}

impl Plan {
    /// Decide what every output tensor is made of.
    ///
    /// `max_shard_bytes` bounds the size of an output file; a tensor above it gets a file alone.
    ///
    /// # Errors
    /// [`Error::Setting`] for numbers and switches that the method cannot use,
    /// [`Error::Tensor`] for a tensor that is missing, of another shape or of another kind.
    pub fn new(recipe: &Recipe, inputs: &Inputs, max_shard_bytes: u64) -> Result<Self> {
        recipe.check()?;
        let method = Method::new(recipe.method, recipe.semantics, recipe.switches())?;
        if method.operand == Operand::TaskVectors && inputs.base.is_none() {
            return Err(Error::setting(
                "base_model",
                "this method adds task vectors to a base; name the model that the experts were \
                 tuned from",
            ));
        }
        check_scope(recipe, method)?;
        let mut resolver = Resolver::new(recipe, &method, inputs);
        let mut contents = resolver.contents()?;
        let (identical, notes) = resolver.findings();
        check_weights(method, contents.iter())?;
        unify_precision(method, contents.iter_mut().map(|(_, content)| content));

        let specs = contents.iter().map(|(tensor, content)| specification(tensor, content));
        let shards = layout(specs.collect(), max_shard_bytes);
        let mut steps = Vec::with_capacity(contents.len());
        let mut contents = contents.into_iter();
        for (shard, file) in shards.iter().enumerate() {
            // The layout keeps the order of the tensors it was given.
            for ((spec, offset), (tensor, content)) in file.tensors.iter().zip(contents.by_ref()) {
                steps.push(Step {
                    name: spec.name.clone(),
                    elements: tensor.elements(),
                    content,
                    shard,
                    bytes: *offset..*offset + spec.nbytes(),
                });
            }
        }
        let on_disk = inputs.checkpoints().filter(|input| !input.in_memory());
        let inputs = on_disk.map(|input| input.path().to_path_buf()).collect();
        Ok(Self { method, seed: recipe.seed, steps, shards, notes, identical, inputs })
    }

    /// The tensors that are computed.
    pub fn merges(&self) -> impl Iterator<Item = (&Step, &Merge)> {
        self.steps.iter().filter_map(|step| match &step.content {
            Content::Merge(merge) => Some((step, merge)),
            Content::Copy(_) => None,
        })
    }
}

/// A mean whose weights cancel is no mean.
fn check_weights<'c>(
    method: Method,
    contents: impl Iterator<Item = &'c (Arc<TensorInfo>, Content)>,
) -> Result<()> {
    if method.operand != Operand::Parameters || method.divisor != Divisor::Weights {
        return Ok(());
    }
    for (tensor, content) in contents {
        if let Content::Merge(merge) = content
            && merge.terms.iter().map(|term| term.weight).sum::<f64>().abs() < SMALLEST_DIVISOR
        {
            return Err(Error::setting(
                "models[].parameters.weight",
                format!("the weights for '{}' sum to 0 and cannot be normalized", tensor.name),
            ));
        }
    }
    Ok(())
}

/// Whole-model trimming has one threshold an expert, so one density an expert.
fn check_scope(recipe: &Recipe, method: Method) -> Result<()> {
    let Some(trim) = method.trim.filter(|trim| trim.scope == Scope::Model) else {
        return Ok(());
    };
    for (index, model) in recipe.models.iter().enumerate() {
        let (name, setting) = match trim.density {
            TrimDensity::Density => ("density", &model.density),
            TrimDensity::TiesDensity => ("ties_density", &model.ties_density),
        };
        if !setting.layers.is_empty() {
            return Err(Error::setting(
                format!("models[{index}].parameters.{name}"),
                "the trim of semantics: original is over the whole model and takes one density; \
                 use semantics: mergekit for densities by layer",
            ));
        }
    }
    Ok(())
}

/// Magnitudes that share a threshold must share a type.
fn unify_precision<'c>(method: Method, contents: impl Iterator<Item = &'c mut Content>) {
    if method.trim.is_none_or(|trim| trim.scope != Scope::Model) {
        return;
    }
    let merges: Vec<&mut Merge> = contents
        .filter_map(|content| match content {
            Content::Merge(merge) => Some(merge),
            Content::Copy(_) => None,
        })
        .collect();
    if merges.iter().any(|merge| merge.precision == Precision::Double) {
        for merge in merges {
            merge.precision = Precision::Double;
        }
    }
}

fn specification(tensor: &TensorInfo, content: &Content) -> TensorSpec {
    let dtype = match content {
        Content::Merge(merge) => merge.out_dtype.dtype(),
        Content::Copy(_) => tensor.dtype,
    };
    TensorSpec { name: tensor.name.clone(), dtype, shape: tensor.shape.clone() }
}
