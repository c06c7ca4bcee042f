//! WSM, warmup-stable and merge: the mean of checkpoints of one run, with weights that stand for a decay of
//! its learning rate.
//!
//! With n checkpoints from the oldest, i = 0, to the newest: `θ = Σ c_i θ_i` with
//! `c_i = ((i + 1) / n)^power − (i / n)^power`, which sum to 1. A change that a step of the training made
//! between checkpoints i − 1 and i, of which all later checkpoints contain it, is then scaled by
//! `1 − (i / n)^power`.
//!
//! Tian et al. 2025. Both semantics are the same.

use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings};
use crate::program::sum::Decay;
use crate::program::{Operand, Program};

/// The decay `1 − √x`.
const POWER: f64 = 0.5;

pub(super) struct Wsm;

impl Method for Wsm {
    fn schema(&self, _: Semantics) -> Schema {
        let power = Parameter::of_merge(
            "power",
            "the decay is 1 − x to this power: 0.5 is 1 − √x, 1 the plain mean",
            POWER,
            Range { above: Some(0.0), least: None, most: None },
        );
        Schema {
            name: "wsm",
            title: "WSM",
            summary: "the mean of a run's checkpoints, oldest first, by the schedule of a decay",
            source: "Tian et al. 2025",
            base: Base::Unused,
            models: Count::at_least(1),
            parameters: vec![power],
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::new(Operand::Parameters, Vec::new(), Decay { power: "power" })
    }

    fn in_mergekit(&self) -> bool {
        false
    }
}
