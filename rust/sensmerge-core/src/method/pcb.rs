//! PCB-Merging: entries compete within their task vector and with those of the others, and the winners are
//! averaged.
//!
//! With K models, an entry's score is `exp(K n²) tanh(δ_i Σ_k δ_k)`, where n is `|δ_i|` scaled to 0 … 1 within
//! its tensor. Of every task vector's tensor the fraction `density` of the largest positive scores counts, by
//! how far they are above the others: `t_i` from 0 to 1. `θ = θ₀ + λ Σ w_i t_i δ̂_i / Σ t_i`, where the extreme
//! magnitudes, one in 10,000 at each end, are cut.
//!
//! Du et al. 2024, who take the whole model as one tensor. Both semantics are the same.

use super::{
    Base, Count, Kind, Method, Owner, Parameter, Range, Schema, Search, Semantics, Settings,
};
use crate::program::balance::Balanced;
use crate::program::{Operand, Program};

/// The default of the authors' code.
const DENSITY: f64 = 0.1;

pub(super) struct Pcb;

impl Method for Pcb {
    fn schema(&self, _: Semantics) -> Schema {
        let density = Parameter {
            name: "density",
            summary: "fraction of entries that count",
            owner: Owner::Model,
            kind: Kind::Number {
                default: Some(DENSITY),
                range: Range { above: Some(0.0), least: None, most: Some(1.0) },
                by_tensor: true,
                search: Some(Search {
                    low: 0.05,
                    high: 0.5,
                    log: false,
                    low_is_shared: false,
                    start: None,
                }),
            },
        };
        Schema {
            name: "pcb",
            title: "PCB-Merging",
            summary: "the mean of entries that win a competition within and between the task vectors",
            source: "Du et al. 2024",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![Parameter::weight(), density, Parameter::lambda_of_choice(1.0)],
            coefficients: true,
            learnable: true,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::new(Operand::TaskVectors, Vec::new(), Balanced { density: "density" })
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
