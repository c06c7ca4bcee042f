//! Passthrough: one model as it is, or multiplied by `scale`.
//!
//! mergekit. Both semantics are the same.

use super::{Base, Count, Kind, Method, Owner, Parameter, Range, Schema, Semantics, Settings};
use crate::program::sum::Scaled;
use crate::program::{Operand, Program};

/// Its name.
pub(crate) const NAME: &str = "passthrough";

pub(super) struct Passthrough;

impl Method for Passthrough {
    fn schema(&self, _: Semantics) -> Schema {
        let scale = Parameter {
            name: "scale",
            summary: "factor of the model's entries",
            owner: Owner::Model,
            kind: Kind::Number {
                default: Some(1.0),
                range: Range::default(),
                by_tensor: true,
                search: None,
            },
        };
        Schema {
            name: NAME,
            title: "Passthrough",
            summary: "one model as it is, or scaled",
            source: "mergekit",
            base: Base::Unused,
            models: Count::exactly(1),
            parameters: vec![scale],
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::new(Operand::Parameters, Vec::new(), Scaled { by: "scale" })
    }
}
