//! Blocks that are merged in one pass, from stored bytes to stored bytes: of common forms of programs, where
//! all inputs are stored in one dtype.

use std::ops::Range;

use super::stage::{Decided, Stage};
use super::write::Combination;
use crate::dtype::Float;
use crate::kernel::one_pass::{self, Addend, MOST_ELECTED, Merge, merge};
use crate::kernel::strip::is_entry;
use crate::program::block::BLOCK;
use crate::program::sweep::Chunk;
use crate::program::{Blocks, Computed, Known, Operand};
use crate::random::Stream;

/// Words of a block's mask, of 32 entries each.
const WORDS: usize = BLOCK / 32;

/// A chunk of a tensor that is merged in one pass.
pub(super) struct Direct<'t> {
    from: Float,
    to: Float,
    base: Option<&'t [u8]>,
    addends: Vec<Addend<'t>>,
    /// By model, what its mask is drawn from.
    drops: Vec<Option<(Stream, f64)>>,
    combination: one_pass::Combination,
    lambda: f32,
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
        let single = size_of::<T>() == size_of::<f32>();
        let served = single && is_entry(inputs.dtype) && is_entry(tensor.dtype);
        let elected = matches!(form.combination, one_pass::Combination::Elected { .. });
        let damped = combination.factors.is_some();
        let many = elected && inputs.experts.len() > MOST_ELECTED;
        // Blocks of other divisions may be longer than a mask.
        let cut = stage.division != Blocks::Flat || tensor.matrices.is_some();
        if !served || many || damped || cut || based != inputs.base.is_some() {
            return None;
        }
        let single = |value: T| value.to_f64() as f32;
        let mut addends = Vec::with_capacity(inputs.experts.len());
        let mut drops = vec![None; inputs.experts.len()];
        for (model, stored) in inputs.experts.into_iter().enumerate() {
            let weight = single(form.weights[model]);
            let mut addend = Addend { stored, weight, masked: None, least: 0, scale: 1.0 };
            for step in &decided.steps {
                // Masks come first, then trimming, then the factor.
                let changed = addend.least > 0 || addend.scale != 1.0;
                match step[chunk.tensor].known(model, chunk.place, None)? {
                    Known::Drop { stream, density, scale } => {
                        if changed || addend.masked.is_some() {
                            return None;
                        }
                        drops[model] = Some((stream, density));
                        addend.masked = Some(single(scale));
                    }
                    Known::Trim { least, scale } => {
                        let least: i64 = least.into();
                        if least == 0 && scale == T::ONE {
                            continue;
                        }
                        if changed {
                            return None;
                        }
                        addend.least = least.try_into().ok()?;
                        addend.scale = single(scale);
                    }
                }
            }
            addends.push(addend);
        }
        Some(Self {
            from: inputs.dtype,
            to: tensor.dtype,
            base: inputs.base,
            addends,
            drops,
            combination: form.combination,
            lambda: single(combination.lambda),
        })
    }

    /// Merge a block into `out`; `masks` is room for the models' masks.
    ///
    /// # Returns
    /// Whether `out` is right. Otherwise the block has to be merged step by step, which tells why.
    pub(super) fn merge(
        &self,
        entries: &Range<usize>,
        masks: &mut Vec<u32>,
        out: &mut [u8],
    ) -> bool {
        masks.resize(self.drops.len() * WORDS, 0);
        for (drop, mask) in self.drops.iter().zip(masks.chunks_exact_mut(WORDS)) {
            if let Some((stream, density)) = drop {
                let words = entries.len().div_ceil(32);
                stream.mask(entries.start as u64, *density, &mut mask[..words]);
            }
        }
        let what = Merge {
            dtype: self.from,
            addends: &self.addends,
            base: self.base,
            combination: self.combination,
            lambda: self.lambda,
        };
        merge(&what, masks, entries.start, self.to, out)
    }
}
