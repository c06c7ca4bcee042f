//! The disjoint sum or mean of TIES: for every entry a sign is elected, and only models that agree
//! with it take part (Yadav et al. 2023, §4.2).

use super::block::{Block, Parts};
use super::sweep::{Chunk, reduce_model};
use super::{Combine, CombineOn, Join, Reduction, Scope, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::derivative::{disjoint_derivative, dot};
use crate::kernel::disjoint::{Agreement, Divisor, disjoint};
use crate::kernel::elect::{elect_sign, sum_of_signs};

/// Elect a sign for every entry, and sum the `w_i δ̂_i` of the models that agree with it.
#[derive(Debug)]
pub(crate) struct Disjoint {
    /// Whether votes are weighted by `w_i`, in the election and when agreement is tested.
    agreement: Agreement,
    /// The divisor of the sum.
    divisor: Divisor,
    /// Whether an entry whose votes sum to 0 gets the sign of the model-wide sum of elected signs;
    /// otherwise it gets plus.
    draw_to_majority: bool,
}

impl Disjoint {
    /// The paper's: votes are not weighted, a sum of 0 gets the sign of the model-wide majority, and
    /// `normalize` divides by the number of models that agree.
    #[must_use]
    pub(crate) fn original(normalize: bool) -> Self {
        let divisor = if normalize { Divisor::Count } else { Divisor::One };
        Self { agreement: Agreement::Unweighted, divisor, draw_to_majority: true }
    }

    /// mergekit's: votes are weighted, a sum of 0 gets plus, and `normalize` divides by the sum of the
    /// weights of the models that agree.
    #[must_use]
    pub(crate) fn mergekit(normalize: bool) -> Self {
        let divisor = if normalize { Divisor::Weights } else { Divisor::One };
        Self { agreement: Agreement::Weighted, divisor, draw_to_majority: false }
    }
}

impl Combine for Disjoint {
    fn scope(&self) -> Scope {
        if self.draw_to_majority { Scope::Model } else { Scope::Tensor }
    }

    fn sweeps(&self) -> u64 {
        u64::from(self.draw_to_majority)
    }

    fn reductions(&self) -> String {
        if self.draw_to_majority { "sum of signs".into() } else { String::new() }
    }
}

impl<T: Real> CombineOn<T> for Disjoint {
    fn reduce(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Vec<f64>>> {
        let found = if self.draw_to_majority {
            // 1, -1, or 0 if the elected signs sum to 0, too.
            vec![reduce_model(sweep, &SumOfSigns)?.signum() as f64]
        } else {
            Vec::new()
        };
        Ok(vec![found; sweep.subjects().len()])
    }

    fn bind(&self, subject: &Subject, found: &[f64]) -> Box<dyn Join<T>> {
        let weights: Vec<T> = subject.numbers("weight").iter().copied().map(T::from_f64).collect();
        let votes = match self.agreement {
            Agreement::Weighted => weights.clone(),
            Agreement::Unweighted => vec![T::ONE; weights.len()],
        };
        Box::new(Elected {
            agreement: self.agreement,
            divisor: self.divisor,
            draw: found.first().map_or(T::ONE, |&sign| T::from_f64(sign)),
            weights,
            votes,
        })
    }
}

/// The sum of the signs elected by unweighted votes.
struct SumOfSigns;

impl<T: Real> Reduction<T> for SumOfSigns {
    type Partial = i64;

    fn identity(&self, _: Option<&Chunk>) -> i64 {
        0
    }

    fn block(&self, _: usize, block: &mut Block<T>, partial: &mut i64) {
        let (votes, length) = (vec![T::ONE; block.models()], block.len());
        *partial += sum_of_signs(block.parts().rows, &votes, length);
    }

    fn merge(&self, partial: &mut i64, next: i64) {
        *partial += next;
    }
}

struct Elected<T> {
    agreement: Agreement,
    divisor: Divisor,
    /// The sign of an entry whose votes sum to 0.
    draw: T,
    weights: Vec<T>,
    /// The factor of each model's vote.
    votes: Vec<T>,
}

impl<T: Real> Join<T> for Elected<T> {
    fn join(&self, block: &mut Block<T>) {
        let Parts { rows, signs, out, .. } = block.parts();
        elect_sign(rows, &self.votes, self.draw, signs);
        disjoint(rows, &self.weights, signs, self.agreement, self.divisor, out);
    }

    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        self.join(block);
        let Parts { rows, signs, out, .. } = block.parts();
        disjoint_derivative(rows, &self.weights, signs, self.agreement, self.divisor, out);
        Some((0..block.models()).map(|model| dot(gradient, block.row(model))).collect())
    }
}
