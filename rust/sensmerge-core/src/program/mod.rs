//! The computation of a method, composed of parts: an operand (parameters or task vectors), steps that
//! make task vectors sparse or rescale them, and a combination of the rows of all models into one.
//!
//! A part may need a result over all entries of a tensor, or of the model, before it can change any of
//! them: a threshold, a norm, the angle between two tensors. It is computed by a [`Reduction`], whose
//! partial results over blocks of entries are merged into one. A part runs its reductions on a
//! [`Sweep`], with which the engine reads the entries; nothing here depends on files or threads.
//!
//! Where rows are not enough, a program combines whole matrices instead ([`matrix`]). Programs of methods
//! from outside the crate call a function ([`function`]).
//!
//! A new part is one file here. It is generic over the computing type; the traits [`Step`] and
//! [`Combine`] stand for its instances in both types.

pub(crate) mod balance;
pub(crate) mod band;
pub(crate) mod block;
pub(crate) mod changed;
pub(crate) mod claims;
mod columns;
mod cut;
mod derived;
pub(crate) mod disjoint;
pub(crate) mod function;
pub(crate) mod fusion;
pub(crate) mod gram;
pub(crate) mod idle;
pub(crate) mod importance;
pub(crate) mod largest;
pub(crate) mod matrix;
pub(crate) mod near;
pub(crate) mod random_drop;
pub(crate) mod ranked_drop;
pub(crate) mod rescale;
mod sample;
mod select;
pub(crate) mod significance;
pub(crate) mod singular;
pub(crate) mod solve;
pub(crate) mod sum;
pub(crate) mod sweep;
mod threshold;
pub(crate) mod trim;
pub(crate) mod variance;

use std::fmt::Debug;
use std::sync::Arc;

use crate::dtype::Real;
use crate::error::Result;
use crate::numbers::{Number, Numbers};
use crate::random::{self, Stream};
use block::Block;
use function::{Call, Called, Failure, Function};
use matrix::CombineMatrices;
pub(crate) use sweep::{Reduction, Sweep};

/// The tensors that are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    /// The models' parameters themselves.
    Parameters,
    /// Their differences from the base. The combination is multiplied by `lambda`, if the method has
    /// that parameter, and added to the base.
    TaskVectors,
}

/// The range of entries over which a reduction has one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// One tensor.
    Tensor,
    /// All tensors.
    Model,
}

/// The division of a tensor into blocks, the least demanding first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Blocks {
    /// Runs of entries that may cross the end of a row.
    Flat,
    /// Runs within a row (along the last axis); chunks hold whole rows.
    Rows,
    /// One whole row, or several short ones.
    WholeRows,
}

/// The computation of a method with its settings.
#[derive(Debug)]
pub(crate) struct Program {
    /// The tensors that are combined.
    pub(crate) operand: Operand,
    /// The changes of task vectors before they are combined, in this order.
    pub(crate) steps: Vec<Box<dyn Step>>,
    /// The combination of rows, in blocks.
    pub(crate) combine: Box<dyn Combine>,
    /// The combination of whole matrices; `combine` is then for all other tensors.
    pub(crate) matrices: Option<Box<dyn CombineMatrices>>,
}

impl Program {
    /// Compose a program.
    pub(crate) fn new(
        operand: Operand,
        steps: Vec<Box<dyn Step>>,
        combine: impl Combine + 'static,
    ) -> Self {
        Self { operand, steps, combine: Box::new(combine), matrices: None }
    }

    /// Compose a program that combines whole matrices of task vectors, and other tensors by `combine`.
    pub(crate) fn of_matrices(
        matrices: impl CombineMatrices + 'static,
        combine: impl Combine + 'static,
    ) -> Self {
        let matrices: Option<Box<dyn CombineMatrices>> = Some(Box::new(matrices));
        Self { matrices, ..Self::new(Operand::TaskVectors, Vec::new(), combine) }
    }

