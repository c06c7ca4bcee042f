//! Functions from outside the crate that combine the rows of all models: the program of a method that a
//! third party registers.
//!
//! The engine calls a function with a whole chunk of entries, or a whole tensor, at a time, so that a
//! call may cost some microseconds.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use super::block::Block;
use super::{Combine, CombineOn, Join, Subject};
use crate::dtype::Real;
use crate::numbers::Numbers;

/// The entries that a function is called with, and where it puts the merged ones.
#[derive(Debug)]
pub struct Call<'c, T> {
    /// The tensor's name.
    pub tensor: &'c str,
    /// The tensor's shape.
    pub shape: &'c [usize],
    /// The entries of the tensor, in row-major order, that this call merges.
    pub entries: Range<usize>,
    /// Number of models.
    pub models: usize,
    /// The models' entries or task vectors, `[models, entries]`.
    pub rows: &'c [T],
    /// The base's entries, if task vectors are merged.
    pub base: Option<&'c [T]>,
    /// The tensor's numbers, by parameter.
    pub numbers: &'c Numbers,
    /// The merged entries, to be overwritten; zeros at first.
    pub out: &'c mut [T],
}

/// Why a function could not merge the entries that it was called with.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong.
    pub reason: String,
    /// The error that it was caused by.
    pub cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A function that merges the entries of all models. It is called by several threads at once.
pub trait Function: Debug + Send + Sync {
    /// Merge entries in float32, which all tensors are computed in unless an input is float64.
    ///
    /// # Errors
    /// A [`Failure`] ends the merge with [`Error::Method`](crate::Error::Method).
    fn single(&self, call: Call<f32>) -> Result<(), Failure>;

    /// The same in float64.
    ///
    /// # Errors
    /// As [`single`](Self::single).
    fn double(&self, call: Call<f64>) -> Result<(), Failure>;

    /// Copies of the models' entries that it makes for itself in a call, in entries of the computing
    /// type for every entry and model. Only for the plan of memory.
    fn copies(&self) -> u64 {
        0
    }
}

/// How a function wants the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Chunks of entries of any length: each merged entry depends on the same entry of the models
    /// alone, so that the output does not depend on how a tensor is cut.
    Entries,
    /// Whole tensors.
    Tensors,
}

/// A [`Function`] as a program's combination.
#[derive(Clone, Debug)]
pub(crate) struct Called {
    pub(crate) function: Arc<dyn Function>,
    pub(crate) form: Form,
}

impl Called {
    /// Bytes that merging a whole tensor takes: the rows, the base, the merged entries, and the
    /// function's own copies.
    #[must_use]
    pub(crate) fn bytes(&self, subject: &Subject, entry_bytes: usize) -> u64 {
        let models = subject.models as u64;
        let rows = models * (1 + self.function.copies()) + 3;
        (subject.elements() as u64).saturating_mul(rows * entry_bytes as u64)
    }
}

impl Combine for Called {
    fn called(&self) -> Option<&Called> {
        Some(self)
    }
}

impl<T: Real> CombineOn<T> for Called {
    fn bind(&self, _: &Subject, _: &[f64]) -> Box<dyn Join<T>> {
        Box::new(Uncalled)
    }
}

/// Stands where other combinations join blocks: the engine calls a function for a chunk instead.
struct Uncalled;

impl<T: Real> Join<T> for Uncalled {
    fn join(&self, _: &mut Block<T>) {
        unreachable!("functions are called for whole chunks");
    }
}
