//! Consensus Task Arithmetic: sum the task vectors where several models use an entry, and leave out what one
//! alone or none uses.
//!
//! With `v_i = w_i δ_i` and `V = Σ v_i`, model i claims an entry if `|v_i| > mask_lambda_i · |V − v_i|`.
//! `θ = θ₀ + λ V` for the entries that at least `k` models claim, `θ₀` for the others.
//!
//! Wang et al. 2024, whose task vectors have no weights. Both semantics are the same.

use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings};
use crate::program::claims::ClaimedSum;
use crate::program::{Operand, Program};

/// The authors choose each model's by validation from 0.2, 0.3, ... 0.6.
const MASK_LAMBDA: f64 = 0.4;

/// The authors' default: what no model claims and what one alone claims is left out.
const LEAST: f64 = 2.0;

pub(super) struct Consensus;

impl Method for Consensus {
    fn schema(&self, _: Semantics) -> Schema {
        let not_negative = Range { above: None, least: Some(0.0), most: None };
        let k = Parameter::of_merge(
            "k",
            "number of models that have to claim an entry",
            LEAST,
            not_negative,
        );
        let mask_lambda = Parameter::of_model(
            "mask_lambda",
            "how much of the others' change a model's own has to exceed to claim an entry",
            MASK_LAMBDA,
            not_negative,
        );
        Schema {
            name: "consensus",
            title: "Consensus Task Arithmetic",
            summary: "the sum of the task vectors, where several models use an entry",
            source: "Wang et al. 2024",
            base: Base::Needed,
            models: Count::at_least(2),
            parameters: vec![Parameter::weight(), mask_lambda, k, Parameter::lambda()],
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        let combine = ClaimedSum { factor: "mask_lambda", least: "k" };
        Program::new(Operand::TaskVectors, Vec::new(), combine)
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
