//! Iso-CTS: as Iso-C, but that the smallest directions of the sum make room for those of single experts.
//!
//! ```text
//! for every matrix of r = min(rows, columns): the first c directions of Σ w_i δ_i, with its left vectors U_c
//! from every w_i δ_i − U_c U_cᵀ w_i δ_i its first (r − c) / K directions
//! make the left vectors orthogonal, and the right ones; give all of them the mean of the singular values
//! ```
//!
//! Other tensors are the mean of the `w_i δ_i`, times λ. Marczak et al. 2025. Both semantics are the
//! same.

use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings};
use crate::program::Program;
use crate::program::singular::CommonAndSpecific;
use crate::program::sum::WeightedMean;

pub(super) struct IsoCts;

impl Method for IsoCts {
    fn schema(&self, _: Semantics) -> Schema {
        let common = Parameter::of_merge(
            "common_space_fraction",
            "fraction of the directions that are taken from the sum",
            0.8,
            Range { above: None, least: Some(0.0), most: Some(1.0) },
        );
        Schema {
            name: "iso_cts",
            title: "Iso-CTS",
            summary: "as iso_c, with directions of single experts in place of the smallest ones",
            source: "Marczak et al. 2025",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![
                Parameter::weight(),
                Parameter::lambda(),
                common,
                Parameter::matrices(),
            ],
            coefficients: true,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        let common = "common_space_fraction";
        Program::of_matrices(CommonAndSpecific { common }, WeightedMean)
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
