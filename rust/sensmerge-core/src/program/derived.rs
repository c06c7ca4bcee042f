//! A sweep over numbers that are computed from the rows of all models, one or several for every entry:
//! thresholds are then found among them as among the magnitudes of task vectors.

use std::ops::Range;

use super::Subject;
use super::block::Block;
use super::sweep::{Blocks, Chunk, LookAtChunk, LookAtTensor, Reader, Sweep, Together, Wants};
use crate::dtype::Real;
use crate::error::Result;

/// Replaces the first rows of a block of a tensor by the numbers.
pub(super) type Derive<'f, T> = &'f (dyn Fn(usize, &mut Block<T>) + Sync);

/// The sweep. Its subjects seem to have as many models as there are numbers for an entry.
pub(super) struct Derived<'s, T: Real> {
    sweep: &'s dyn Sweep<T>,
    subjects: Vec<Subject<'s>>,
    derive: Derive<'s, T>,
}

impl<'s, T: Real> Derived<'s, T> {
    /// A sweep over one number for every entry.
    pub(super) fn new(sweep: &'s dyn Sweep<T>, derive: Derive<'s, T>) -> Self {
        let one = |subject: &Subject<'s>| Subject { models: 1, ..*subject };
        Self { sweep, subjects: sweep.subjects().iter().map(one).collect(), derive }
    }

    /// A sweep over a number of every model for every entry.
    pub(super) fn of_models(sweep: &'s dyn Sweep<T>, derive: Derive<'s, T>) -> Self {
        Self { sweep, subjects: sweep.subjects().to_vec(), derive }
    }
}

impl<T: Real> Sweep<T> for Derived<'_, T> {
    fn subjects(&self) -> &[Subject<'_>] {
        &self.subjects
    }

    fn chunks(&self) -> &[Chunk] {
        self.sweep.chunks()
    }

    fn is_brief(&self) -> bool {
        self.sweep.is_brief()
    }

    fn read_chunks(&self, wants: Wants, look: LookAtChunk<T>) -> Result<()> {
        let wants = |tensor: usize, _: usize| {
            (0..self.subjects[tensor].models).any(|row| wants(tensor, row))
        };
        self.sweep.read_chunks(&wants, &|place, chunk, blocks| {
            look(place, chunk, &mut DerivedBlocks { sweep: self, tensor: chunk.tensor, blocks });
        })
    }

    fn visit_tensors(&self, look: LookAtTensor<T>) -> Result<()> {
        self.sweep.visit_tensors(&|tensor, reader| {
            look(tensor, &mut DerivedReader { sweep: self, tensor, reader });
        })
    }

    fn together(&self) -> Option<&dyn Together> {
        self.sweep.together()
    }
}

struct DerivedBlocks<'b, 's, T: Real> {
    sweep: &'b Derived<'s, T>,
    tensor: usize,
    blocks: &'b mut dyn Blocks<T>,
}

impl<T: Real> Blocks<T> for DerivedBlocks<'_, '_, T> {
    fn next(&mut self) -> Option<&mut Block<T>> {
        let block = self.blocks.next()?;
        (self.sweep.derive)(self.tensor, block);
        Some(block)
    }
}

struct DerivedReader<'b, 's, T: Real> {
    sweep: &'b Derived<'s, T>,
    tensor: usize,
    reader: &'b mut dyn Reader<T>,
}

impl<T: Real> Reader<T> for DerivedReader<'_, '_, T> {
    fn read(&mut self, entries: Range<usize>) -> &mut Block<T> {
        let block = self.reader.read(entries);
        (self.sweep.derive)(self.tensor, block);
        block
    }
}
