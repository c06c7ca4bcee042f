//! DELLA with task arithmetic: drop entries at random, the smaller ones of a row more often, rescale the
//! kept ones, sum.
//!
//! Entries are dropped and rescaled as in `della`. Then `θ = θ₀ + λ Σ w_i δ̂_i`, where the sum is divided
//! by `Σ w_i` with `normalize: true`.

use super::della::{drop_by_rank, parameters};
use super::{Base, Count, Method, Schema, Semantics, Settings};
use crate::program::sum::{Cancelling, WeightedSum};
use crate::program::{Operand, Program};

pub(super) struct DellaLinear;

impl Method for DellaLinear {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "della_linear",
            title: "Linear DELLA",
            summary: "drop entries at random, small ones more often, rescale the survivors, sum",
            source: "Deep, Bhardwaj and Poria 2024",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: parameters(false),
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
        Program::new(Operand::TaskVectors, vec![drop_by_rank(settings)], sum)
    }
}
