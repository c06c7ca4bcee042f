//! The rules by which tensors of different checkpoints are matched. Nothing is skipped in silence:
//! a tensor is matched, handled by a rule that leaves a note, or refused by name.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::recipe::Recipe;
use super::{Content, Inputs, Located, Merge, Precision, Source, Term};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::method::{Method, Operand, TrimDensity};

/// Buffers that old checkpoints store and newer ones compute; they are no parameters.
const COMPUTED_BUFFERS: [&str; 1] = ["rotary_emb.inv_freq"];

pub(super) struct Resolver<'r> {
    recipe: &'r Recipe,
    method: &'r Method,
    inputs: &'r Inputs,
    /// The checkpoint whose tensors are the output's.
    template: Arc<Checkpoint>,
    identical: Vec<[Located; 2]>,
    notes: BTreeSet<String>,
}

impl<'r> Resolver<'r> {
    pub(super) fn new(recipe: &'r Recipe, method: &'r Method, inputs: &'r Inputs) -> Self {
        let template = Arc::clone(inputs.base.as_ref().unwrap_or(&inputs.models[0]));
        Self { recipe, method, inputs, template, identical: Vec::new(), notes: BTreeSet::new() }
    }

    /// What is left to verify and to tell once every tensor has its content.
    pub(super) fn findings(self) -> (Vec<[Located; 2]>, Vec<String>) {
        (self.identical, self.notes.into_iter().collect())
    }

    /// Every output tensor, by name.
    pub(super) fn contents(&mut self) -> Result<Vec<(Arc<TensorInfo>, Content)>> {
        for index in 0..self.inputs.models.len() {
            self.check_extra_tensors(index)?;
        }
        let template = Arc::clone(&self.template);
        template.tensors().map(|tensor| Ok((Arc::clone(tensor), self.content(tensor)?))).collect()
    }

    fn content(&mut self, tensor: &Arc<TensorInfo>) -> Result<Content> {
        let mut matches = Vec::with_capacity(self.inputs.models.len());
        for index in 0..self.inputs.models.len() {
            matches.push(self.find(index, tensor)?);
        }
        // A computed buffer may be missing in some models: then it is the template's.
        let Some(matches) = matches.into_iter().collect::<Option<Vec<Located>>>() else {
            self.notes.insert(format!(
                "buffers '*.{}' are not in every model; they are copied from {}",
                COMPUTED_BUFFERS[0],
                self.template.path().display()
            ));
            return Ok(Content::Copy(located(&self.template, tensor)));
        };
        match tensor.dtype.float() {
            Some(_) => self.merge(tensor, matches).map(Content::Merge),
            None => self.copy(tensor, matches).map(Content::Copy),
        }
    }

    fn merge(&self, tensor: &Arc<TensorInfo>, matches: Vec<Located>) -> Result<Merge> {
        let stored = source(located(&self.template, tensor), tensor)?;
        let mut terms = Vec::with_capacity(matches.len());
        for (located, model) in matches.into_iter().zip(&self.recipe.models) {
            let density = model.density.of(&tensor.name);
            let trim = self.method.trim.map(|trim| trim.density);
            terms.push(Term {
                source: source(located, tensor)?,
                weight: model.weight.of(&tensor.name),
                drop_density: if self.method.drop { density } else { 1.0 },
                trim_density: match trim {
                    Some(TrimDensity::Density) => density,
                    Some(TrimDensity::TiesDensity) => model.ties_density.of(&tensor.name),
                    None => 1.0,
                },
            });
        }
        let out_dtype = self.recipe.out_dtype.unwrap_or(stored.dtype);
        let base = (self.method.operand == Operand::TaskVectors).then_some(stored);
        let mut sources = base.iter().chain(terms.iter().map(|term| &term.source));
        let precision = if sources.any(|source| source.dtype == Float::F64) {
            Precision::Double
        } else {
            Precision::Single
        };
        let lambda = self.recipe.lambda.of(&tensor.name);
        Ok(Merge { base, terms, lambda, precision, out_dtype })
    }

