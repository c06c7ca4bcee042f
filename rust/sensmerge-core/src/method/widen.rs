//! WIDEN: weigh the columns of every matrix by how much their lengths and their directions changed.
//!
//! `θ = θ₀ + λ Σ w_i δ_i diag(s_i)`, where the score of a column is the mean of two: of the change of its
//! length and of that of its direction. Columns are ranked within each model, and a score is the softmax of
//! rank / n over the models, or `score_calibration_value` where the rank is above `above_average_value_ratio`
//! times the mean rank. Of an embedding the rows are scored in place of the columns; in tensors of less than two
//! axes every entry by itself, by its magnitude in place of a rank.
//!
//! Yu et al. 2024, who have neither weights nor λ. Both semantics are the same.

use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings};
use crate::program::significance::BySignificance;
use crate::program::{Operand, Program};

/// The authors' defaults.
const RATIO: f64 = 1.0;
const CALIBRATED: f64 = 1.0;

pub(super) struct Widen;

impl Method for Widen {
    fn schema(&self, _: Semantics) -> Schema {
        let not_negative = Range { above: None, least: Some(0.0), most: None };
        let number =
            |name, summary, default| Parameter::of_merge(name, summary, default, not_negative);
        Schema {
            name: "widen",
            title: "WIDEN",
            summary: "weigh columns by how much their lengths and directions changed",
            source: "Yu et al. 2024",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![
                Parameter::weight(),
                number(
                    "above_average_value_ratio",
                    "how far above the mean a column's rank has to be to get a fixed score",
                    RATIO,
                ),
                number("score_calibration_value", "that score", CALIBRATED),
                Parameter::lambda(),
            ],
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        let combine = BySignificance {
            ratio: "above_average_value_ratio",
            calibrated: "score_calibration_value",
        };
        Program::new(Operand::TaskVectors, Vec::new(), combine)
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
