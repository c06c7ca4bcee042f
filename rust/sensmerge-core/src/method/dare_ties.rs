//! DARE with TIES: drop entries at random, rescale the kept ones, elect signs.
//!
//! Entries are dropped and rescaled as in `dare_linear`. Then
//!
//! - original (Yu et al. 2024): TIES with a trim of its own (`ties_density`, 1 by default), the
//!   unweighted election and the mean over agreeing experts;
//! - mergekit: the weighted election and the plain sum of agreeing `w_i δ̂_i`, no trim.

use super::dare_linear::{START, drop_and_rescale};
use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::disjoint::Disjoint;
use crate::program::random_drop::RandomDrop;
use crate::program::rescale::DivideByDensity;
use crate::program::trim::Trim;
use crate::program::{Operand, Program, Scope, Step};

pub(super) struct DareTies;

impl Method for DareTies {
    fn schema(&self, semantics: Semantics) -> Schema {
        let mut parameters = vec![
            Parameter::weight(),
            Parameter::density(
                "density",
                "fraction of entries kept by the drop",
                true,
                Some(START),
            ),
        ];
        if semantics == Semantics::Original {
            let summary = "fraction of entries kept by the trim";
            parameters.push(Parameter::density("ties_density", summary, false, None));
        }
        let normalize = semantics == Semantics::Original;
        parameters.extend([
            Parameter::lambda(),
            Parameter::normalize(normalize),
            Parameter::rescale(true),
        ]);
        Schema {
            name: "dare_ties",
            title: "DARE-TIES",
            summary: "drop entries at random, rescale the survivors, elect signs",
            source: "Yu et al. 2024; Yadav et al. 2023",
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
        if settings.semantics == Semantics::Mergekit {
            let steps = vec![drop_and_rescale(settings)];
            return Program::new(Operand::TaskVectors, steps, Disjoint::mergekit(normalize));
        }
        let drop = RandomDrop { density: "density" };
        // Divided after the trim, which compares the magnitudes of the task vector itself: the factor
        // may differ from tensor to tensor, since `density` may.
        let trim = Trim { density: "ties_density", scope: Scope::Model };
        let trim: Box<dyn Step> = if settings.switch("rescale") {
            Box::new(DivideByDensity::of(trim, "density"))
        } else {
            Box::new(trim)
        };
        let steps = vec![Box::new(drop), trim];
        Program::new(Operand::TaskVectors, steps, Disjoint::original(normalize))
    }
}