    /// The widest scope of its reductions.
    #[must_use]
    pub(crate) fn scope(&self) -> Scope {
        let steps = self.steps.iter().map(|step| step.scope()).max();
        steps.unwrap_or(Scope::Tensor).max(self.combine.scope())
    }

    /// The division of tensors into blocks that its most demanding part needs.
    #[must_use]
    pub(crate) fn blocks(&self) -> Blocks {
        let steps = self.steps.iter().map(|step| step.blocks()).max();
        steps.unwrap_or(Blocks::Flat).max(self.combine.blocks())
    }

    /// Refuse numbers with which a part cannot work.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) that names the parameter and the tensor.
    pub(crate) fn check(&self, subject: &Subject) -> Result<()> {
        self.steps.iter().try_for_each(|step| step.check(subject))?;
        if let Some(matrices) = &self.matrices {
            matrix::check(subject)?;
            matrices.check(subject)?;
        }
        self.combine.check(subject)
    }

    /// The parameters of the steps, which determine the entries that are kept and their factors, and
    /// those on which the combination's reductions depend.
    #[must_use]
    pub(crate) fn reduced_parameters(&self) -> Vec<&'static str> {
        let mut parameters = self.combine.reduced_parameters();
        parameters.extend(self.steps.iter().flat_map(|step| step.parameters()));
        parameters
    }

    /// Expected number of sweeps over the inputs for the reductions of these `subjects`.
    #[must_use]
    pub(crate) fn sweeps(&self, subjects: &[Subject]) -> u64 {
        self.steps.iter().map(|step| step.sweeps(subjects)).sum::<u64>() + self.combine.sweeps()
    }
}

/// A part of a program that changes task vectors entry by entry.
pub(crate) trait Step: StepOn<f32> + StepOn<f64> + Debug {
    /// The scope of its reductions.
    fn scope(&self) -> Scope {
        Scope::Tensor
    }

    /// The parameters that it uses.
    fn parameters(&self) -> Vec<&'static str>;

    /// The division of tensors into blocks that it needs.
    fn blocks(&self) -> Blocks {
        Blocks::Flat
    }

    /// Refuse numbers with which it cannot work.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) that names the parameter and the tensor.
    fn check(&self, subject: &Subject) -> Result<()> {
        let _ = subject;
        Ok(())
    }

    /// Expected number of sweeps of its reductions over the inputs.
    fn sweeps(&self, subjects: &[Subject]) -> u64;
}

/// A [`Step`] in one computing type.
pub(crate) trait StepOn<T: Real>: Send + Sync {
    /// Run the reductions that are needed before any entry can be changed.
    ///
    /// `sweep` reads rows as the steps before this one leave them.
    ///
    /// # Returns
    /// The decision for every tensor, in the order of the sweep's subjects.
    ///
    /// # Errors
    /// The errors of the sweep: [`Error::Interrupted`](crate::Error::Interrupted).
    fn decide(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Decision<T>>>;
}

/// The computing types. They select their own instance of a part.
pub(crate) trait Computed: Real {
    /// A step in this type.
    fn step(step: &dyn Step) -> &dyn StepOn<Self>;
    /// A combination in this type.
    fn combine(combine: &dyn Combine) -> &dyn CombineOn<Self>;
    /// Call a function in this type.
    ///
    /// # Errors
    /// The function's.
    fn call(function: &dyn Function, call: Call<Self>) -> std::result::Result<(), Failure>;
}

macro_rules! computed {
    ($type:ty, $call:ident) => {
        impl Computed for $type {
            fn step(step: &dyn Step) -> &dyn StepOn<Self> {
                step
            }

            fn combine(combine: &dyn Combine) -> &dyn CombineOn<Self> {
                combine
            }

            fn call(function: &dyn Function, call: Call<Self>) -> std::result::Result<(), Failure> {
                function.$call(call)
            }
        }
    };
}
computed!(f32, single);
computed!(f64, double);

/// The result of a step's reductions for one tensor, ready to be applied.
pub(crate) type Decision<T> = Box<dyn Apply<T>>;

/// Applies a decided step to the rows of one tensor.
pub(crate) trait Apply<T: Real>: Send + Sync {
    /// Whether it may change the rows of a model.
    fn changes(&self, model: usize) -> bool;

