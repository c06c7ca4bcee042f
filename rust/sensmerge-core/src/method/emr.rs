//! The unified task vector of EMR-Merging: elect a sign for every entry, and take the largest entry that has
//! it.
//!
//! `θ = θ₀ + λ w_i δ_i`, with the i of the largest `|w_i δ_i|` among those of the sign of `Σ w_i δ_i`; a sum
//! of 0 counts as negative.
//!
//! Huang et al. 2024, whose task vectors have no weights. The masks and scales by task, which belong to
//! inference, are not part of it. Both semantics are the same.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::largest::Largest;
use crate::program::{Operand, Program};

pub(super) struct Emr;

impl Method for Emr {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "emr",
            title: "EMR-Merging",
            summary: "elect a sign for each position, take the largest entry that has it",
            source: "Huang et al. 2024",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![Parameter::weight(), Parameter::lambda_of_choice(1.0)],
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::new(Operand::TaskVectors, Vec::new(), Largest { elected: true })
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
