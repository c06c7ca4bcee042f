//! Stages: tensors whose reductions run together, and the results.

use std::ops::Range;

use rayon::prelude::*;

use super::Job;
use super::pack::Packer;
use super::shards::Across;
use super::tensor::Tensor;
use super::window::{block_entries, blocks, chunks};
use crate::dtype::Real;
use crate::error::Result;
use crate::program::block::Block;
use crate::program::idle::Idle;
use crate::program::sweep::{self, Chunk, LookAtChunk, LookAtTensor, Sweep, Together, Wants};
use crate::program::{Blocks, Computed, Decision, Subject};

/// The buffers of the threads.
pub(super) type Scratch<T> = Idle<Worker<T>, Box<dyn Fn() -> Worker<T> + Sync>>;

/// The buffers of one thread.
pub(super) struct Worker<T: Real> {
    pub(super) block: Block<T>,
    /// The masks of a block that is merged in one pass.
    pub(super) masks: Vec<u8>,
    /// A chunk's output, as it is written to a file.
    pub(super) bytes: Vec<u8>,
    /// The same of a quantised output.
    pub(super) packer: Packer<T>,
}

/// The results of the program's reductions for a stage. They do not depend on the weights.
pub(super) struct Decided<T: Real> {
    /// The decision of every step, by tensor.
    pub(super) steps: Vec<Vec<Decision<T>>>,
    /// The results of the combination's reductions, by tensor.
    pub(super) found: Vec<Vec<f64>>,
}

/// Tensors of one precision whose reductions run together.
pub(super) struct Stage<'s, 'm, T: Real> {
    pub(super) job: &'s Job<'s>,
    pub(super) tensors: &'s [Tensor<'m>],
    pub(super) chunks: Vec<Chunk>,
    pub(super) division: Blocks,
    pub(super) scratch: Scratch<T>,
    across: Option<Across<'s, 'm>>,
    subjects: Vec<Subject<'m>>,
}

impl<'s, 'm, T: Computed> Stage<'s, 'm, T> {
    pub(super) fn new(job: &'s Job<'s>, tensors: &'s [Tensor<'m>]) -> Self {
        let models = tensors.first().map_or(0, Tensor::experts);
        let division = job.program.blocks();
        let capacity = block_entries(tensors, division);
        tensors.iter().for_each(Tensor::prepare::<T>);
        Self {
            job,
            tensors,
            chunks: chunks::<T>(tensors, division, job.options.chunk_bytes),
            division,
            scratch: Idle::new(Box::new(move || Worker {
                block: Block::new(models, capacity),
                masks: Vec::new(),
                bytes: Vec::new(),
                packer: Packer::default(),
            })),
            across: job.share.map(|share| Across { share, tensors, output: job.output }),
            subjects: tensors.iter().map(Tensor::subject).collect(),
        }
    }

    /// Run the program's reductions: those of every step, over entries as the steps before it leave
    /// them, then those of the combination.
    pub(super) fn decide(&self) -> Result<Decided<T>> {
        let program = &self.job.program;
        let mut decided = Decided { steps: Vec::new(), found: Vec::new() };
        for step in &program.steps {
            let sweep = Deciding { stage: self, steps: &decided.steps };
            let found = T::step(&**step).decide(&sweep)?;
            decided.steps.push(found);
        }
        let sweep = Deciding { stage: self, steps: &decided.steps };
        decided.found = T::combine(&*program.combine).reduce(&sweep)?;
        Ok(decided)
    }

    /// A chunk's blocks.
    pub(super) fn blocks(&self, chunk: &Chunk) -> impl Iterator<Item = Range<usize>> + use<T> {
        blocks(chunk, &self.tensors[chunk.tensor], self.division)
    }
}

/// The state that each step carries from block to block, at the start of a chunk of a tensor.
pub(super) fn carried<T: Real>(
    steps: &[Vec<Decision<T>>],
    tensor: usize,
    chunk: usize,
) -> Vec<Vec<u64>> {
    steps.iter().map(|step| step[tensor].carried(chunk)).collect()
}

