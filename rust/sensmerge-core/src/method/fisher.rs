//! Fisher merging: the mean of the models' parameters, in which every entry counts by how much the model's
//! loss depends on it.
//!
//! `θ = Σ w_i (F_i + ε) θ_i / Σ w_i (F_i + ε)`, entry by entry, where `F_i` is the diagonal of the empirical
//! Fisher information of model i on its samples, divided by its root mean square over the whole model. So
//! models whose gradients are large do not count more than others.
//!
//! Matena and Raffel 2022, equation 4; the empirical Fisher information, from the samples' own labels, and
//! the division follow the code of `MergeLM`. Both semantics are the same.

use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings, Statistic};
use crate::program::importance::ImportanceMean;
use crate::program::{Operand, Program};

const FLOOR: &str = "floor";

pub(super) struct Fisher;

impl Method for Fisher {
    fn schema(&self, _: Semantics) -> Schema {
        let floor = Parameter::of_merge(
            FLOOR,
            "added to every importance, of which the root mean square is 1",
            1e-6,
            Range { above: None, least: Some(0.0), most: None },
        );
        Schema {
            name: "fisher",
            title: "Fisher merging",
            summary: "the mean in which an entry counts by how much its model's loss depends on it",
            source: "Matena and Raffel 2022",
            base: Base::Unused,
            models: Count::at_least(1),
            parameters: vec![Parameter::weight_of_a_mean(), floor],
            coefficients: true,
            learnable: true,
            statistic: Some(Statistic::Fisher),
        }
    }

    fn program(&self, _: &Settings) -> Program {
        let mean = ImportanceMean { epsilon: FLOOR };
        Program::new(Operand::Parameters, Vec::new(), mean)
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
