//! The numbers that a recipe resolves to: the value of every parameter for one tensor.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The numbers of one tensor, by the name of the parameter.
pub type Numbers = BTreeMap<String, Number>;

/// A parameter's value for one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// One number for the merge.
    Merge(f64),
    /// One number for each model, in the order of the models.
    Models(Vec<f64>),
}
