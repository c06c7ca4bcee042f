//! DELLA: drop entries at random, the smaller ones of a row more often, rescale the kept ones, elect
//! signs.
//!
//! In each row the entries of a task vector are ranked by magnitude; the probability with which one is
//! kept rises with its rank from `density − epsilon` to `density + epsilon`. The kept entries are
//!
//! - original (Deep, Bhardwaj and Poria 2024): divided by their own probability;
//! - mergekit: multiplied by the factor that restores the tensor's L1 norm.
//!
//! Then a sign is elected for every entry, that of `Σ w_i δ̂_i` (+ for a sum of 0), and the `w_i δ̂_i`
//! that agree with it are summed and divided by the sum of their `w_i`; `normalize: false` leaves the
//! division out.

use super::{Base, Count, Kind, Method, Parameter, Range, Schema, Semantics, Settings};
use crate::program::disjoint::Disjoint;
use crate::program::ranked_drop::RankedDrop;
use crate::program::rescale::PreserveL1;
use crate::program::{Operand, Program, Step};

/// mergekit's default.
const EPSILON: f64 = 0.15;

/// The densities that searches try, which leave room for the default epsilon, and that at which they
/// start.
const SEARCHED: (f64, f64) = (0.2, 0.8);
const START: f64 = 0.5;

pub(super) struct Della;

impl Method for Della {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "della",
            title: "DELLA",
            summary: "drop entries at random, small ones more often, rescale the survivors, elect signs",
            source: "Deep, Bhardwaj and Poria 2024",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: parameters(true),
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, settings: &Settings) -> Program {
        let combine = Disjoint::mergekit(settings.switch("normalize"));
        Program::new(Operand::TaskVectors, vec![drop_by_rank(settings)], combine)
    }
}

/// The parameters of both methods; `normalize` is the default of that switch.
pub(super) fn parameters(normalize: bool) -> Vec<Parameter> {
    let mut density =
        Parameter::density("density", "mean fraction of entries kept", true, Some(START));
    if let Kind::Number { search: Some(search), .. } = &mut density.kind {
        (search.low, search.high) = SEARCHED;
    }
    let summary = "how far the chance to be kept may be from the density";
    let range = Range { above: None, least: Some(0.0), most: None };
    vec![
        Parameter::weight(),
        density,
        Parameter::of_model("epsilon", summary, EPSILON, range),
        Parameter::lambda(),
        Parameter::normalize(normalize),
        Parameter::rescale(true),
    ]
}

/// Drop entries by rank and rescale the survivors, as the settings say.
pub(super) fn drop_by_rank(settings: &Settings) -> Box<dyn Step> {
    let rescale = settings.switch("rescale");
    let own = rescale && settings.semantics == Semantics::Original;
    let drop = RankedDrop { density: "density", epsilon: "epsilon", rescale: own };
    if rescale && !own { Box::new(PreserveL1::of(drop)) } else { Box::new(drop) }
}
