//! A tensor being merged, whose inputs are read block by block.

use std::ops::Range;

use super::entries::Entries;
use super::inputs::Inputs;
use crate::dtype::{Float, Real};
use crate::error::Result;
use crate::kernel::task_vector::{subtract, subtract_stored};
use crate::manifest::{Content, Damping, Manifest, Merge, Output};
use crate::program::Subject;
use crate::program::block::{BLOCK, Block};

/// The floating-point type that a tensor is computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    /// float32, if no input is float64.
    Single,
    /// float64, if an input is float64: of the tensor, or of any tensor where a threshold is shared by
    /// the whole model.
    Double,
}

/// The inputs of a tensor as they are stored.
pub(super) struct StoredInputs<'m> {
    pub(super) dtype: Float,
    pub(super) base: Option<&'m [u8]>,
    pub(super) experts: Vec<&'m [u8]>,
}

/// A tensor being merged.
pub(super) struct Tensor<'m> {
    /// Its index in the manifest.
    pub(super) place: usize,
    pub(super) output: &'m Output,
    pub(super) merge: &'m Merge,
    pub(super) precision: Precision,
    /// The shape of its matrices, if the program takes them as wholes.
    pub(super) matrices: Option<[usize; 2]>,
    /// Whether a function merges it as a whole.
    pub(super) whole: bool,
    /// The dtype it is rounded to.
    pub(super) dtype: Float,
    seed: u64,
    base: Option<Entries<'m>>,
    experts: Vec<Entries<'m>>,
    statistics: Vec<Entries<'m>>,
    /// The activations that damp it, and their number.
    activations: Option<(Entries<'m>, usize)>,
    /// Whether statistics have the tensor's shape.
    statistics_are_alike: bool,
    /// Size in bytes of one entry in all inputs together, for reporting progress.
    pub(super) entry_bytes: u64,
}

impl<'m> Tensor<'m> {
    /// Every tensor of a manifest that is merged.
    pub(super) fn all(manifest: &'m Manifest, inputs: &'m Inputs) -> Result<Vec<Self>> {
        let places = 0..manifest.tensors.len();
        places.filter_map(|place| Self::at(manifest, inputs, place).transpose()).collect()
    }

