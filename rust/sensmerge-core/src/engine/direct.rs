//! Blocks that are merged in one pass, from stored bytes to stored bytes: where programs have a common form,
//! and inputs and output one dtype.

use std::ops::Range;

use super::stage::{Decided, Stage};
use super::tensor::StoredInputs;
use super::write::Combination;
use crate::dtype::{Float, Real};
use crate::kernel::one_pass::{self, MOST_MODELS, Merge, Sparsity, merge};
use crate::program::sweep::Chunk;
use crate::program::{Computed, Form, Kept, Known, Operand};

/// A chunk of a tensor that is merged in one pass.
pub(super) struct Direct<'t> {
    inputs: StoredInputs<'t>,
    sparsities: Sparsities,
    weights: Vec<f32>,
    combination: Combined,
    lambda: f32,
}

enum Combined {
    Sum { divisor: Option<f32> },
    Elected { votes: Vec<f32>, shares: Vec<f32>, draw: f32 },
}

/// What is done with the models' task vectors.
enum Sparsities {
    Dense,
    /// What is kept of every model that drops entries, and the models' factors.
    Masked {
        kept: Vec<Option<Kept>>,
        scales: Vec<f32>,
    },
    Trimmed {
        least: Vec<i32>,
        scales: Vec<f32>,
    },
}

impl<'t> Direct<'t> {
    /// A chunk; `None` if it needs more than one pass. All is computed in float32.
    pub(super) fn of<T: Computed>(
        stage: &Stage<'_, 't, T>,
        decided: &Decided<T>,
        combination: &Combination<T>,
        chunk: &Chunk,
    ) -> Option<Self> {
        let tensor = &stage.tensors[chunk.tensor];
        let form = combination.join.form()?;
        let inputs = tensor.stored()?;
        let based = stage.job.program.operand == Operand::TaskVectors;
        let served = size_of::<T>() == size_of::<f32>()
            && inputs.dtype != Float::F64
            && inputs.dtype == tensor.dtype
            && inputs.experts.len() <= MOST_MODELS
            && inputs.base.is_some() == based
            && tensor.matrices.is_none()
            && combination.factors.is_none();
        let plain = based || (decided.steps.is_empty() && matches!(form, Form::Sum { .. }));
        if !served || !plain {
            return None;
        }
        let (weights, combined) = match form {
            Form::Sum { weights, divisor } => {
                (weights, Combined::Sum { divisor: divisor.map(single) })
            }
            Form::Elected { weights, votes, shares, draw } => {
                let (votes, shares) = (singles(votes), singles(&shares));
                (weights, Combined::Elected { votes, shares, draw: single(draw) })
            }
        };
        Some(Self {
            sparsities: Sparsities::of(decided, chunk, inputs.experts.len())?,
            weights: singles(weights),
            combination: combined,
            lambda: single(combination.lambda),
            inputs,
        })
    }

    /// Merge a block into `out`; `masks` is room for the models' masks.
    ///
    /// # Returns
    /// Whether `out` is right. Otherwise the block has to be merged step by step, which tells why.
    pub(super) fn merge(
        &self,
        entries: &Range<usize>,
        masks: &mut Vec<u8>,
        out: &mut [u8],
    ) -> bool {
        let sparsity = match &self.sparsities {
            Sparsities::Dense => Sparsity::Dense,
            Sparsities::Trimmed { least, scales } => Sparsity::Trimmed { least, scales },
            Sparsities::Masked { kept, scales } => {
                masks.resize(kept.len() * entries.len(), 0);
                for (kept, keep) in kept.iter().zip(masks.chunks_exact_mut(entries.len())) {
                    match kept {
                        Some(kept) => kept.mask(entries.start, keep),
                        None => keep.fill(1),
                    }
                }
                Sparsity::Masked { scales }
            }
        };
        let combination = match &self.combination {
            Combined::Sum { divisor } => one_pass::Combination::Sum { divisor: *divisor },
            Combined::Elected { votes, shares, draw } => {
                one_pass::Combination::Elected { votes, shares, draw: *draw }
            }
        };
        let what = Merge {
            dtype: self.inputs.dtype,
            models: &self.inputs.experts,
            base: self.inputs.base,
            sparsity,
            weights: &self.weights,
            combination,
            lambda: self.lambda,
        };
        merge(&what, masks, entries.start, out)
    }
}

impl Sparsities {
    /// What the steps do in a chunk, if it is known without the entries, and if no more than one step does
    /// anything.
    fn of<T: Computed>(decided: &Decided<T>, chunk: &Chunk, models: usize) -> Option<Self> {
        let mut found = Self::Dense;
        for step in &decided.steps {
            let known = |model| step[chunk.tensor].known(model, chunk.place, None);
            let known: Vec<Known<T>> = (0..models).map(known).collect::<Option<_>>()?;
            if known.iter().all(Known::is_nothing) {
                continue;
            }
            if !matches!(found, Self::Dense) {
                return None;
            }
            found = Self::masked(&known).or_else(|| Self::trimmed(&known))?;
        }
        Some(found)
    }

    fn masked<T: Real>(known: &[Known<T>]) -> Option<Self> {
        let of_model = |known: &Known<T>| match known {
            Known::Drop { kept, scale } => Some((Some(kept.clone()), single(*scale))),
            Known::Trim { .. } => known.is_nothing().then_some((None, 1.0)),
        };
        let models: Vec<(Option<Kept>, f32)> = known.iter().map(of_model).collect::<Option<_>>()?;
        let (kept, scales) = models.into_iter().unzip();
        Some(Self::Masked { kept, scales })
    }

    fn trimmed<T: Real>(known: &[Known<T>]) -> Option<Self> {
        let of_model = |known: &Known<T>| match *known {
            Known::Trim { least, scale } => {
                let least: i64 = least.into();
                Some((least.try_into().ok()?, single(scale)))
            }
            Known::Drop { .. } => None,
        };
        let models: Vec<(i32, f32)> = known.iter().map(of_model).collect::<Option<_>>()?;
        let (least, scales) = models.into_iter().unzip();
        Some(Self::Trimmed { least, scales })
    }
}

fn single<T: Real>(value: T) -> f32 {
    value.to_f64() as f32
}

fn singles<T: Real>(values: &[T]) -> Vec<f32> {
    values.iter().copied().map(single).collect()
}
