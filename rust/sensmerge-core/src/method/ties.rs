//! TIES: trim small entries, elect a sign for each entry, average the experts that agree with it.
//!
//! Yadav et al. 2023. The two semantics:
//!
//! | | trim | elect | disjoint |
//! |---|---|---|---|
//! | original | one threshold for the whole task vector, ties stay | sign of `Σ δ̂_i`; for a sum of 0 the sign of the model-wide majority | `Σ w_i δ̂_i` over agreeing `δ̂_i`, divided by their number |
//! | mergekit | exactly `max(1, ⌊density·n⌋)` entries of each tensor | sign of `Σ w_i δ̂_i`; + for a sum of 0 | `Σ w_i δ̂_i` over agreeing `w_i δ̂_i`, divided by the sum of their `w_i` |
//!
//! `normalize: false` leaves the division out. `rescale: true` (mergekit only) restores each
//! tensor's L1 norm after the trim.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::disjoint::Disjoint;
use crate::program::rescale::PreserveL1;
use crate::program::trim::Trim;
use crate::program::{Operand, Program, Scope};

/// The density at which searches start: Sens-Merging's experiments trim 0.7 of the entries.
const START: f64 = 0.3;

pub(super) struct Ties;

impl Method for Ties {
    fn schema(&self, semantics: Semantics) -> Schema {
        let mergekit = semantics == Semantics::Mergekit;
        let mut parameters = vec![
            Parameter::weight(),
            Parameter::density("density", "fraction of entries kept", mergekit, Some(START)),
            Parameter::lambda(),
            Parameter::normalize(true),
        ];
        if mergekit {
            parameters.push(Parameter::rescale(false));
        }
        Schema {
            name: "ties",
            title: "TIES",
            summary: "trim small entries, elect a sign for each position, average the entries that have it",
            source: "Yadav et al. 2023",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters,
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, settings: &Settings) -> Program {
        let normalize = settings.switch("normalize");
        if settings.semantics == Semantics::Original {
            let trim = Trim { density: "density", scope: Scope::Model };
            let combine = Disjoint::original(normalize);
            return Program::new(Operand::TaskVectors, vec![Box::new(trim)], combine);
        }
        let trim = Trim { density: "density", scope: Scope::Tensor };
        let combine = Disjoint::mergekit(normalize);
        if settings.switch("rescale") {
            Program::new(Operand::TaskVectors, vec![Box::new(PreserveL1::of(trim))], combine)
        } else {
            Program::new(Operand::TaskVectors, vec![Box::new(trim)], combine)
        }
    }
}
