//! SCE: select the entries that differ most between the experts, weigh the experts by the size of what is
//! selected, erase entries of the minority's sign.
//!
//! ```text
//! select     the fraction select_topk of the entries whose variance over the δ_i is not 0, those of the
//!            largest variance; all other entries of every δ_i are set to 0
//! calculate  w_i = mean(δ̂_i²) / Σ_k mean(δ̂_k²); equal if that sum is below 1e-6
//! erase      elect the sign of Σ δ̂_i for every entry (+ for 0), and keep the δ̂_i that have it
//! ```
//!
//! `θ = θ₀ + Σ w_i δ̂_i / Σ w_i` over the models that agree.
//!
//! Wan et al. 2024 (`FuseChat`). Both semantics are the same: mergekit's code is the authors'.

use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings};
use crate::program::disjoint::Disjoint;
use crate::program::variance::SelectByVariance;
use crate::program::{Operand, Program};

pub(super) struct Sce;

impl Method for Sce {
    fn schema(&self, _: Semantics) -> Schema {
        let select = Parameter::of_merge(
            "select_topk",
            "fraction selected of the entries that differ between the models",
            1.0,
            Range { above: None, least: Some(0.0), most: Some(1.0) },
        );
        Schema {
            name: "sce",
            title: "SCE",
            summary: "select the entries that differ most, weigh experts by their size, elect signs",
            source: "Wan et al. 2024",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![select],
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        let select = SelectByVariance { share: "select_topk" };
        Program::new(Operand::TaskVectors, vec![Box::new(select)], Disjoint::by_mean_squares())
    }
}
