//! Model Breadcrumbs with the election of TIES: drop the smallest and the largest entries, elect signs.
//!
//! Entries are dropped as by mergekit's `breadcrumbs`. Then a sign is elected for every entry, that of
//! `Σ w_i δ̂_i` (+ for a sum of 0), and the `w_i δ̂_i` that agree with it are summed; the sum is divided
//! by the sum of their `w_i` with `normalize: true`.
//!
//! mergekit. Both semantics are the same.

use super::breadcrumbs::{band, band_parameters};
use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::disjoint::Disjoint;
use crate::program::{Operand, Program};

pub(super) struct BreadcrumbsTies;

impl Method for BreadcrumbsTies {
    fn schema(&self, _: Semantics) -> Schema {
        let mut parameters = vec![Parameter::weight()];
        parameters.extend(band_parameters());
        parameters.extend([
            Parameter::lambda(),
            Parameter::normalize(false),
            Parameter::rescale(false),
        ]);
        Schema {
            name: "breadcrumbs_ties",
            title: "Model Breadcrumbs with TIES",
            summary: "drop the smallest and the largest entries, elect signs",
            source: "Davari and Belilovsky 2023; Yadav et al. 2023",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters,
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, settings: &Settings) -> Program {
        let combine = Disjoint::mergekit(settings.switch("normalize"));
        Program::new(Operand::TaskVectors, vec![band(settings)], combine)
    }
}
