//! Combinations that solve a linear system: the matrix whose outputs are nearest to the models' on the
//! inputs that each model's own statistic `C_i` stands for.
//!
//! ```text
//! δ* = argmin Σ_i w_i ‖(δ − δ_i) C_i^½‖² = (Σ w_i δ_i C_i) (Σ w_i C_i + ρ I)⁻¹
//! ```

use super::Subject;
use super::matrix::{CombineMatrices, Inputs, no_convergence};
use crate::error::{Error, Result};
use crate::linear::{Matrix, eigen_bytes, matrix_bytes};

/// The statistic of the inputs of a model's matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputsBy {
    /// `δ_iᵀ δ_i`: the rows of a task vector are sums of the inputs it was trained on.
    TaskVector,
    /// `δ_iᵀ δ_i / ‖δ_i‖²_F`: the same, with every model counting alike.
    NormalisedTaskVector,
    /// `X_iᵀ X_i / n`, measured on samples; entries off the diagonal are multiplied by this parameter.
    Samples(&'static str),
}

/// The solution for every matrix.
#[derive(Debug)]
pub(crate) struct Solution {
    /// The statistic of every model.
    pub(crate) statistic: InputsBy,
    /// The parameter with ρ, as a multiple of the mean eigenvalue of `Σ w_i C_i`.
    pub(crate) ridge: &'static str,
}

impl CombineMatrices for Solution {
    fn shape(&self, subject: &Subject) -> Option<[usize; 2]> {
        let measured = subject.measured || !matches!(self.statistic, InputsBy::Samples(_));
        subject.matrices().filter(|_| measured)
    }

    fn combine(
        &self,
        subject: &Subject,
        shape: [usize; 2],
        inputs: &mut dyn Inputs,
    ) -> Result<Matrix> {
        let [rows, columns] = shape;
        let mut sum = Matrix::zeros(columns, columns);
        let mut right = Matrix::zeros(rows, columns);
        for model in 0..subject.models {
            let matrix = inputs.task_vector(model)?;
            let weight = subject.numbers("weight")[model];
            let factor = match self.statistic {
                InputsBy::TaskVector => weight,
                InputsBy::NormalisedTaskVector => weight / matrix.sum_of_squares(),
                InputsBy::Samples(off_diagonal) => {
                    if weight != 0.0 {
                        let mut gram = inputs.statistic(model)?;
                        gram.scale_off_diagonal(subject.number(off_diagonal));
                        sum.add(weight, &gram);
                        right.add_product(weight, &matrix, &gram);
                    }
                    continue;
                }
            };
            if factor.is_finite() && factor != 0.0 {
                sum.add_gram(factor, &matrix);
                right.add_cube(factor, &matrix);
            }
        }
        let mean = sum.trace() / columns as f64;
        if mean == 0.0 {
            return Ok(right);
        }
        let ridge = subject.number(self.ridge);
        if ridge == 0.0 {
            return right.times_pseudo_inverse(&sum).ok_or_else(|| no_convergence(subject));
        }
        sum.add_to_diagonal(ridge * mean);
        right.times_inverse(sum).ok_or_else(|| {
            let key = format!("parameters.{}", self.ridge);
            let reason = format!("is too small for '{}'; write a larger one, or 0", subject.name);
            Error::setting(key, reason)
        })
    }

    fn bytes(&self, subject: &Subject, shape: [usize; 2]) -> u64 {
        let [rows, columns] = shape;
        let system = matrix_bytes(columns, columns) + matrix_bytes(rows, columns);
        let gram = match self.statistic {
            InputsBy::Samples(_) => columns,
            _ => rows.min(columns),
        };
        let adding = matrix_bytes(rows, columns) + matrix_bytes(gram, gram);
        let solving = if subject.number(self.ridge) == 0.0 {
            eigen_bytes(columns) + matrix_bytes(rows, columns)
        } else {
            // Blocks of the factorisation.
            matrix_bytes(columns, 512)
        };
        system + adding.max(solving)
    }

    fn check(&self, subject: &Subject) -> Result<()> {
        let weights = subject.numbers("weight").iter();
        match weights.copied().find(|weight| *weight < 0.0) {
            None => Ok(()),
            Some(weight) => {
                let reason = format!(
                    "{weight} for '{}' is below 0, with which there is no nearest matrix",
                    subject.name
                );
                Err(Error::setting("models[].parameters.weight", reason))
            }
        }
    }
}