    /// The tensor at an index of the manifest; `None` if it is copied.
    pub(super) fn at(
        manifest: &'m Manifest,
        inputs: &'m Inputs,
        place: usize,
    ) -> Result<Option<Self>> {
        let output = &manifest.tensors[place];
        let (Content::Merge(merge), Some(dtype)) = (&output.content, output.dtype.float()) else {
            return Ok(None);
        };
        let of = |source| Entries::of(source, inputs);
        let base = merge.base.as_ref().map(of).transpose()?;
        let experts = merge.experts.iter().map(of).collect::<Result<Vec<_>>>()?;
        let statistics = merge.statistics.iter().map(of).collect::<Result<Vec<_>>>()?;
        let of_damping = |damping: &'m Damping| -> Result<_> {
            let count = damping.activations.shape().iter().product();
            Ok((of(&damping.activations)?, count))
        };
        let activations = merge.damping.as_ref().map(of_damping).transpose()?;
        let mut sources = merge.base.iter().chain(&merge.experts);
        let double = sources.any(|source| source.dtype() == Some(Float::F64));
        let alike = merge.statistics.iter().all(|source| source.shape() == output.shape);
        Ok(Some(Self {
            place,
            output,
            merge,
            precision: if double { Precision::Double } else { Precision::Single },
            matrices: None,
            whole: false,
            dtype,
            seed: manifest.seed,
            entry_bytes: (base.iter().chain(&experts))
                .chain(statistics.iter().filter(|_| alike))
                .map(Entries::entry_bytes)
                .sum(),
            base,
            experts,
            statistics,
            activations,
            statistics_are_alike: alike,
        }))
    }

    /// Its description for the program.
    pub(super) fn subject(&self) -> Subject<'m> {
        self.merge.subject(self.output, self.seed)
    }

    /// Number of entries.
    pub(super) fn elements(&self) -> usize {
        self.output.elements()
    }

    /// Number of models.
    pub(super) fn experts(&self) -> usize {
        self.experts.len()
    }

    /// Compute what is needed of whole inputs before their entries are read.
    pub(super) fn prepare<T: Real>(&self) {
        let inputs = self.base.iter().chain(&self.experts).chain(&self.statistics);
        inputs.for_each(Entries::prepare::<T>);
    }

    /// The bytes of base and experts, if all are stored in one dtype.
    pub(super) fn stored(&self) -> Option<StoredInputs<'m>> {
        let inputs = self.experts.iter().chain(&self.base);
        let stored = inputs.map(|input| input.stored(&(0..self.elements())));
        let stored: Vec<(&[u8], Float)> = stored.collect::<Option<_>>()?;
        let (_, dtype) = *stored.first()?;
        let same = stored.iter().all(|(_, other)| *other == dtype);
        let mut experts: Vec<&[u8]> = stored.into_iter().map(|(bytes, _)| bytes).collect();
        let base = self.base.as_ref().and_then(|_| experts.pop());
        same.then_some(StoredInputs { dtype, base, experts })
    }

    /// Read the base's entries; leaves `out` as it is if parameters themselves are combined.
    pub(super) fn read_base<T: Real>(&self, entries: Range<usize>, out: &mut [T]) {
        if let Some(base) = &self.base {
            base.read(entries, out);
        }
    }

    /// Read an expert's parameters.
    pub(super) fn read_expert<T: Real>(&self, expert: usize, entries: Range<usize>, out: &mut [T]) {
        self.experts[expert].read(entries, out);
    }

    /// Whether there are statistics of the experts.
    pub(super) fn is_measured(&self) -> bool {
        !self.statistics.is_empty()
    }

    /// Read an expert's statistic, in its own entries.
    pub(super) fn read_statistic<T: Real>(
        &self,
        expert: usize,
        entries: Range<usize>,
        out: &mut [T],
    ) {
        self.statistics[expert].read(entries, out);
    }

    /// The activations that damp it; none if it is not damped.
    pub(super) fn activations(&self) -> Vec<f64> {
        let Some((entries, count)) = &self.activations else { return Vec::new() };
        let mut found = vec![0.0; *count];
        entries.read(0..*count, &mut found);
        found
    }

    /// Read an expert's row of a block: its task vector, if there is a base, which is read already.
    pub(super) fn read_row<T: Real>(&self, expert: usize, block: &mut Block<T>) {
        let entries = block.entries();
        match self.experts[expert].stored(&entries) {
            Some((stored, dtype)) if self.base.is_some() => {
                let (base, row) = block.base_and_row(expert);
                subtract_stored(dtype, stored, base, row);
            }
            _ => {
                self.read_expert(expert, entries, block.row_mut(expert));
                self.subtract_base(expert, block);
            }
        }
    }

    /// Turn an expert's row of a block into the task vector's, if task vectors are combined.
    pub(super) fn subtract_base<T: Real>(&self, expert: usize, block: &mut Block<T>) {
        if self.base.is_some() {
            let (base, row) = block.base_and_row(expert);
            subtract(row, base);
        }
    }

    /// Prefetch the block after this one, of every input: memory then works while the processor
    /// computes, which saves a quarter of a merge's time.
    pub(super) fn prefetch_after(&self, entries: &Range<usize>) {
        let next = entries.end..self.elements().min(entries.end + BLOCK);
        for input in self.base.iter().chain(&self.experts) {
            input.prefetch(next.clone());
        }
        // Those of whole matrices have a shape of their own.
        for statistic in self.statistics.iter().filter(|_| self.statistics_are_alike) {
            statistic.prefetch(next.clone());
        }
    }
}
