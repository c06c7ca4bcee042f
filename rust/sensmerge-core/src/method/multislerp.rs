//! Multi-SLERP: the point between several models on the sphere.
//!
//! With the directions `u_i = x_i / (‖x_i‖ + eps)` of the flattened tensors and `m = Σ w_i u_i`:
//! `θ = (Σ w_i ‖x_i‖) · m / ‖m‖`, the mean direction with the mean norm. Weights are divided by their sum
//! unless `normalize_weights: false`. With a base, `x_i` is the task vector, and the base is added.
//!
//! mergekit projects the directions into the plane that touches the sphere at `m / ‖m‖`, takes their
//! weighted mean there, and projects it back. That mean is 0, since `Σ w_i (u_i − ⟨u_i, m⟩ m / ‖m‖²)` is,
//! so that nothing of it remains but the formula above; the tests compare with the longer way.
//!
//! Where `m` is 0, as for two opposite directions with equal weights or task vectors that are 0, the
//! result is `Σ w_i x_i`. Both semantics are the same.

use super::{Base, Count, Kind, Method, Owner, Parameter, Range, Schema, Semantics, Settings};
use crate::program::gram::{Gram, Groups, WeightedByGram};
use crate::program::sum::refuse_cancelling;
use crate::program::{Operand, Program, Subject};

/// mergekit's default.
const EPS: f64 = 1e-8;

/// A mean direction that is shorter than this cannot be told from 0: the precision of float32.
const SHORTEST: f64 = 1.0 / (1 << 24) as f64;

pub(super) struct Multislerp;

impl Method for Multislerp {
    fn schema(&self, _: Semantics) -> Schema {
        let eps = Parameter {
            name: "eps",
            summary: "added to the norms that vectors are divided by",
            owner: Owner::Merge,
            kind: Kind::Number {
                default: Some(EPS),
                range: Range { above: None, least: Some(0.0), most: None },
                by_tensor: false,
                search: None,
            },
        };
        Schema {
            name: "multislerp",
            title: "Multi-SLERP",
            summary: "the point between several models or task vectors on the sphere, by weights",
            source: "mergekit",
            base: Base::Optional,
            models: Count::at_least(1),
            parameters: vec![
                Parameter::weight(),
                Parameter::switch("normalize_weights", "divide the weights by their sum", true),
                eps,
            ],
            coefficients: true,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, settings: &Settings) -> Program {
        let operand = if settings.base { Operand::TaskVectors } else { Operand::Parameters };
        let groups = Groups::Tensor;
        let combine = if settings.switch("normalize_weights") {
            WeightedByGram {
                name: "multislerp",
                groups,
                weigh: by_shares,
                check: Some(refuse_cancelling),
            }
        } else {
            WeightedByGram { name: "multislerp as given", groups, weigh: as_given, check: None }
        };
        Program::new(operand, Vec::new(), combine)
    }
}

fn by_shares(gram: &Gram, subject: &Subject) -> Vec<f64> {
    let weights = subject.numbers("weight");
    let sum: f64 = weights.iter().sum();
    weigh(gram, subject, weights.iter().map(|weight| weight / sum).collect())
}

fn as_given(gram: &Gram, subject: &Subject) -> Vec<f64> {
    weigh(gram, subject, subject.numbers("weight").to_vec())
}

fn weigh(gram: &Gram, subject: &Subject, weights: Vec<f64>) -> Vec<f64> {
    if weights.len() == 1 {
        return vec![1.0];
    }
    let eps = subject.number("eps");
    let norms: Vec<f64> = (0..weights.len()).map(|model| gram.norm(model)).collect();
    // The mean direction as a sum of the vectors themselves.
    let share = |(&weight, &norm): (&f64, &f64)| {
        if norm + eps == 0.0 { 0.0 } else { weight / (norm + eps) }
    };
    let shares: Vec<f64> = weights.iter().zip(&norms).map(share).collect();
    let length = gram.length(&shares);
    if length < eps.max(SHORTEST) {
        return weights;
    }
    let norm: f64 = weights.iter().zip(&norms).map(|(weight, norm)| weight * norm).sum();
    shares.into_iter().map(|share| share * norm / length).collect()
}