    fn copy(&mut self, tensor: &Arc<TensorInfo>, matches: Vec<Located>) -> Result<Located> {
        let from = located(&self.template, tensor);
        for twin in matches {
            if twin.tensor.dtype != tensor.dtype {
                return Err(Error::tensor(
                    twin.checkpoint.path(),
                    &tensor.name,
                    format!(
                        "is {} here and {} in {}; only tensors of the same dtype can be copied, \
                         and only BF16, F16, F32 and F64 can be merged",
                        twin.tensor.dtype.name(),
                        tensor.dtype.name(),
                        self.template.path().display()
                    ),
                ));
            }
            self.identical.push([from.clone(), twin]);
        }
        Ok(from)
    }

    /// The tensor of model `index` that answers to the template's; `None` for a computed buffer
    /// that the model leaves out.
    fn find(&mut self, index: usize, tensor: &TensorInfo) -> Result<Option<Located>> {
        let checkpoint = &self.inputs.models[index];
        let model = &self.recipe.models[index];
        let direct = checkpoint.get(&tensor.name);
        let aliased = || model.aliases.get(&tensor.name).and_then(|alias| checkpoint.get(alias));
        let Some(found) = direct.or_else(aliased) else {
            if is_computed_buffer(&tensor.name) {
                return Ok(None);
            }
            return Err(Error::tensor(
                checkpoint.path(),
                &tensor.name,
                format!(
                    "is missing; {} has it, and only models of one architecture can be merged",
                    self.template.path().display()
                ),
            ));
        };
        if found.shape == tensor.shape {
            return Ok(Some(located(checkpoint, found)));
        }
        let longer = found.shape.len() == tensor.shape.len()
            && found.shape.first() > tensor.shape.first()
            && found.shape.get(1..) == tensor.shape.get(1..);
        if longer && model.leading_rows.contains(&tensor.name) {
            self.notes.insert(format!(
                "{}: '{}' has {} rows and the base {}: the rows of its extra tokens are left out",
                checkpoint.path().display(),
                tensor.name,
                found.shape[0],
                tensor.shape[0]
            ));
            return Ok(Some(located(checkpoint, found)));
        }
        Err(Error::tensor(
            checkpoint.path(),
            &tensor.name,
            format!(
                "has shape {:?} and {} has {:?}; only models of one architecture can be merged",
                found.shape,
                self.template.path().display(),
                tensor.shape
            ),
        ))
    }

    /// Tensors of a model that the template does not have.
    fn check_extra_tensors(&mut self, index: usize) -> Result<()> {
        let checkpoint = &self.inputs.models[index];
        let aliases = &self.recipe.models[index].aliases;
        for tensor in checkpoint.tensors() {
            if self.template.get(&tensor.name).is_some() {
                continue;
            }
            if is_computed_buffer(&tensor.name) {
                self.notes.insert(format!(
                    "{}: buffers '*.{}' are left out; {} has none",
                    checkpoint.path().display(),
                    COMPUTED_BUFFERS[0],
                    self.template.path().display()
                ));
                continue;
            }
            if let Some(twin) = aliases.get(&tensor.name).and_then(|alias| checkpoint.get(alias)) {
                self.identical.push([located(checkpoint, twin), located(checkpoint, tensor)]);
                self.notes.insert(format!(
                    "{}: '{}' is left out: it holds the same bytes as the tensor it is tied to",
                    checkpoint.path().display(),
                    tensor.name
                ));
                continue;
            }
            return Err(Error::tensor(
                checkpoint.path(),
                &tensor.name,
                format!(
                    "is not in {}; only models of one architecture can be merged",
                    self.template.path().display()
                ),
            ));
        }
        Ok(())
    }
}

fn is_computed_buffer(name: &str) -> bool {
    COMPUTED_BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}

/// A tensor to compute with; `asked` is the template's, which is of a float dtype.
fn source(at: Located, asked: &TensorInfo) -> Result<Source> {
    let tensor = &at.tensor;
    let dtype = tensor.dtype.float().ok_or_else(|| {
        Error::tensor(
            at.checkpoint.path(),
            &tensor.name,
            format!(
                "is {} here and {} elsewhere; only BF16, F16, F32 and F64 can be merged",
                tensor.dtype.name(),
                asked.dtype.name()
            ),
        )
    })?;
    Ok(Source { at, dtype })
}

fn located(checkpoint: &Arc<Checkpoint>, tensor: &Arc<TensorInfo>) -> Located {
    Located { checkpoint: Arc::clone(checkpoint), tensor: Arc::clone(tensor) }
}
