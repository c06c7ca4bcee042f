//! Linear: the weighted mean of the models' parameters.
//!
//! `θ = Σ w_i θ_i / Σ w_i`; with `normalize: false`, `θ = Σ w_i θ_i`.
//!
//! Model soups, Wortsman et al. 2022. Both semantics are the same. The base is not merged unless it is
//! listed among the models.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::sum::{Cancelling, WeightedSum};
use crate::program::{Operand, Program};

pub(super) struct Linear;

impl Method for Linear {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "linear",
            title: "Linear",
            summary: "the weighted mean of the models' parameters",
            source: "Model soups, Wortsman et al. 2022",
            base: Base::Unused,
            models: Count::at_least(1),
            parameters: vec![Parameter::weight(), Parameter::normalize(true)],
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, settings: &Settings) -> Program {
        let sum = WeightedSum {
            normalize: settings.switch("normalize"),
            cancelling: Cancelling::Refused,
        };
        Program::new(Operand::Parameters, Vec::new(), sum)
    }
}
