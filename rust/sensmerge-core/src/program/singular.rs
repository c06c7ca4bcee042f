//! Combinations by singular values and vectors of the task vectors' matrices.
//!
//! Singular values that count as 0 take no part: their vectors are not determined by the matrix.

use super::Subject;
use super::matrix::{CombineMatrices, Inputs, no_convergence};
use crate::error::Result;
use crate::linear::{Matrix, Singular, Vectors, matrix_bytes, singular_bytes};

/// A model's matrix, multiplied by its weight.
fn weighted(subject: &Subject, inputs: &mut dyn Inputs, model: usize) -> Result<Matrix> {
    let mut matrix = inputs.task_vector(model)?;
    matrix.scale(subject.numbers("weight")[model]);
    Ok(matrix)
}

fn singular(subject: &Subject, matrix: &Matrix) -> Result<Singular> {
    matrix.singular(0.0).ok_or_else(|| no_convergence(subject))
}

/// `Σ w_i δ_i`, holding two matrices at a time.
fn sum(subject: &Subject, [rows, columns]: [usize; 2], inputs: &mut dyn Inputs) -> Result<Matrix> {
    let mut sum = Matrix::zeros(rows, columns);
    for model in 0..subject.models {
        sum.add(subject.numbers("weight")[model], &inputs.task_vector(model)?);
    }
    Ok(sum)
}

/// `U_⊥ diag(values) V_⊥ᵀ` with the nearest orthonormal vectors.
fn rebuilt(subject: &Subject, left: Vectors, values: &[f64], right: Vectors) -> Result<Matrix> {
    let orthogonal =
        |vectors: Vectors| vectors.orthogonalised().ok_or_else(|| no_convergence(subject));
    Ok(Matrix::product(&orthogonal(left)?, values, orthogonal(right)?))
}

/// Bytes of [`rebuilt`] for `count` vectors.
fn rebuilt_bytes([rows, columns]: [usize; 2], count: usize) -> u64 {
    let vectors = matrix_bytes(rows, count) + matrix_bytes(columns, count);
    let largest = rows.max(columns);
    vectors + singular_bytes(largest, count).max(matrix_bytes(rows, columns))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The largest singular triplets of every task vector, a share each, with orthogonalised vectors.
#[derive(Debug)]
pub(crate) struct Triplets;

impl Triplets {
    /// Number of triplets of one model.
    fn share(subject: &Subject, shape: [usize; 2]) -> usize {
        (shape[0].min(shape[1]) / subject.models.max(1)).max(1)
    }
}

impl CombineMatrices for Triplets {
    fn combine(
        &self,
        subject: &Subject,
        shape: [usize; 2],
        inputs: &mut dyn Inputs,
    ) -> Result<Matrix> {
        let each = Self::share(subject, shape);
        let count = each * subject.models;
        let (mut left, mut right) = (Vectors::new(shape[0], count), Vectors::new(shape[1], count));
        let mut values = Vec::with_capacity(count);
        for model in 0..subject.models {
            let found = singular(subject, &weighted(subject, inputs, model)?)?;
            found.append_to(&mut left, &mut right, each);
            values.extend(found.values.iter().take(each));
        }
        rebuilt(subject, left, &values, right)
    }

    fn bytes(&self, subject: &Subject, shape: [usize; 2]) -> u64 {
        let count = Self::share(subject, shape) * subject.models;
        let vectors = matrix_bytes(shape[0], count) + matrix_bytes(shape[1], count);
        let finding = matrix_bytes(shape[0], shape[1]) + singular_bytes(shape[0], shape[1]);
        (vectors + finding).max(rebuilt_bytes(shape, count))
    }

    fn on_adapters(&self) -> Option<&'static str> {
        Some(
            "some experts are LoRA adapters, for which this method has been reported to do harm; compare \
             with a plain sum",
        )
    }
}

/// The sum of the task vectors with all singular values replaced by their mean.
#[derive(Debug)]
pub(crate) struct Isotropic;

impl CombineMatrices for Isotropic {
    fn combine(
        &self,
        subject: &Subject,
        shape: [usize; 2],
        inputs: &mut dyn Inputs,
    ) -> Result<Matrix> {
        let found = singular(subject, &sum(subject, shape, inputs)?)?;
        Ok(found.isotropic(mean(&found.values)))
    }

    fn bytes(&self, _: &Subject, shape: [usize; 2]) -> u64 {
        // While it is summed up: the sum and a model's matrix. Then: the sum, vectors, the result.
        2 * matrix_bytes(shape[0], shape[1]) + singular_bytes(shape[0], shape[1])
    }
}

/// [`Isotropic`], but that the smallest directions of the sum make room for those of single models.
#[derive(Debug)]
pub(crate) struct CommonAndSpecific {
    /// The parameter with the share of directions that are taken from the sum.
    pub(crate) common: &'static str,
}

impl CommonAndSpecific {
    /// Number of directions from the sum, and of each model.
    fn shares(&self, subject: &Subject, shape: [usize; 2]) -> (usize, usize) {
        let (size, models) = (shape[0].min(shape[1]), subject.models.max(1));
        let common = (size as f64 * subject.number(self.common)) as usize;
        // As the authors' code has it, which rounds halves to even.
        let each = ((size - common) as f64 / models as f64).round_ties_even() as usize;
        let each = each.min(size / models);
        (size - each * models, each)
    }
}

impl CombineMatrices for CommonAndSpecific {
    fn combine(
        &self,
        subject: &Subject,
        shape: [usize; 2],
        inputs: &mut dyn Inputs,
    ) -> Result<Matrix> {
        let (common, each) = self.shares(subject, shape);
        let of_sum = singular(subject, &sum(subject, shape, inputs)?)?;
        let count = common + each * subject.models;
        let (mut left, mut right) = (Vectors::new(shape[0], count), Vectors::new(shape[1], count));
        let mut values = Vec::with_capacity(count);
        of_sum.append_to(&mut left, &mut right, common);
        values.extend(of_sum.values.iter().take(common));
        if each > 0 {
            for model in 0..subject.models {
                let mut matrix = weighted(subject, inputs, model)?;
                let scale = matrix.sum_of_squares().sqrt();
                matrix.remove(&of_sum, common);
                let found = matrix.singular(scale).ok_or_else(|| no_convergence(subject))?;
                drop(matrix);
                found.append_to(&mut left, &mut right, each);
                values.extend(found.values.iter().take(each));
            }
        }
        drop(of_sum);
        let flat = vec![mean(&values); values.len()];
        rebuilt(subject, left, &flat, right)
    }

    fn bytes(&self, subject: &Subject, shape: [usize; 2]) -> u64 {
        let (common, each) = self.shares(subject, shape);
        let [rows, columns] = shape;
        let count = common + each * subject.models;
        let vectors = matrix_bytes(rows, count) + matrix_bytes(columns, count);
        let size = rows.min(columns);
        let of_sum = matrix_bytes(rows, size) + matrix_bytes(columns, size);
        let finding = matrix_bytes(rows, columns) + singular_bytes(rows, columns);
        (vectors + of_sum + finding).max(rebuilt_bytes(shape, count))
    }
}