    /// Whether it takes longer to find out which entries it sets to 0 than to remember them.
    fn is_worth_remembering(&self) -> bool {
        false
    }

    /// Whether it may set an entry that is NaN to 0.
    fn may_hide_nan(&self, model: usize) -> bool {
        let _ = model;
        false
    }

    /// The state that is carried from block to block, at the start of a chunk: one or more numbers per
    /// model, or empty.
    fn carried(&self, chunk: usize) -> Vec<u64> {
        let _ = chunk;
        Vec::new()
    }

    /// What it does to a model's row in a chunk, if that can be told without the row's entries. `scales` as
    /// for [`apply`](Self::apply).
    fn known(&self, model: usize, chunk: usize, scales: Option<&[T]>) -> Option<Known<T>> {
        let _ = (model, chunk, scales);
        None
    }

    /// Change the active rows of a block. `scales` has one factor per model for the kept entries.
    fn apply(&self, block: &mut Block<T>, carried: &mut [u64], scales: Option<&[T]>);
}

/// What a step does to a row, told without the row's entries.
#[derive(Clone, Debug)]
pub(crate) enum Known<T: Real> {
    /// It sets entries to 0 at random, and multiplies the others by a factor.
    Drop {
        /// The entries that are kept.
        kept: Kept,
        /// The factor.
        scale: T,
    },
    /// It sets entries below a magnitude to 0, and multiplies the others by a factor.
    Trim {
        /// The bits of the magnitude.
        least: T::Magnitude,
        /// The factor.
        scale: T,
    },
}

/// The entries of a row that a random drop keeps.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// They are drawn.
    Drawn {
        /// The random numbers.
        stream: Stream,
        /// The probability of an entry to be kept.
        density: f64,
    },
    /// They are remembered: a bit for every entry of the tensor.
    Remembered(Arc<Vec<u32>>),
}

impl Kept {
    /// Set `keep` to 1 for the entries from `first` on that are kept, to 0 for the others.
    pub(crate) fn mask(&self, first: usize, keep: &mut [u8]) {
        match self {
            Self::Drawn { stream, density } => stream.keep(first as u64, *density, keep),
            Self::Remembered(bits) => random::spread(&bits[first / 32..], first % 32, keep),
        }
    }
}

impl<T: Real> Known<T> {
    /// All entries stay as they are.
    pub(crate) fn nothing() -> Self {
        Self::Trim { least: T::Magnitude::default(), scale: T::ONE }
    }

    /// Whether all entries stay as they are.
    pub(crate) fn is_nothing(&self) -> bool {
        let all = T::Magnitude::default();
        matches!(self, Self::Trim { least, scale } if *least == all && *scale == T::ONE)
    }
}

/// A part of a program that combines the rows of all models into one.
pub(crate) trait Combine: CombineOn<f32> + CombineOn<f64> + Debug {
    /// The scope of its reductions.
    fn scope(&self) -> Scope {
        Scope::Tensor
    }

    /// The division of tensors into blocks that it needs.
    fn blocks(&self) -> Blocks {
        Blocks::Flat
    }

    /// Number of sweeps of its reductions over the inputs.
    fn sweeps(&self) -> u64 {
        0
    }

    /// The function that is called for whole chunks instead, if it is one.
    fn called(&self) -> Option<&Called> {
        None
    }

    /// A description of its reductions. Combinations with the same description have the same
    /// reductions and can use each other's results.
    fn reductions(&self) -> String {
        String::new()
    }

