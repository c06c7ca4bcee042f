//! The mean of rows in which every entry of a model counts by what was measured of it.

use super::block::{Block, Parts};
use super::sum::{Cancelling, WeightedSum, refuse_cancelling};
use super::{Combine, CombineOn, Join, Subject};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::derivative::dot;
use crate::kernel::importance::{importance_mean, importance_slope};

/// `Σ w_i (F_i + ε) x_i / Σ w_i (F_i + ε)`, entry by entry, where `F_i` is the statistic of a model. Tensors
/// of which nothing was measured are the weighted mean.
#[derive(Debug)]
pub(crate) struct ImportanceMean {
    /// The parameter that holds ε.
    pub(crate) epsilon: &'static str,
}

impl Combine for ImportanceMean {
    fn reads_statistics(&self) -> bool {
        true
    }

    fn check(&self, subject: &Subject) -> Result<()> {
        refuse_cancelling(subject)
    }
}

impl<T: Real> CombineOn<T> for ImportanceMean {
    fn bind(&self, subject: &Subject, found: &[f64]) -> Box<dyn Join<T>> {
        if !subject.measured {
            return WeightedSum { normalize: true, cancelling: Cancelling::Refused }
                .bind(subject, found);
        }
        Box::new(Weighed {
            weights: subject.numbers("weight").iter().copied().map(T::from_f64).collect(),
            epsilon: T::from_f64(subject.number(self.epsilon)),
        })
    }
}

struct Weighed<T> {
    weights: Vec<T>,
    epsilon: T,
}

impl<T: Real> Join<T> for Weighed<T> {
    fn join(&self, block: &mut Block<T>) {
        let Parts { rows, statistics, signs, out, .. } = block.parts();
        importance_mean(rows, statistics, &self.weights, self.epsilon, signs, out);
    }

    /// `∂out_j/∂w_i = (F_ij + ε) (x_ij − out_j) / Σ_k w_k (F_kj + ε)`.
    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        self.join(block);
        for model in 0..block.models() {
            let Parts { rows, statistics, signs, out, .. } = block.parts();
            let place = model * out.len()..(model + 1) * out.len();
            let (row, importances) = (&mut rows[place.clone()], &statistics[place]);
            importance_slope(row, importances, self.epsilon, signs, out);
        }
        let models = 0..block.models();
        Some(models.map(|model| dot(gradient, block.row(model))).collect())
    }
}
