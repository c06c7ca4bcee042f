//! RAM: entries that one expert changed are taken over, those that several changed are averaged.
//!
//! An expert changed an entry if `|δ_ij| > epsilon`. `θ_j = θ₀_j + Σ δ_ij / c_j` over the `c_j` experts that
//! changed entry j.
//!
//! Reinforced agent merging, arXiv 2601.13572; parameters and scope are mergekit's. Both semantics are the
//! same.

use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings};
use crate::program::changed::MeanOfChanged;
use crate::program::{Operand, Program};

/// mergekit's default.
const EPSILON: f64 = 1e-5;

pub(super) struct Ram;

impl Method for Ram {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "ram",
            title: "RAM",
            summary: "take over what one expert changed, average what several changed",
            source: "arXiv 2601.13572",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![epsilon()],
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::new(Operand::TaskVectors, Vec::new(), MeanOfChanged { strengthen: false })
    }
}

/// The magnitude up to which an entry of a task vector counts as unchanged.
pub(super) fn epsilon() -> Parameter {
    let range = Range { above: None, least: Some(0.0), most: None };
    Parameter::of_model("epsilon", "entries that differ by no more are unchanged", EPSILON, range)
}
