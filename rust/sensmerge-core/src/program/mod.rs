//! What a method computes, as parts that are put together: an operand, steps that make task vectors
//! sparse, and one way to combine what is left.
//!
//! A part may have to look at all entries of a tensor, or of the model, before it can work on any of
//! them: a threshold, a norm, the angle between two tensors. Such a look is a [`Reduction`]: partial
//! results over blocks of entries, merged into one. The parts say which reductions they need; who
//! reads the entries, on which threads and on which machine, is the engine's matter, which hands a
//! [`Sweep`] to them. Nothing here knows files or threads.
//!
//! A new part is one file here. It is generic over the computing type; [`Step`] and [`Combine`] put
//! both instances behind one name.

pub mod block;
pub mod disjoint;
pub mod gram;
pub mod idle;
pub mod random_drop;
pub mod rescale;
mod sample;
mod select;
pub mod sum;
pub mod sweep;
pub mod trim;

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use crate::dtype::Real;
use crate::error::Result;
use block::Block;
pub use sweep::{Reduction, Sweep};

/// What is combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The models' parameters themselves.
    Parameters,
    /// Their differences from the base. The combination is multiplied by `lambda`, where the method
    /// has one, and added to the base.
    TaskVectors,
}

/// How many entries a reduction looks at before it can say anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Those of one tensor.
    Tensor,
    /// Those of all tensors.
    Model,
}

/// How a tensor is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// Runs of entries, wherever rows end.
    Flat,
    /// Runs within a row (along the last axis), and whole rows in a chunk.
    Rows,
}

/// A method with its choices made.
#[derive(Debug)]
pub struct Program {
    /// What is combined.
    pub operand: Operand,
    /// How task vectors are made sparse, in this order.
    pub steps: Vec<Box<dyn Step>>,
    /// How they are combined.
    pub combine: Box<dyn Combine>,
}

impl Program {
    /// Put a program together.
    pub fn new(
        operand: Operand,
        steps: Vec<Box<dyn Step>>,
        combine: impl Combine + 'static,
    ) -> Self {
        Self { operand, steps, combine: Box::new(combine) }
    }

    /// The widest scope of its reductions.
    #[must_use]
    pub fn scope(&self) -> Scope {
        let steps = self.steps.iter().map(|step| step.scope()).max();
        steps.unwrap_or(Scope::Tensor).max(self.combine.scope())
    }

    /// The parameters that decide which entries are kept, and what they are multiplied by.
    #[must_use]
    pub fn sparsifying_parameters(&self) -> Vec<&'static str> {
        self.steps.iter().flat_map(|step| step.parameters()).collect()
    }

    /// How often the inputs are read for the reductions that these `subjects` need, as a rule.
    #[must_use]
    pub fn sweeps(&self, subjects: &[Subject]) -> u64 {
        self.steps.iter().map(|step| step.sweeps(subjects)).sum::<u64>() + self.combine.sweeps()
    }
}

/// A part of a program that changes task vectors entry by entry.
pub trait Step: StepOn<f32> + StepOn<f64> + Debug {
    /// The scope of its reductions.
    fn scope(&self) -> Scope {
        Scope::Tensor
    }

    /// The parameters that it reads.
    fn parameters(&self) -> Vec<&'static str>;

    /// How often its reductions read the inputs, as a rule.
    fn sweeps(&self, subjects: &[Subject]) -> u64;
}

/// A [`Step`] in one computing type.
pub trait StepOn<T: Real>: Send + Sync {
    /// Do the reductions that are needed before any entry can be changed.
    ///
    /// The rows that `sweep` reads are as the steps before this one leave them.
    ///
    /// # Returns
    /// What changes the rows of every tensor, in the order of the sweep's subjects.
    ///
    /// # Errors
    /// What the sweep finds, [`Error::Interrupted`](crate::Error::Interrupted) for one.
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>>;
}

/// The computing types, which know their own instance of every part.
pub trait Computed: Real {
    /// A step in this type.
    fn step(step: &dyn Step) -> &dyn StepOn<Self>;
    /// A combination in this type.
    fn combine(combine: &dyn Combine) -> &dyn CombineOn<Self>;
}

macro_rules! computed {
    ($type:ty) => {
        impl Computed for $type {
            fn step(step: &dyn Step) -> &dyn StepOn<Self> {
                step
            }

            fn combine(combine: &dyn Combine) -> &dyn CombineOn<Self> {
                combine
            }
        }
    };
}
computed!(f32);
computed!(f64);

