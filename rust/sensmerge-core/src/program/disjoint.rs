//! The disjoint sum or mean of TIES: for every entry a sign is elected, and only models that agree
//! with it take part (Yadav et al. 2023, §4.2).

use super::block::{Block, Parts};
use super::sweep::{Chunk, Portable, reduce_model, reduce_tensors};
use super::{Combine, CombineOn, Form, Join, Reduction, Scope, Subject, Sweep};
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
    /// The weights of the models.
    weights: Weights,
    /// Whether an entry whose votes sum to 0 gets the sign of the model-wide sum of elected signs;
    /// otherwise it gets plus.
    draw_to_majority: bool,
}

/// The weights of the models in one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weights {
    /// The recipe's.
    Given,
    /// The mean square of the model's entries, divided by the sum of all models' mean squares. Weights
    /// are equal if that sum is below [`SMALLEST_SQUARES`].
    MeanSquares,
}

/// That of mergekit and of the authors' own code.
const SMALLEST_SQUARES: f64 = 1e-6;

impl Disjoint {
    /// The paper's: votes are not weighted, a sum of 0 gets the sign of the model-wide majority, and
    /// `normalize` divides by the number of models that agree.
    #[must_use]
    pub(crate) fn original(normalize: bool) -> Self {
        let divisor = if normalize { Divisor::Count } else { Divisor::One };
        Self {
            agreement: Agreement::Unweighted,
            divisor,
            weights: Weights::Given,
            draw_to_majority: true,
        }
    }

    /// mergekit's: votes are weighted, a sum of 0 gets plus, and `normalize` divides by the sum of the
    /// weights of the models that agree.
    #[must_use]
    pub(crate) fn mergekit(normalize: bool) -> Self {
        let divisor = if normalize { Divisor::Weights } else { Divisor::One };
        Self {
            agreement: Agreement::Weighted,
            divisor,
            weights: Weights::Given,
            draw_to_majority: false,
        }
    }

    /// That of SCE: votes are not weighted, a sum of 0 gets plus, and the sum of the models that agree
    /// is weighted by their mean squares and divided by the sum of these weights (Wan et al. 2024).
    #[must_use]
    pub(crate) fn by_mean_squares() -> Self {
        Self {
            agreement: Agreement::Unweighted,
            divisor: Divisor::AtLeastSmallest,
            weights: Weights::MeanSquares,
            draw_to_majority: false,
        }
    }
}

impl Combine for Disjoint {
    fn scope(&self) -> Scope {
        if self.draw_to_majority { Scope::Model } else { Scope::Tensor }
    }

    fn sweeps(&self) -> u64 {
        u64::from(self.draw_to_majority || self.weights == Weights::MeanSquares)
    }

    fn reductions(&self) -> String {
        match (self.draw_to_majority, self.weights) {
            (true, _) => "sum of signs".into(),
            (false, Weights::MeanSquares) => "squares".into(),
            (false, Weights::Given) => String::new(),
        }
    }
}

impl<T: Real> CombineOn<T> for Disjoint {
    fn reduce(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Vec<f64>>> {
        if self.weights == Weights::MeanSquares {
            let squares = reduce_tensors(sweep, &Squares)?;
            let total = |blocks: Vec<Vec<f64>>| match blocks.first() {
                Some(first) => (0..first.len())
                    .map(|model| blocks.iter().map(|squares| squares[model]).sum())
                    .collect(),
                None => Vec::new(),
            };
            return Ok(squares.into_iter().map(total).collect());
        }
        let found = if self.draw_to_majority {
            // 1, -1, or 0 if the elected signs sum to 0, too.
            vec![reduce_model(sweep, &SumOfSigns)?.signum() as f64]
        } else {
            Vec::new()
        };
        Ok(vec![found; sweep.subjects().len()])
    }

    fn bind(&self, subject: &Subject, found: &[f64]) -> Box<dyn Join<T>> {
        let (weights, draw) = match self.weights {
            Weights::Given => (subject.numbers("weight").to_vec(), found.first().copied()),
            Weights::MeanSquares => (by_squares(found, subject), None),
        };
        let weights: Vec<T> = weights.into_iter().map(T::from_f64).collect();
        let votes = match self.agreement {
            Agreement::Weighted => weights.clone(),
            Agreement::Unweighted => vec![T::ONE; weights.len()],
        };
        Box::new(Elected {
            agreement: self.agreement,
            divisor: self.divisor,
            draw: draw.map_or(T::ONE, T::from_f64),
            weights,
            votes,
            learnable: self.weights == Weights::Given,
        })
    }
}

/// The weights of the models, from the sums of their squares; any where a tensor has no entries.
fn by_squares(squares: &[f64], subject: &Subject) -> Vec<f64> {
    let means: Vec<f64> = squares.iter().map(|sum| sum / subject.elements() as f64).collect();
    let total: f64 = means.iter().sum();
    if means.is_empty() || total < SMALLEST_SQUARES {
        return vec![1.0 / subject.models as f64; subject.models];
    }
    means.into_iter().map(|mean| mean / total).collect()
}

/// The sums of squares of every model's entries, block by block.
struct Squares;

impl<T: Real> Reduction<T> for Squares {
    type Partial = Vec<Vec<f64>>;

    fn identity(&self, _: Option<&Chunk>) -> Vec<Vec<f64>> {
        Vec::new()
    }

    fn block(&self, _: usize, block: &mut Block<T>, partial: &mut Vec<Vec<f64>>) {
        let of_model = |model| dot(block.row(model), block.row(model));
        partial.push((0..block.models()).map(of_model).collect());
    }

    fn merge(&self, partial: &mut Vec<Vec<f64>>, next: Vec<Vec<f64>>) {
        partial.extend(next);
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

impl Portable for i64 {
    fn to_numbers(&self) -> Vec<i64> {
        vec![*self]
    }

    fn take_numbers(&mut self, numbers: &[i64]) -> bool {
        let [number] = numbers else { return false };
        *self = *number;
        true
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
    /// Whether the weights are the recipe's.
    learnable: bool,
}

impl<T: Real> Join<T> for Elected<T> {
    fn join(&self, block: &mut Block<T>) {
        let Parts { rows, signs, out, .. } = block.parts();
        elect_sign(rows, &self.votes, self.draw, signs);
        disjoint(rows, &self.weights, signs, self.agreement, self.divisor, out);
    }

    fn form(&self) -> Option<Form<'_, T>> {
        let shares = match self.divisor {
            Divisor::One => vec![T::ZERO; self.weights.len()],
            Divisor::Weights => self.weights.clone(),
            Divisor::Count => vec![T::ONE; self.weights.len()],
            Divisor::AtLeastSmallest => return None,
        };
        Some(Form::Elected { weights: &self.weights, votes: &self.votes, shares, draw: self.draw })
    }

    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        if !self.learnable {
            return None;
        }
        self.join(block);
        let Parts { rows, signs, out, .. } = block.parts();
        disjoint_derivative(rows, &self.weights, signs, self.agreement, self.divisor, out);
        Some((0..block.models()).map(|model| dot(gradient, block.row(model))).collect())
    }
}
