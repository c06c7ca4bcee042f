//! Model Breadcrumbs: drop the smallest and the largest entries, sum.
//!
//! The largest entries of a task vector are taken for outliers, the smallest for noise. What is left
//! between them is summed: `θ = θ₀ + λ Σ w_i δ̂_i`; the sum is divided by `Σ w_i` with `normalize: true`.
//!
//! Davari and Belilovsky 2023. The two semantics:
//!
//! | | of | dropped at the top | kept |
//! |---|---|---|---|
//! | original | every row | `⌊gamma·n⌋` | the next `⌊density·n⌋`, or what there is |
//! | mergekit | every tensor | `⌊gamma·n⌋`, fewer where not enough would be left | the next `⌊density·n⌋` |
//!
//! In mergekit's, density 1 drops nothing, and `rescale: true` restores each tensor's L1 norm.

use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings};
use crate::program::band::{Band, BandOfRows};
use crate::program::rescale::PreserveL1;
use crate::program::sum::{Cancelling, WeightedSum};
use crate::program::{Operand, Program, Step};

/// The density at which searches start, that of most published recipes.
const START: f64 = 0.9;

/// mergekit's default.
const GAMMA: f64 = 0.01;

pub(super) struct Breadcrumbs;

impl Method for Breadcrumbs {
    fn schema(&self, semantics: Semantics) -> Schema {
        let mut parameters = vec![Parameter::weight()];
        parameters.extend(band_parameters());
        parameters.extend([Parameter::lambda(), Parameter::normalize(false)]);
        if semantics == Semantics::Mergekit {
            parameters.push(Parameter::rescale(false));
        }
        Schema {
            name: "breadcrumbs",
            title: "Model Breadcrumbs",
            summary: "drop the smallest and the largest entries, sum",
            source: "Davari and Belilovsky 2023",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters,
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
        let step: Box<dyn Step> = match settings.semantics {
            Semantics::Mergekit => band(settings),
            Semantics::Original => Box::new(BandOfRows { density: "density", gamma: "gamma" }),
        };
        Program::new(Operand::TaskVectors, vec![step], sum)
    }
}

/// The parameters of a band of magnitudes.
pub(super) fn band_parameters() -> [Parameter; 2] {
    let range = Range { above: None, least: Some(0.0), most: Some(1.0) };
    [
        Parameter::density("density", "fraction of entries kept", true, Some(START)),
        Parameter::of_model("gamma", "fraction of entries dropped as the largest", GAMMA, range),
    ]
}

/// Keep a band of each tensor's magnitudes, and rescale it as the settings say.
pub(super) fn band(settings: &Settings) -> Box<dyn Step> {
    let band = Band { density: "density", gamma: "gamma" };
    if settings.switch("rescale") { Box::new(PreserveL1::of(band)) } else { Box::new(band) }
}