/// A step that is decided for one tensor.
pub type Decision<T> = Box<dyn Apply<T>>;

/// What a decided step does to the rows of one tensor.
pub trait Apply<T: Real>: Send + Sync {
    /// Whether it changes the rows of a model at all.
    fn changes(&self, model: usize) -> bool;

    /// Whether it may set an entry to 0 that is NaN.
    fn may_hide_nan(&self, model: usize) -> bool {
        let _ = model;
        false
    }

    /// What is carried from block to block of a chunk, at its start: a number a model, or nothing.
    fn carried(&self, chunk: usize) -> Vec<u64> {
        let _ = chunk;
        Vec::new()
    }

    /// Change the active rows of a block; multiply what is kept by `scales`, a number a model.
    fn apply(&self, block: &mut Block<T>, carried: &mut [u64], scales: Option<&[T]>);
}

/// A part of a program that makes one row of several.
pub trait Combine: CombineOn<f32> + CombineOn<f64> + Debug {
    /// The scope of its reductions.
    fn scope(&self) -> Scope {
        Scope::Tensor
    }

    /// How it wants tensors to be cut into blocks.
    fn blocks(&self) -> Blocks {
        Blocks::Flat
    }

    /// How often its reductions read the inputs.
    fn sweeps(&self) -> u64 {
        0
    }

    /// Its reductions in words: combinations that say the same can use each other's results.
    fn reductions(&self) -> String {
        String::new()
    }

    /// Refuse numbers that it cannot combine with.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) that names the parameter and the tensor.
    fn check(&self, subject: &Subject) -> Result<()> {
        let _ = subject;
        Ok(())
    }
}

/// A [`Combine`] in one computing type.
pub trait CombineOn<T: Real>: Send + Sync {
    /// Do the reductions that are needed before any row can be combined. No weight has a say in
    /// them, so that they serve merges with other weights too.
    ///
    /// # Returns
    /// What was found for every tensor, in the order of the sweep's subjects.
    ///
    /// # Errors
    /// What the sweep finds.
    fn reduce(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Vec<f64>>> {
        Ok(vec![Vec::new(); sweep.subjects().len()])
    }

    /// Get ready to combine the rows of one tensor.
    fn bind(&self, subject: &Subject, found: &[f64]) -> Box<dyn Join<T>>;
}

/// Combines the rows of one tensor.
pub trait Join<T: Real>: Send + Sync {
    /// Combine the rows of a block into its output.
    fn join(&self, block: &mut Block<T>);

    /// `Σ_j g_j ∂out_j/∂w_i` over a block, for the weight of every model; `None` where the weights
    /// cannot be learned. What is kept and the signs that are elected are held fixed. The rows may
    /// be overwritten.
    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        let _ = (block, gradient);
        None
    }
}

/// What a program may know of a tensor besides its entries.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'s> {
    /// Its name.
    pub name: &'s str,
    /// Its shape.
    pub shape: &'s [usize],
    /// How many models are merged in it.
    pub models: usize,
    /// Its numbers, by parameter.
    pub numbers: &'s Numbers,
    /// Key of the random streams.
    pub seed: u64,
}

impl Subject<'_> {
    /// Number of entries.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Length of a row: of the last axis, of which a scalar has one entry.
    #[must_use]
    pub fn row_length(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The merge's number for a parameter.
    ///
    /// # Panics
    /// If the manifest has none; it is checked against the method's schema.
    #[must_use]
    pub fn number(&self, parameter: &str) -> f64 {
        match self.numbers.get(parameter) {
            Some(Number::Merge(number)) => *number,
            _ => panic!("'{}' has no number for {parameter}", self.name),
        }
    }

    /// The merge's number for a parameter that not every method has.
    #[must_use]
    pub fn number_or(&self, parameter: &str, default: f64) -> f64 {
        if self.numbers.contains_key(parameter) { self.number(parameter) } else { default }
    }

    /// Every model's number for a parameter.
    ///
    /// # Panics
    /// If the manifest has none; it is checked against the method's schema.
    #[must_use]
    pub fn numbers(&self, parameter: &str) -> &[f64] {
        match self.numbers.get(parameter) {
            Some(Number::Models(numbers)) => numbers,
            _ => panic!("'{}' has no numbers for {parameter}", self.name),
        }
    }
}

/// The numbers of one tensor, by the name of their parameter.
pub type Numbers = BTreeMap<String, Number>;

/// A parameter's value for one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// The merge's.
    Merge(f64),
    /// Every model's, in the order of the models.
    Models(Vec<f64>),
}
