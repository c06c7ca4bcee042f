//! What a recipe resolves to: a number for every parameter, by tensor.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The numbers of one tensor, by the name of their parameter.
pub type Numbers = BTreeMap<String, Number>;

/// A parameter's value for one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// The merge's.
    Merge(f64),
    /// Every model's, in the order of the models.
    Models(Vec<f64>),
}
