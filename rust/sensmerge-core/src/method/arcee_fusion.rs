//! Arcee Fusion: take over the important changes of one model, and none of the others.
//!
//! The importance of an entry is `|δ_j|` times the divergence `Σ p ln(p / q)` between the softmax p of the
//! model's row and that of the base's, q, each probability larger by 1e-8. Entries whose importance is at
//! least the median plus 1.5 times the distance of the quartiles, in its tensor, become the model's; all
//! others stay the base's.
//!
//! mergekit, which takes the quartiles from a random sample of a million entries where a tensor has more.
//! Here they are exact. Both semantics are the same.

use super::{Base, Count, Method, Schema, Semantics, Settings};
use crate::program::fusion::KeepImportant;
use crate::program::sum::Unweighted;
use crate::program::{Operand, Program};

pub(super) struct ArceeFusion;

impl Method for ArceeFusion {
    fn schema(&self, _: Semantics) -> Schema {
        Schema {
            name: "arcee_fusion",
            title: "Arcee Fusion",
            summary: "take over the important changes of one model",
            source: "mergekit",
            base: Base::Needed,
            models: Count::exactly(1),
            parameters: Vec::new(),
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::new(Operand::TaskVectors, vec![Box::new(KeepImportant)], Unweighted)
    }
}
