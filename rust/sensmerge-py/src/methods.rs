use pyo3::prelude::*;
use sensmerge_core::method::{Semantics, schemas};
use serde_json::json;

/// Describe every merge method.
///
/// Returns:
///     JSON: for each of the two semantics, ``mergekit`` and ``original``, a list of the methods with
///     their parameters, ranges and defaults.
#[pyfunction]
pub(crate) fn methods() -> String {
    json!({
        "mergekit": schemas(Semantics::Mergekit),
        "original": schemas(Semantics::Original),
    })
    .to_string()
}
