use pyo3::prelude::*;
use sensmerge_core::method::{METHODS, Schema, Semantics};
use serde_json::json;

/// Describe every merge method.
///
/// Returns:
///     JSON: for each of the two semantics, ``mergekit`` and ``original``, a list of the methods with
///     their parameters, ranges and defaults.
#[pyfunction]
pub(crate) fn methods() -> String {
    let schemas = |semantics| -> Vec<Schema> {
        METHODS.iter().map(|method| method.schema(semantics)).collect()
    };
    json!({
        "mergekit": schemas(Semantics::Mergekit),
        "original": schemas(Semantics::Original),
    })
    .to_string()
}