    /// The parameters that its reductions depend on.
    fn reduced_parameters(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Whether it reads the models' statistics beside their rows.
    fn reads_statistics(&self) -> bool {
        false
    }

    /// Refuse numbers with which it cannot combine the models.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) that names the parameter and the tensor.
    fn check(&self, subject: &Subject) -> Result<()> {
        let _ = subject;
        Ok(())
    }
}

/// A [`Combine`] in one computing type.
pub(crate) trait CombineOn<T: Real>: Send + Sync {
    /// Run the reductions that are needed before any row can be combined. Their results must not
    /// depend on the weights, so that they hold for merges with other weights too.
    ///
    /// # Returns
    /// The result for every tensor, in the order of the sweep's subjects.
    ///
    /// # Errors
    /// The errors of the sweep: [`Error::Interrupted`](crate::Error::Interrupted).
    fn reduce(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Vec<f64>>> {
        Ok(vec![Vec::new(); sweep.subjects().len()])
    }

    /// Prepare the combination of one tensor's rows; `found` is the tensor's result of `reduce`.
    fn bind(&self, subject: &Subject, found: &[f64]) -> Box<dyn Join<T>>;
}

/// A combination of a common form.
#[derive(Clone, Debug)]
pub(crate) enum Form<'f, T> {
    /// The weighted sum, divided by a number.
    Sum {
        /// The models' weights.
        weights: &'f [T],
        /// The number.
        divisor: Option<T>,
    },
    /// The sum of the entries that agree with an election, divided by the sum of their shares; by 1 where
    /// that is 0.
    Elected {
        /// The models' weights.
        weights: &'f [T],
        /// The factors of their votes.
        votes: &'f [T],
        /// Their shares.
        shares: Vec<T>,
        /// The sign where votes sum to 0.
        draw: T,
    },
}

/// Combines the rows of one tensor.
pub(crate) trait Join<T: Real>: Send + Sync {
    /// Combine the rows of a block into its `out`.
    fn join(&self, block: &mut Block<T>);

    /// The combination's form, if it is a common one.
    fn form(&self) -> Option<Form<'_, T>> {
        None
    }

    /// `Σ_j g_j ∂out_j/∂w_i` over a block, for the weight of every model; `None` if the weights cannot
    /// be learned. The elected signs are held fixed. The block's rows may be overwritten.
    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        let _ = (block, gradient);
        None
    }
}

/// A tensor as a program sees it, without its entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'s> {
    /// Its name.
    pub(crate) name: &'s str,
    /// Its shape.
    pub(crate) shape: &'s [usize],
    /// Number of merged models.
    pub(crate) models: usize,
    /// Whether there is a statistic of every model.
    pub(crate) measured: bool,
    /// Its numbers, by parameter.
    pub(crate) numbers: &'s Numbers,
    /// Seed of the random masks.
    pub(crate) seed: u64,
}

impl Subject<'_> {
    /// Number of entries.
    #[must_use]
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Length of the last axis; 1 for a scalar.
    #[must_use]
    pub(crate) fn row_length(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The merge's number for a parameter.
    ///
    /// # Panics
    /// If there is none. Manifests are checked against the method's schema, so that it exists.
    #[must_use]
    pub(crate) fn number(&self, parameter: &str) -> f64 {
        match self.numbers.get(parameter) {
            Some(Number::Merge(number)) => *number,
            _ => panic!("'{}' has no number for {parameter}", self.name),
        }
    }

    /// The merge's number for a parameter, or `default` if the method lacks the parameter.
    #[must_use]
    pub(crate) fn number_or(&self, parameter: &str, default: f64) -> f64 {
        if self.numbers.contains_key(parameter) { self.number(parameter) } else { default }
    }

    /// Every model's number for a parameter.
    ///
    /// # Panics
    /// If there are none. Manifests are checked against the method's schema, so that they exist.
    #[must_use]
    pub(crate) fn numbers(&self, parameter: &str) -> &[f64] {
        match self.numbers.get(parameter) {
            Some(Number::Models(numbers)) => numbers,
            _ => panic!("'{}' has no numbers for {parameter}", self.name),
        }
    }
}
