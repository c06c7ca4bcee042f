//! TSV-Merge: the largest singular triplets of every task vector, with vectors made orthogonal.
//!
//! ```text
//! for every matrix: w_i δ_i = U_i S_i V_iᵀ; keep the ⌊min(rows, columns) / K⌋ largest triplets of each
//! U = [U_1 … U_K] = P D Qᵀ, U_⊥ = P Qᵀ, and V_⊥ likewise
//! θ = θ₀ + λ U_⊥ diag(S_1 … S_K) V_⊥ᵀ
//! ```
//!
//! Other tensors are the mean of the `w_i δ_i`, times λ. Gargiulo et al. 2025. Both semantics are the
//! same.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::Program;
use crate::program::singular::Triplets;
use crate::program::sum::WeightedMean;

pub(super) struct Tsv;

impl Method for Tsv {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "tsv",
            title: "TSV-Merge",
            summary: "the largest singular triplets of every task vector, made orthogonal",
            source: "Gargiulo et al. 2025",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![Parameter::weight(), Parameter::lambda(), Parameter::matrices()],
            coefficients: true,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::of_matrices(Triplets, WeightedMean)
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
