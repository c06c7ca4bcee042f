use std::sync::Arc;

use pyo3::prelude::*;
use sensmerge_core::method::{
    Base, Count, Foreign, Form, Function, Kind, Owner, Package, Parameter, Range, Schema, Search,
    register,
};
use serde::Deserialize;

use crate::error::{bad_input, to_python};
use crate::function::PythonFunction;
use crate::native::NativeFunction;

/// A method as Python describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    name: String,
    title: String,
    summary: String,
    source: String,
    base: Base,
    models: Count,
    parameters: Vec<DescribedParameter>,
    coefficients: bool,
    whole: bool,
    package: Package,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DescribedParameter {
    name: String,
    summary: String,
    owner: Owner,
    default: Option<f64>,
    range: Range,
    search: Option<Search>,
}

/// The names of what is registered stay for the rest of the process, as the method does.
fn kept(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

impl Described {
    fn read(text: &str) -> PyResult<Self> {
        serde_json::from_str(text).map_err(|error| bad_input(format!("method: {error}")))
    }

    /// The names of the parameters that its function gets; λ is applied by the engine.
    fn parameters(&self) -> Vec<&'static str> {
        let names = self.parameters.iter().map(|parameter| parameter.name.clone());
        names.filter(|name| name != "lambda").map(kept).collect()
    }

    fn register(self, function: Arc<dyn Function>) -> PyResult<()> {
        let parameters = self.parameters.into_iter().map(|parameter| Parameter {
            name: kept(parameter.name),
            summary: kept(parameter.summary),
            owner: parameter.owner,
            kind: Kind::Number {
                default: parameter.default,
                range: parameter.range,
                by_tensor: true,
                search: parameter.search,
            },
        });
        let schema = Schema {
            name: kept(self.name),
            title: kept(self.title),
            summary: kept(self.summary),
            source: kept(self.source),
            base: self.base,
            models: self.models,
            parameters: parameters.collect(),
            coefficients: self.coefficients,
            learnable: false,
            statistic: None,
        };
        let form = if self.whole { Form::Tensors } else { Form::Entries };
        register(Foreign { schema, package: self.package, form, function }).map_err(to_python)
    }
}

/// Register a method whose function is a Python function, for the rest of the process.
///
/// Args:
///     described: JSON: the method's schema, its package, and whether it wants whole tensors.
///     function: Called under the interpreter's lock, by any thread, with the tensor's name and shape,
///         the number of models, whether entries are float64, bytes of the entries of all models, bytes
///         of the base's or None, and the numbers by parameter. Returns bytes of the merged entries.
///
/// Raises:
///     InputError: There is a method of this name, or the description cannot be used.
#[pyfunction]
#[pyo3(signature = (described, function: "collections.abc.Callable[..., bytes]"))]
pub(crate) fn register_function(described: &str, function: Py<PyAny>) -> PyResult<()> {
    Described::read(described)?.register(Arc::new(PythonFunction { function }))
}

/// Register a method whose function is a C function, for the rest of the process.
///
/// Args:
///     described: JSON: the method's schema, its package, and whether it wants whole tensors.
///     address: The function's address, in a library that stays loaded.
///
/// Raises:
///     InputError: There is a method of this name, the description cannot be used, or the address is 0.
#[pyfunction]
pub(crate) fn register_native(described: &str, address: usize) -> PyResult<()> {
    let described = Described::read(described)?;
    let function = NativeFunction::at(address, described.parameters())
        .ok_or_else(|| bad_input("method: its function has the address 0"))?;
    described.register(Arc::new(function))
}
