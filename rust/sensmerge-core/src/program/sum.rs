//! Weighted sums of rows.

use super::block::{Block, Parts};
use super::{Combine, CombineOn, Form, Join, Subject};
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::kernel::derivative::dot;
use crate::kernel::weighted_sum::{divide, weighted_sum};

/// A sum of weights nearer to 0 than this is not used as a divisor.
const SMALLEST_DIVISOR: f64 = 1e-8;

/// `Σ w_i x_i`, divided by `Σ w_i` with `normalize`.
#[derive(Debug)]
pub(crate) struct WeightedSum {
    /// Whether it is divided by the sum of the weights.
    pub(crate) normalize: bool,
    /// The handling of weights that sum to 0, with `normalize`.
    pub(crate) cancelling: Cancelling,
}

/// The handling of weights that sum to 0 when they are to be normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cancelling {
    /// They are refused: an undivided sum of parameters would not be a model.
    Refused,
    /// The sum is not divided.
    NotDivided,
}

impl WeightedSum {
    fn divisor(&self, subject: &Subject) -> Option<f64> {
        let sum: f64 = subject.numbers("weight").iter().sum();
        (self.normalize && sum.abs() >= SMALLEST_DIVISOR).then_some(sum)
    }
}

/// Refuse weights that sum to 0.
pub(crate) fn refuse_cancelling(subject: &Subject) -> Result<()> {
    if subject.numbers("weight").iter().sum::<f64>().abs() >= SMALLEST_DIVISOR {
        return Ok(());
    }
    Err(Error::setting(
        "models[].parameters.weight",
        format!("the weights for '{}' sum to 0 and cannot be normalized", subject.name),
    ))
}

impl Combine for WeightedSum {
    fn check(&self, subject: &Subject) -> Result<()> {
        let refused = self.normalize && self.cancelling == Cancelling::Refused;
        if refused { refuse_cancelling(subject) } else { Ok(()) }
    }
}

impl<T: Real> CombineOn<T> for WeightedSum {
    fn bind(&self, subject: &Subject, _: &[f64]) -> Box<dyn Join<T>> {
        Box::new(Summed {
            weights: subject.numbers("weight").iter().copied().map(T::from_f64).collect(),
            divisor: self.divisor(subject).map(T::from_f64),
        })
    }
}

/// `Σ w_i x_i / K`: the mean of the weighted models.
#[derive(Debug)]
pub(crate) struct WeightedMean;

impl Combine for WeightedMean {}

impl<T: Real> CombineOn<T> for WeightedMean {
    fn bind(&self, subject: &Subject, _: &[f64]) -> Box<dyn Join<T>> {
        Box::new(Summed {
            weights: subject.numbers("weight").iter().copied().map(T::from_f64).collect(),
            divisor: Some(T::from_f64(subject.models as f64)),
        })
    }
}

/// One model, multiplied by a parameter of its own.
#[derive(Debug)]
pub(crate) struct Scaled {
    /// The parameter.
    pub(crate) by: &'static str,
}

impl Combine for Scaled {}

impl<T: Real> CombineOn<T> for Scaled {
    fn bind(&self, subject: &Subject, _: &[f64]) -> Box<dyn Join<T>> {
        let weights = subject.numbers(self.by).iter().copied().map(T::from_f64).collect();
        Box::new(Summed { weights, divisor: None })
    }
}

/// The sum of all models.
#[derive(Debug)]
pub(crate) struct Unweighted;

impl Combine for Unweighted {}

impl<T: Real> CombineOn<T> for Unweighted {
    fn bind(&self, subject: &Subject, _: &[f64]) -> Box<dyn Join<T>> {
        Box::new(Summed { weights: vec![T::ONE; subject.models], divisor: None })
    }
}

/// The sum of the models with the weights of a decay over their order: `((i + 1) / n)^p − (i / n)^p` for the
/// i-th of n models, counted from 0.
#[derive(Debug)]
pub(crate) struct Decay {
    /// The parameter that holds the power p.
    pub(crate) power: &'static str,
}

impl Combine for Decay {}

impl<T: Real> CombineOn<T> for Decay {
    fn bind(&self, subject: &Subject, _: &[f64]) -> Box<dyn Join<T>> {
        let power = subject.number(self.power);
        let done = |models: usize| {
            let share = models as f64 / subject.models as f64;
            // A square root is the same number on every machine.
            if power == 0.5 { share.sqrt() } else { share.powf(power) }
        };
        let weights = (0..subject.models).map(|model| T::from_f64(done(model + 1) - done(model)));
        Box::new(Summed { weights: weights.collect(), divisor: None })
    }
}

struct Summed<T> {
    weights: Vec<T>,
    divisor: Option<T>,
}

impl<T: Real> Join<T> for Summed<T> {
    fn join(&self, block: &mut Block<T>) {
        let Parts { rows, out, .. } = block.parts();
        weighted_sum(rows, &self.weights, out);
        if let Some(divisor) = self.divisor {
            divide(out, divisor);
        }
    }

    fn form(&self) -> Option<Form<'_, T>> {
        Some(Form::Sum { weights: &self.weights, divisor: self.divisor })
    }

    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        let Some(divisor) = self.divisor else {
            let models = 0..block.models();
            return Some(models.map(|model| dot(gradient, block.row(model))).collect());
        };
        self.join(block);
        let through = dot(gradient, block.parts().out);
        let of_model = |model| (dot(gradient, block.row(model)) - through) / divisor.to_f64();
        Some((0..block.models()).map(of_model).collect())
    }
}
