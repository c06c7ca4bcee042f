use pyo3::prelude::*;
use sensmerge_core::method::{Semantics, outside_mergekit, packages, schemas};
use serde_json::json;

/// Describe every merge method.
///
/// Returns:
///     JSON: for each of the two semantics, ``mergekit`` and ``original``, a list of the methods with
///     their parameters, ranges and defaults; and under ``outside_mergekit`` the names of those that
///     mergekit does not have; under ``packages``, by name, the package of every registered method.
#[pyfunction]
pub(crate) fn methods() -> String {
    json!({
        "mergekit": schemas(Semantics::Mergekit),
        "original": schemas(Semantics::Original),
        "outside_mergekit": outside_mergekit(),
        "packages": packages(),
    })
    .to_string()
}
