//! Iso-C: the sum of the task vectors with all its singular values made equal.
//!
//! For every matrix, `Σ w_i δ_i = U diag(s) Vᵀ` and `θ = θ₀ + λ · mean(s) · U Vᵀ`. Other tensors are the
//! mean of the `w_i δ_i`, times λ.
//!
//! Marczak et al. 2025. Both semantics are the same.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::Program;
use crate::program::singular::Isotropic;
use crate::program::sum::WeightedMean;

pub(super) struct IsoC;

impl Method for IsoC {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "iso_c",
            title: "Iso-C",
            summary: "the sum of the task vectors with equal singular values",
            source: "Marczak et al. 2025",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![Parameter::weight(), Parameter::lambda(), Parameter::matrices()],
            coefficients: true,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::of_matrices(Isotropic, WeightedMean)
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
