//! `NuSLERP`: SLERP by relative weights, of models or of their task vectors.
//!
//! `t = w_b / (w_a + w_b)`, or ½ if the weights sum to 0. The interpolation is that of SLERP: between
//! whole tensors, or, with `nuslerp_flatten: false`, between the rows of each matrix (its columns with
//! `nuslerp_row_wise: true`). With a base, the task vectors are merged and added to it.
//!
//! mergekit. Both semantics are the same.

use super::slerp::arc;
use super::{Base, Count, Method, Parameter, Schema, Semantics, Settings};
use crate::program::gram::{Gram, Groups, WeightedByGram};
use crate::program::{Operand, Program, Subject};

/// If the sum of the weights is nearer to 0 than this, `t` is ½.
const SMALLEST_SUM: f64 = 1e-6;

/// Smallest divisor of a vector when cosines are computed: a smaller norm is replaced by it.
const SMALLEST_NORM: f64 = 1e-7;

/// If the squared sine of the angle is at most this, the vectors count as parallel and are interpolated
/// linearly: mergekit compares the cosine in float32, whose precision this is.
const SMALLEST_SQUARED_SINE: f64 = 1.0 / (1 << 24) as f64;

pub(super) struct Nuslerp;

impl Method for Nuslerp {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "nuslerp",
            title: "NuSLERP",
            summary: "along the arc between two models or two task vectors, by relative weights",
            source: "mergekit",
            base: Base::Optional,
            models: Count::exactly(2),
            parameters: vec![
                Parameter::weight(),
                Parameter::switch(
                    "nuslerp_flatten",
                    "take each tensor as one vector; off, each row of a matrix",
                    true,
                ),
                Parameter::switch(
                    "nuslerp_row_wise",
                    "where tensors are not flattened: the columns of a matrix instead of its rows",
                    false,
                ),
            ],
            coefficients: true,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, settings: &Settings) -> Program {
        let operand = if settings.base { Operand::TaskVectors } else { Operand::Parameters };
        let flatten = settings.switch("nuslerp_flatten");
        let groups = match (flatten, settings.switch("nuslerp_row_wise")) {
            (true, _) => Groups::Tensor,
            (false, false) => Groups::Rows,
            (false, true) => Groups::Columns,
        };
        let combine = WeightedByGram { name: "nuslerp", groups, weigh, check: None };
        Program::new(operand, Vec::new(), combine)
    }
}

fn weigh(gram: &Gram, subject: &Subject) -> Vec<f64> {
    let weights = subject.numbers("weight");
    let sum = weights[0] + weights[1];
    let t = if sum.abs() < SMALLEST_SUM { 0.5 } else { weights[1] / sum };
    let norm = |model| gram.norm(model).max(SMALLEST_NORM);
    let cosine = (gram.dot(0, 1) / (norm(0) * norm(1))).clamp(-1.0, 1.0);
    if 1.0 - cosine * cosine <= SMALLEST_SQUARED_SINE {
        return vec![1.0 - t, t];
    }
    arc(t, cosine.acos())
}
