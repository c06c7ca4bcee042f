//! Model Stock: from the base towards the mean of the experts, the further the smaller the angles
//! between their task vectors.
//!
//! With `c` the mean cosine of the angles between the N task vectors, `t = N c / (1 + (N − 1) c)` and
//! `θ = θ₀ + t · Σ δ_i / N`, for each tensor, or with `filter_wise: true` for each of its rows.
//!
//! Jang et al. 2024, which has N = 2; the mean over all pairs is mergekit's. Both semantics are
//! the same.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::gram::{Gram, Groups, WeightedByGram};
use crate::program::{Operand, Program, Subject};

/// Smallest divisor of a cosine: a smaller product of two norms is replaced by it.
const SMALLEST_PRODUCT: f64 = 1e-6;

/// If the denominator of `t` is nearer to 0 than this, the output is the base.
const SMALLEST_DENOMINATOR: f64 = 1e-6;

pub(super) struct ModelStock;

impl Method for ModelStock {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "model_stock",
            title: "Model Stock",
            summary: "from the base toward the experts' mean, the further the more the task vectors agree",
            source: "Jang et al. 2024",
            base: Base::Needed,
            models: Count::at_least(2),
            parameters: vec![Parameter::switch(
                "filter_wise",
                "take each row of a matrix on its own",
                false,
            )],
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, settings: &Settings) -> Program {
        let groups = if settings.switch("filter_wise") { Groups::Rows } else { Groups::Tensor };
        let combine = WeightedByGram { name: "model_stock", groups, weigh, check: None };
        Program::new(Operand::TaskVectors, Vec::new(), combine)
    }
}

fn weigh(gram: &Gram, subject: &Subject) -> Vec<f64> {
    let count = subject.models as f64;
    let mut cosines = Vec::new();
    for one in 0..subject.models {
        for other in one + 1..subject.models {
            let norms = (gram.norm(one) * gram.norm(other)).max(SMALLEST_PRODUCT);
            cosines.push((gram.dot(one, other) / norms).clamp(-1.0, 1.0));
        }
    }
    let cosine = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let denominator = 1.0 + (count - 1.0) * cosine;
    let t =
        if denominator.abs() < SMALLEST_DENOMINATOR { 0.0 } else { count * cosine / denominator };
    vec![t / count; subject.models]
}
