//! RAM+, tensor by tensor: as `ram`, and what an expert alone changed is strengthened to make up for what it
//! loses where entries are averaged.
//!
//! With the numbers of entries of a tensor that expert i changed alone, `a_i`, and as others did, `s_i`:
//! entries that it alone changed are multiplied by `1 + r · min(s_i / a_i, alpha)`.
//!
//! Reinforced agent merging, arXiv 2601.13572; parameters and scope are mergekit's. Both semantics are the
//! same.

use super::ram::epsilon;
use super::{Base, Count, Method, Parameter, Range, Schema, Semantics, Settings};
use crate::program::changed::MeanOfChanged;
use crate::program::{Operand, Program};

/// mergekit's defaults.
const R: f64 = 0.1;
const ALPHA: f64 = 0.2;

pub(super) struct RamplusTl;

impl Method for RamplusTl {
    fn schema(&self, _: Semantics) -> Schema {
        let number = Parameter::of_merge;
        let positive = Range { above: None, least: Some(0.0), most: None };
        Schema {
            name: "ramplus_tl",
            title: "RAM+, tensor by tensor",
            summary: "as ram, with what one expert alone changed strengthened",
            source: "arXiv 2601.13572",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![
                epsilon(),
                number("r", "how much is added to what one expert changed", R, Range::default()),
                number("alpha", "bound of the ratio of shared to own changes", ALPHA, positive),
            ],
            coefficients: false,
            learnable: false,
            statistic: None,
        }
    }

    fn program(&self, _: &Settings) -> Program {
        Program::new(Operand::TaskVectors, Vec::new(), MeanOfChanged { strengthen: true })
    }
}
