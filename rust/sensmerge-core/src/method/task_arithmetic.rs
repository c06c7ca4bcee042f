//! Task arithmetic: the weighted sum of the task vectors.
//!
//! `θ = θ₀ + λ Σ w_i δ_i`; with `normalize: true` the sum is divided by `Σ w_i`.
//!
//! Ilharco et al. 2023. Both semantics are the same.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::sum::{Cancelling, WeightedSum};
use crate::program::{Operand, Program};

pub(super) struct TaskArithmetic;

impl Method for TaskArithmetic {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "task_arithmetic",
            title: "Task arithmetic",
            summary: "the weighted sum of the task vectors",
            source: "Ilharco et al. 2023",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![Parameter::weight(), Parameter::lambda(), Parameter::normalize(false)],
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, settings: &Settings) -> Program {
        let sum = WeightedSum {
            normalize: settings.switch("normalize"),
            cancelling: Cancelling::NotDivided,
        };
        Program::new(Operand::TaskVectors, Vec::new(), sum)
    }
}
