//! `NearSwap`: from the base towards another model, the whole way where they are near each other.
//!
//! `θ = w θ₁ + (1 − w) θ₀` with `w = t / |θ₁ − θ₀|`, at most 1: entries that differ by `t` or less become
//! the other model's, all others move by `t`. A difference below 1e-6 counts as 1e-6.
//!
//! mergekit, after an idea of alchemonaut's. Both semantics are the same.

use super::{Base, Count, Kind, Method, Owner, Parameter, Range, Schema, Semantics, Settings};
use crate::program::near::Near;
use crate::program::{Operand, Program};

pub(super) struct Nearswap;

impl Method for Nearswap {
    fn schema(&self, _: Semantics) -> Schema {
        let t = Parameter {
            name: "t",
            summary: "how far an entry may move from the base",
            owner: Owner::Merge,
            kind: Kind::Number {
                default: None,
                range: Range { above: None, least: Some(0.0), most: None },
                by_tensor: true,
                search: None,
            },
        };
        Schema {
            name: "nearswap",
            title: "NearSwap",
            summary: "from the base to another model, the whole way where they are near each other",
            source: "mergekit",
            base: Base::Needed,
            models: Count::exactly(1),
            parameters: vec![t],
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::new(Operand::TaskVectors, Vec::new(), Near { t: "t" })
    }
}
