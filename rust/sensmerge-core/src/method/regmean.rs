//! `RegMean`: for every linear layer, the matrix whose outputs are nearest to those of all models, each on
//! the inputs of its own samples.
//!
//! `δ* = (Σ w_i δ_i C_i) (Σ w_i C_i + ρ I)⁻¹` with `C_i = X_iᵀ X_i / n`, whose entries off the diagonal are
//! multiplied by `off_diagonal`, and ρ, `ridge` times the mean eigenvalue of `Σ w_i C_i`. `θ = θ₀ + λ δ*`. Other
//! tensors are the weighted mean of the task vectors, times λ.
//!
//! Jin et al. 2023, equation 2 and section 3.3; without ridge, that is the mean of the parameters
//! themselves. Both semantics are the same.

use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings, Statistic};
use crate::program::Program;
use crate::program::solve::{InputsBy, Solution};
use crate::program::sum::{Cancelling, WeightedSum};

const OFF_DIAGONAL: &str = "off_diagonal";

pub(super) struct RegMean;

impl Method for RegMean {
    fn schema(&self, _: Semantics) -> Schema {
        let off_diagonal = Parameter::of_merge(
            OFF_DIAGONAL,
            "factor of the entries of Gram matrices off the diagonal",
            0.9,
            Range { above: None, least: Some(0.0), most: Some(1.0) },
        );
        Schema {
            name: "regmean",
            title: "RegMean",
            summary: "the matrix nearest to all experts, on the inputs of their own samples",
            source: "Jin et al. 2023",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![
                Parameter::weight_of_a_mean(),
                Parameter::lambda_of_choice(1.0),
                off_diagonal,
                Parameter::ridge(),
                Parameter::matrices(),
            ],
            coefficients: true,
            learnable: false,
            statistic: Some(Statistic::Gram),
        }
    }

    fn program(&self, _: &Settings) -> Program {
        let solution = Solution { statistic: InputsBy::Samples(OFF_DIAGONAL), ridge: "ridge" };
        let mean = WeightedSum { normalize: true, cancelling: Cancelling::NotDivided };
        Program::of_matrices(solution, mean)
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
