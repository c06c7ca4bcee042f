//! `MagMax`: of every entry the task vector that changed it most.
//!
//! `θ = θ₀ + λ w_i δ_i`, with the i of the largest `|w_i δ_i|` for each entry; of equal ones the first model.
//!
//! Marczak et al. 2024, whose task vectors have no weights, and whose code prefers the last of equal ones.
//! Both semantics are the same.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::largest::Largest;
use crate::program::{Operand, Program};

/// The authors' scale, which they use throughout.
const LAMBDA: f64 = 0.5;

pub(super) struct Magmax;

impl Method for Magmax {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "magmax",
            title: "MagMax",
            summary: "of every entry the largest change",
            source: "Marczak et al. 2024",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![Parameter::weight(), Parameter::lambda_of_choice(LAMBDA)],
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::new(Operand::TaskVectors, Vec::new(), Largest { elected: false })
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
