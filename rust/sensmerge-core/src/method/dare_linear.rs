//! DARE with task arithmetic: drop entries at random, rescale the kept ones, sum.
//!
//! Each entry of a task vector is dropped with probability `1 - density`. The kept entries are
//!
//! - original (Yu et al. 2024): divided by `density`, which keeps the expectation of every entry;
//! - mergekit: multiplied by the factor that restores the tensor's L1 norm.
//!
//! Then `θ = θ₀ + λ Σ w_i δ̂_i`, where the sum is divided by `Σ w_i` with `normalize: true`.
//! `rescale: false` leaves the kept entries as they are.

use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::random_drop::RandomDrop;
use crate::program::rescale::{DivideByDensity, PreserveL1};
use crate::program::sum::{Cancelling, WeightedSum};
use crate::program::{Operand, Program, Step};

/// The density at which searches start: the drop rate of Sens-Merging's experiments is 0.5.
pub(super) const START: f64 = 0.5;

pub(super) struct DareLinear;

impl Method for DareLinear {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "dare_linear",
            title: "DARE",
            summary: "drop entries at random, rescale the survivors, sum",
            source: "Yu et al. 2024",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![
                Parameter::weight(),
                Parameter::density("density", "fraction of entries kept", true, Some(START)),
                Parameter::lambda(),
                Parameter::normalize(false),
                Parameter::rescale(true),
            ],
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
        Program::new(Operand::TaskVectors, vec![drop_and_rescale(settings)], sum)
    }
}

/// Drop entries at random and rescale the survivors, as the settings say.
pub(super) fn drop_and_rescale(settings: &Settings) -> Box<dyn Step> {
    let drop = RandomDrop { density: "density" };
    match (settings.switch("rescale"), settings.semantics) {
        (false, _) => Box::new(drop),
        (true, Semantics::Original) => Box::new(DivideByDensity::of(drop, "density")),
        (true, Semantics::Mergekit) => Box::new(PreserveL1::of(drop)),
    }
}