/// A sweep over a stage while the first of the program's steps are decided.
struct Deciding<'d, 's, 'm, T: Real> {
    stage: &'d Stage<'s, 'm, T>,
    steps: &'d [Vec<Decision<T>>],
}

impl<T: Computed> Deciding<'_, '_, '_, T> {
    /// Read the active rows of a block and apply the decided steps to them.
    fn read(
        &self,
        tensor: usize,
        entries: Range<usize>,
        carried: &mut [Vec<u64>],
        block: &mut Block<T>,
    ) {
        let found = &self.stage.tensors[tensor];
        block.start(entries.clone());
        found.read_base(entries, block.parts().base);
        for model in 0..block.models() {
            if block.is_active(model) {
                found.read_row(model, block);
            }
        }
        for (step, carried) in self.steps.iter().zip(carried) {
            step[tensor].apply(block, carried, None);
        }
    }
}

impl<T: Computed> Sweep<T> for Deciding<'_, '_, '_, T> {
    fn subjects(&self) -> &[Subject<'_>] {
        &self.stage.subjects
    }

    fn chunks(&self) -> &[Chunk] {
        &self.stage.chunks
    }

    fn is_brief(&self) -> bool {
        self.stage.job.is_brief
    }

    fn read_chunks(&self, wants: Wants, look: LookAtChunk<T>) -> Result<()> {
        let stage = self.stage;
        stage.chunks.par_iter().enumerate().try_for_each(|(place, chunk)| {
            let tensor = &stage.tensors[chunk.tensor];
            if !(0..tensor.experts()).any(|model| wants(chunk.tensor, model)) {
                return Ok(());
            }
            stage.job.monitor.check()?;
            stage.scratch.lend(|worker| {
                worker.block.activate(|model| wants(chunk.tensor, model));
                let mut blocks = ChunkBlocks {
                    sweep: self,
                    tensor: chunk.tensor,
                    rest: stage.blocks(chunk),
                    carried: carried(self.steps, chunk.tensor, chunk.place),
                    block: &mut worker.block,
                };
                look(place, chunk, &mut blocks);
            });
            stage.job.monitor.advance(tensor.entry_bytes * chunk.entries.len() as u64);
            Ok(())
        })
    }

    fn visit_tensors(&self, look: LookAtTensor<T>) -> Result<()> {
        let stage = self.stage;
        (0..stage.tensors.len()).into_par_iter().try_for_each(|tensor| {
            stage.job.monitor.check()?;
            stage.scratch.lend(|worker| {
                worker.block.activate(|_| true);
                look(tensor, &mut TensorReader { sweep: self, tensor, block: &mut worker.block });
            });
            Ok(())
        })
    }

    fn together(&self) -> Option<&dyn Together> {
        self.stage.across.as_ref().map(|across| across as _)
    }
}

struct ChunkBlocks<'b, 'd, 's, 'm, T: Real, I> {
    sweep: &'b Deciding<'d, 's, 'm, T>,
    tensor: usize,
    rest: I,
    carried: Vec<Vec<u64>>,
    block: &'b mut Block<T>,
}

impl<T: Computed, I: Iterator<Item = Range<usize>>> sweep::Blocks<T>
    for ChunkBlocks<'_, '_, '_, '_, T, I>
{
    fn next(&mut self) -> Option<&mut Block<T>> {
        let entries = self.rest.next()?;
        self.sweep.stage.tensors[self.tensor].prefetch_after(&entries);
        self.sweep.read(self.tensor, entries, &mut self.carried, self.block);
        Some(self.block)
    }
}

struct TensorReader<'b, 'd, 's, 'm, T: Real> {
    sweep: &'b Deciding<'d, 's, 'm, T>,
    tensor: usize,
    block: &'b mut Block<T>,
}

impl<T: Computed> sweep::Reader<T> for TensorReader<'_, '_, '_, '_, T> {
    fn read(&mut self, entries: Range<usize>) -> &mut Block<T> {
        let mut nothing = vec![Vec::new(); self.sweep.steps.len()];
        self.sweep.read(self.tensor, entries, &mut nothing, self.block);
        self.block
    }
}
