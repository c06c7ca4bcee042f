//! WUDI: the closed form of the merge with the least interference, with `C_i = δ_iᵀ δ_i / ‖δ_i‖²_F`.
//!
//! For every matrix, `δ* = (Σ w_i δ_i C_i) (Σ w_i C_i + ρ I)⁻¹`, where ρ is `ridge` times the mean eigenvalue
//! of `Σ w_i C_i`; with `ridge: 0` the pseudo-inverse. `θ = θ₀ + λ δ*`. Other tensors are the weighted
//! mean of the task vectors, times λ.
//!
//! Cheng et al. 2025. Both semantics are the same.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::Program;
use crate::program::solve::{InputsBy, Solution};
use crate::program::sum::{Cancelling, WeightedSum};

pub(super) struct Wudi;

impl Method for Wudi {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "wudi",
            title: "WUDI",
            summary: "as actmat, with every expert counting alike",
            source: "Cheng et al. 2025",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![
                Parameter::weight_of_a_mean(),
                Parameter::lambda(),
                Parameter::ridge(),
                Parameter::matrices(),
            ],
            coefficients: true,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        let solution = Solution { statistic: InputsBy::NormalisedTaskVector, ridge: "ridge" };
        let mean = WeightedSum { normalize: true, cancelling: Cancelling::NotDivided };
        Program::of_matrices(solution, mean)
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
