//! SLERP: spherical interpolation between two models.
//!
//! With Ω the angle between the flattened tensors, `θ = sin((1−t)Ω)/sinΩ · θ_a + sin(tΩ)/sinΩ · θ_b`;
//! linear interpolation `(1−t) θ_a + t θ_b` where they are almost parallel or almost opposite
//! (|cos Ω| > 0.9995). `a` is the base if the recipe names one, otherwise the first model.
//!
//! Shoemake 1985. Both semantics are the same.

use super::{Base, Count, Kind, Method, Owner, Parameter, Range, Schema, Semantics, Settings};
use crate::program::gram::{Gram, Groups, WeightedByGram};
use crate::program::{Operand, Program, Subject};

/// If the absolute cosine is above this, the tensors are interpolated linearly.
const ALMOST_PARALLEL: f64 = 0.9995;

/// Vectors whose norm is at most this are not normalised before their cosine is computed.
const SMALLEST_NORM: f64 = 1e-8;

pub(super) struct Slerp;

impl Method for Slerp {
    fn schema(&self, _: Semantics) -> Schema {
        let t = Parameter {
            name: "t",
            summary: "how far along the arc: 0 is the base, 1 the other model",
            owner: Owner::Merge,
            kind: Kind::Number {
                default: None,
                range: Range::default(),
                by_tensor: true,
                search: None,
            },
        };
        Schema {
            name: "slerp",
            title: "SLERP",
            summary: "along the arc between two models",
            source: "Shoemake 1985",
            base: Base::Merged,
            models: Count::exactly(2),
            parameters: vec![t],
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        let combine = WeightedByGram { name: "slerp", groups: Groups::Tensor, weigh, check: None };
        Program::new(Operand::Parameters, Vec::new(), combine)
    }
}

fn weigh(gram: &Gram, subject: &Subject) -> Vec<f64> {
    let t = subject.number("t");
    let length = |model| if gram.norm(model) > SMALLEST_NORM { gram.norm(model) } else { 1.0 };
    let cosine = (gram.dot(0, 1) / (length(0) * length(1))).clamp(-1.0, 1.0);
    if cosine.abs() > ALMOST_PARALLEL {
        return vec![1.0 - t, t];
    }
    arc(t, cosine.acos())
}

/// The weights of two vectors, `angle` apart, whose weighted sum is the point at the fraction `t` of the
/// arc between them.
pub(super) fn arc(t: f64, angle: f64) -> Vec<f64> {
    let sine = angle.sin();
    vec![((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine]
}
