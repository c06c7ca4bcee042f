//! The entry of the largest magnitude among the task vectors.

use super::block::{Block, Parts};
use super::{Combine, CombineOn, Join, Subject};
use crate::dtype::Real;
use crate::kernel::derivative::dot;
use crate::kernel::elect::elect_sign;
use crate::kernel::largest::{largest, largest_agreeing, largest_derivative};

/// For every entry, the largest `w_i δ_i` in magnitude; of equal ones that of the first model.
#[derive(Debug)]
pub(crate) struct Largest {
    /// Whether only entries of the sign of `Σ w_i δ_i` are looked at. A sum of 0 counts as negative, as in
    /// the code of EMR-Merging's authors.
    pub(crate) elected: bool,
}

impl Combine for Largest {}

impl<T: Real> CombineOn<T> for Largest {
    fn bind(&self, subject: &Subject, _: &[f64]) -> Box<dyn Join<T>> {
        let weights = subject.numbers("weight").iter().copied().map(T::from_f64).collect();
        Box::new(Picked { elected: self.elected, weights })
    }
}

struct Picked<T> {
    elected: bool,
    weights: Vec<T>,
}

impl<T: Real> Join<T> for Picked<T> {
    fn join(&self, block: &mut Block<T>) {
        let Parts { rows, signs, out, .. } = block.parts();
        if self.elected {
            elect_sign(rows, &self.weights, T::ZERO - T::ONE, signs);
            largest_agreeing(rows, &self.weights, signs, out);
        } else {
            largest(rows, &self.weights, out);
        }
    }

    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        let Parts { rows, signs, .. } = block.parts();
        if self.elected {
            elect_sign(rows, &self.weights, T::ZERO - T::ONE, signs);
        }
        largest_derivative(rows, &self.weights, self.elected.then_some(&*signs));
        Some((0..block.models()).map(|model| dot(gradient, block.row(model))).collect())
    }
}
