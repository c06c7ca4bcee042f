//! The sum of the task vectors where enough models claim an entry (Wang et al. 2024).

use super::block::{Block, Parts};
use super::{Combine, CombineOn, Join, Subject};
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::kernel::claims::{claimed_sum, keep_claimed};
use crate::kernel::derivative::dot;

/// `Σ w_i δ_i` for the entries that enough models claim, 0 for the others. Model i claims an entry if
/// `|w_i δ_i| > f_i |Σ_k w_k δ_k − w_i δ_i|`.
#[derive(Debug)]
pub(crate) struct ClaimedSum {
    /// The parameter that holds the models' `f_i`.
    pub(crate) factor: &'static str,
    /// The parameter that holds the least number of models.
    pub(crate) least: &'static str,
}

impl Combine for ClaimedSum {
    fn check(&self, subject: &Subject) -> Result<()> {
        let (least, models) = (subject.number(self.least), subject.models);
        if least <= models as f64 {
            return Ok(());
        }
        let reason = format!(
            "is {least}, but only {models} models are merged into '{}', so that nothing of them \
             would be left; choose {models} or less",
            subject.name
        );
        Err(Error::setting(format!("parameters.{}", self.least), reason))
    }
}

impl<T: Real> CombineOn<T> for ClaimedSum {
    fn bind(&self, subject: &Subject, _: &[f64]) -> Box<dyn Join<T>> {
        let numbers = |parameter| -> Vec<T> {
            subject.numbers(parameter).iter().copied().map(T::from_f64).collect()
        };
        let least = T::from_f64(subject.number(self.least));
        Box::new(Claimed { weights: numbers("weight"), factors: numbers(self.factor), least })
    }
}

struct Claimed<T> {
    weights: Vec<T>,
    factors: Vec<T>,
    least: T,
}

impl<T: Real> Join<T> for Claimed<T> {
    fn join(&self, block: &mut Block<T>) {
        let Parts { rows, out, .. } = block.parts();
        claimed_sum(rows, &self.weights, &self.factors, self.least, out);
    }

    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        keep_claimed(block.parts().rows, &self.weights, &self.factors, self.least);
        Some((0..block.models()).map(|model| dot(gradient, block.row(model))).collect())
    }
}
