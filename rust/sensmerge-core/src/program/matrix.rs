//! Combinations of whole matrices, where rows and blocks are not enough: singular vectors and linear
//! systems.
//!
//! A program with such a combination merges every matrix by itself: a tensor of two axes is one, one
//! of three axes (the experts of a layer, stacked) as many as its first axis is long. All other tensors,
//! and matrices with a single row or column, are merged by the program's [`Combine`](super::Combine).

use std::fmt::Debug;

use super::Subject;
use crate::error::{Error, Result};
use crate::linear::{Matrix, matrix_bytes};

/// The parameter that takes a tensor's matrices as wholes (1) or not (0).
pub(crate) const SWITCH: &str = "matrices";

/// Reads the matrices of one output matrix's inputs.
pub(crate) trait Inputs {
    /// A model's task vector.
    ///
    /// # Errors
    /// [`Error::Interrupted`], and [`Error::Tensor`] for entries that are not finite.
    fn task_vector(&mut self, model: usize) -> Result<Matrix>;

    /// What was measured of a model.
    ///
    /// # Errors
    /// As for [`Self::task_vector`].
    ///
    /// # Panics
    /// If nothing was.
    fn statistic(&mut self, model: usize) -> Result<Matrix>;
}

/// Combines the matrices of all models into one, on one thread.
pub(crate) trait CombineMatrices: Debug + Send + Sync {
    /// Combine one matrix of `subject`, of this shape.
    ///
    /// # Errors
    /// Those of the inputs; [`Error::Setting`](crate::Error::Setting) for matrices that cannot be
    /// combined.
    fn combine(
        &self,
        subject: &Subject,
        shape: [usize; 2],
        inputs: &mut dyn Inputs,
    ) -> Result<Matrix>;

    /// The shape of a subject's matrices, if it takes them as wholes.
    fn shape(&self, subject: &Subject) -> Option<[usize; 2]> {
        subject.matrices()
    }

    /// Bytes that it holds at most at a time, the result included.
    fn bytes(&self, subject: &Subject, shape: [usize; 2]) -> u64;

    /// What to tell users who merge LoRA adapters with it.
    fn on_adapters(&self) -> Option<&'static str> {
        None
    }

    /// Refuse numbers with which it cannot work.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) that names the parameter and the tensor.
    fn check(&self, subject: &Subject) -> Result<()> {
        let _ = subject;
        Ok(())
    }
}

impl Subject<'_> {
    /// The shape of its matrices, if it consists of matrices that are taken as wholes.
    #[must_use]
    pub(crate) fn matrices(&self) -> Option<[usize; 2]> {
        let shape = match *self.shape {
            [rows, columns] => [rows, columns],
            [count, rows, columns] if count > 0 => [rows, columns],
            _ => return None,
        };
        (shape.iter().all(|&size| size > 1) && self.number_or(SWITCH, 1.0) != 0.0).then_some(shape)
    }
}

/// Bytes that merging one matrix of a subject takes: the combination's and those of its rounded entries.
#[must_use]
pub(crate) fn bytes(combine: &dyn CombineMatrices, subject: &Subject) -> u64 {
    let of_shape =
        |shape: [usize; 2]| combine.bytes(subject, shape) + matrix_bytes(shape[0], shape[1]);
    combine.shape(subject).map_or(0, of_shape)
}

/// Refuse numbers other than 0 and 1 for [`SWITCH`].
pub(crate) fn check(subject: &Subject) -> Result<()> {
    let number = subject.number_or(SWITCH, 1.0);
    if number == 0.0 || number == 1.0 {
        return Ok(());
    }
    let reason = format!("{number} for '{}' is neither 0 nor 1", subject.name);
    Err(Error::setting(format!("parameters.{SWITCH}"), reason))
}

/// The error of a decomposition that does not converge.
pub(crate) fn no_convergence(subject: &Subject) -> Error {
    let reason = format!(
        "the decomposition of its matrix does not converge; leave it out with parameters.{SWITCH}: 0"
    );
    Error::setting(subject.name, reason)
}
