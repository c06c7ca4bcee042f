//! Karcher mean: the point on the sphere whose squared distances to all models, along the sphere, have
//! the smallest sum.
//!
//! From the normalised mean of the directions `u_i = x_i / ‖x_i‖` of the flattened tensors, repeat at most
//! `max_iter` times: with the angles `Ω_i` between the point `m` and the `u_i`, move along the sphere by
//! the tangent `Σ α_i Ω_i / sin Ω_i · (u_i − cos Ω_i · m)`, until it is shorter than `tol`. Then
//! `θ = m · Σ ‖x_i‖ / K`. All `α_i` are equal. A tensor whose norm is at most `tol` has no direction and
//! counts only in the mean norm.
//!
//! Grove and Karcher 1973; mergekit. Both semantics are the same. All points are sums of the tensors, so
//! that the iteration needs only their scalar products.

use super::{Base, Count, Kind, Method, Owner, Parameter, Range, Schema, Semantics, Settings};
use crate::program::gram::{Gram, Groups, WeightedByGram};
use crate::program::{Operand, Program, Subject};

/// mergekit's defaults.
const MAX_ITER: f64 = 10.0;
const TOL: f64 = 1e-5;

/// More steps are refused: where fewer do not converge, more will not.
const MOST_STEPS: f64 = 1_000_000.0;

/// A shorter step changes no float32, and is the last even where `tol` is less.
const SHORTEST_STEP: f64 = 1.0 / (1 << 24) as f64;

/// A direction that is this near to the opposite of the mean pulls nowhere and is left out of the step.
const SMALLEST_SINE: f64 = 1.0 / (1 << 24) as f64;

pub(super) struct Karcher;

impl Method for Karcher {
    fn schema(&self, _: Semantics) -> Schema {
        let number = |name, summary, default, most| Parameter {
            name,
            summary,
            owner: Owner::Merge,
            kind: Kind::Number {
                default: Some(default),
                range: Range { above: None, least: Some(0.0), most },
                by_tensor: false,
                search: None,
            },
        };
        Schema {
            name: "karcher",
            title: "Karcher mean",
            summary: "the mean of the models on the sphere",
            source: "Grove and Karcher 1973; mergekit",
            base: Base::Merged,
            models: Count::at_least(1),
            parameters: vec![
                number("max_iter", "steps at most", MAX_ITER, Some(MOST_STEPS)),
                number("tol", "length of a step, in radians, that is the last", TOL, None),
            ],
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        let groups = Groups::Tensor;
        let combine = WeightedByGram { name: "karcher", groups, weigh, check: None };
        Program::new(Operand::Parameters, Vec::new(), combine)
    }
}

fn weigh(gram: &Gram, subject: &Subject) -> Vec<f64> {
    let (steps, tol) = (subject.number("max_iter") as usize, subject.number("tol"));
    let models = 0..subject.models;
    if models.len() == 1 {
        return vec![1.0];
    }
    let norms: Vec<f64> = models.clone().map(|model| gram.norm(model)).collect();
    let valid: Vec<usize> = models.filter(|&model| norms[model] > tol).collect();
    let Some(&first) = valid.first() else { return vec![0.0; subject.models] };
    // The point is Σ mean_i x_i; a model's direction is x_i / norms_i.
    let mut mean = vec![0.0; subject.models];
    for &model in &valid {
        mean[model] = 1.0 / valid.len() as f64 / norms[model];
    }
    let length = gram.length(&mean);
    if length < tol || length == 0.0 {
        mean.fill(0.0);
        mean[first] = 1.0 / norms[first];
    } else {
        mean = scaled(mean, length);
    }
    for _ in 0..steps {
        let tangent = tangent(gram, &mean, &norms, &valid, tol);
        let angle = gram.length(&tangent);
        if angle < tol.max(SHORTEST_STEP) {
            break;
        }
        for (number, tangent) in mean.iter_mut().zip(&tangent) {
            *number = angle.cos() * *number + angle.sin() * (tangent / angle);
        }
        let length = gram.length(&mean);
        if length > tol {
            mean = scaled(mean, length);
        }
    }
    let norm = norms.iter().sum::<f64>() / subject.models as f64;
    mean.into_iter().map(|number| norm * number).collect()
}

/// Numbers divided by a length.
fn scaled(numbers: Vec<f64>, length: f64) -> Vec<f64> {
    numbers.into_iter().map(|number| number / length).collect()
}

/// The tangent at the point `Σ mean_i x_i` along which it moves, as numbers of the same kind.
fn tangent(gram: &Gram, mean: &[f64], norms: &[f64], valid: &[usize], tol: f64) -> Vec<f64> {
    let mut tangent = vec![0.0; mean.len()];
    let mut towards_mean = 0.0;
    for &model in valid {
        let dot =
            |(other, number): (usize, &f64)| number * gram.dot(model.min(other), model.max(other));
        let cosine = mean.iter().enumerate().map(dot).sum::<f64>() / norms[model];
        let cosine = cosine.clamp(-1.0, 1.0);
        let angle = cosine.acos();
        if angle < tol || angle.sin() < SMALLEST_SINE {
            continue;
        }
        let factor = angle / angle.sin() / valid.len() as f64;
        tangent[model] += factor / norms[model];
        towards_mean += factor * cosine;
    }
    for (tangent, mean) in tangent.iter_mut().zip(mean) {
        *tangent -= towards_mean * mean;
    }
    tangent
}
