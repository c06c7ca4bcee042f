//! Methods that others register at run time.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use super::{Base, METHODS, Method, Schema, Semantics, Settings};
use crate::error::{Error, Result};
use crate::program::function::{Called, Form, Function};
use crate::program::{Operand, Program};

/// The package that a method comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// The name under which it is installed.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl fmt::Display for Package {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.name, self.version)
    }
}

/// A method from outside this crate. Its parameters are numbers; `lambda`, where it has that parameter
/// and task vectors are merged, is applied by the engine.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// Its models and parameters, the same in both semantics.
    pub schema: Schema,
    /// The package that it comes from.
    pub package: Package,
    /// How its function wants the entries.
    pub form: Form,
    /// Its function.
    pub function: Arc<dyn Function>,
}

impl Method for Foreign {
    fn schema(&self, _: Semantics) -> Schema {
        self.schema.clone()
    }

    fn program(&self, settings: &Settings) -> Program {
        let task_vectors = match self.schema.base {
            Base::Needed => true,
            Base::Optional => settings.base,
            Base::Merged | Base::Unused => false,
        };
        let operand = if task_vectors { Operand::TaskVectors } else { Operand::Parameters };
        let called = Called { function: Arc::clone(&self.function), form: self.form };
        Program::new(operand, Vec::new(), called)
    }

    fn in_mergekit(&self) -> bool {
        false
    }

    fn package(&self) -> Option<&Package> {
        Some(&self.package)
    }
}

/// What was registered in this process. Nothing is ever taken out, so that what a merge has found stays.
static REGISTERED: RwLock<Vec<&'static Foreign>> = RwLock::new(Vec::new());

/// The registered methods, in the order of their names.
pub(super) fn registered() -> Vec<&'static Foreign> {
    let mut found = REGISTERED.read().unwrap_or_else(PoisonError::into_inner).clone();
    found.sort_by_key(|method| method.schema.name);
    found
}

/// Register a method for the rest of the process; recipes and [`Builder`](crate::manifest::Builder) then
/// find it by its name.
///
/// ```
/// use std::sync::Arc;
///
/// use sensmerge_core::checkpoint::{Checkpoint, MemoryTensor};
/// use sensmerge_core::dtype::Dtype;
/// use sensmerge_core::engine::{Inputs, Monitor, Options, execute_into};
/// use sensmerge_core::manifest::{Builder, View};
/// use sensmerge_core::method::{
///     Base, Call, Count, Failure, Foreign, Form, Function, Package, Schema, register,
/// };
///
/// /// The largest of the models' entries.
/// #[derive(Debug)]
/// struct Largest;
///
/// impl Function for Largest {
///     fn single(&self, call: Call<f32>) -> Result<(), Failure> {
///         let length = call.out.len();
///         for (place, out) in call.out.iter_mut().enumerate() {
///             let entries = call.rows[place..].iter().step_by(length);
///             *out = entries.copied().fold(f32::NEG_INFINITY, f32::max);
///         }
///         Ok(())
///     }
///
///     fn double(&self, _: Call<f64>) -> Result<(), Failure> {
///         Err(Failure { reason: "merges no float64".into(), cause: None })
///     }
/// }
///
/// register(Foreign {
///     schema: Schema {
///         name: "largest",
///         title: "Largest",
///         summary: "the largest entry of all models",
///         source: "an example",
///         base: Base::Unused,
///         models: Count::at_least(1),
///         parameters: Vec::new(),
///         coefficients: false,
///         learnable: false,
///         statistic: None,
///     },
///     package: Package { name: "my-crate".into(), version: "1.0.0".into() },
///     form: Form::Entries,
///     function: Arc::new(Largest),
/// })?;
///
/// let model = |name: &str, values: [f32; 2]| {
///     let bytes = Box::new(values.map(f32::to_le_bytes).concat());
///     let tensor = MemoryTensor { name: "w".into(), dtype: Dtype::F32, shape: vec![2], bytes };
///     Checkpoint::from_memory(name, vec![tensor]).map(Arc::new)
/// };
/// let (one, other) = (model("one", [1.0, 4.0])?, model("other", [3.0, 2.0])?);
/// let builder = Builder::new("largest").model(View::new(one.clone()));
/// let manifest = builder.model(View::new(other.clone())).build()?;
/// let inputs = Inputs::of(&manifest, vec![one, other])?;
/// let mut merged = [0; 8];
/// let buffers = [("w".to_owned(), &mut merged[..])].into();
/// execute_into(&manifest, &inputs, buffers, &Options::default(), &Monitor::new())?;
/// assert_eq!(merged[..], [3.0_f32, 4.0].map(f32::to_le_bytes).concat());
/// # Ok::<(), sensmerge_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Setting`] if there is a method of this name, or if the schema says what does not hold of
/// methods from outside: they have no switches, and their weights cannot be learned.
pub fn register(method: Foreign) -> Result<()> {
    let schema = &method.schema;
    let refuse = |reason: String| {
        let key = format!("method '{}' of {}", schema.name, method.package);
        Err(Error::setting(key, reason))
    };
    if METHODS.iter().any(|ours| ours.schema(Semantics::default()).name == schema.name) {
        return refuse("is the name of a method of sensmerge; give it another one".into());
    }
    if schema.learnable {
        return refuse("cannot be learnable: derivatives are not asked of functions".into());
    }
    for parameter in &schema.parameters {
        let super::Kind::Number { default, range, .. } = &parameter.kind else {
            return refuse(format!("parameter {} is a switch; make it a number", parameter.name));
        };
        if let Some(default) = default.filter(|default| !range.admits(*default)) {
            let words = range.words();
            return refuse(format!("the default {default} of {} is not {words}", parameter.name));
        }
        let name = parameter.name;
        if schema.parameters.iter().filter(|other| other.name == name).count() > 1 {
            return refuse(format!("has two parameters {name}"));
        }
    }
    let mut registered = REGISTERED.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(other) = registered.iter().find(|other| other.schema.name == schema.name) {
        let other = &other.package;
        return refuse(format!("there is one of this name already, of {other}; uninstall one"));
    }
    registered.push(Box::leak(Box::new(method)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Count, Parameter, find};
    use crate::program::function::{Call, Failure};

    #[derive(Debug)]
    struct Nothing;

    impl Function for Nothing {
        fn single(&self, _: Call<f32>) -> std::result::Result<(), Failure> {
            Ok(())
        }

        fn double(&self, _: Call<f64>) -> std::result::Result<(), Failure> {
            Ok(())
        }
    }

    fn named(name: &'static str) -> Foreign {
        let schema = Schema {
            name,
            title: name,
            summary: "",
            source: "",
            base: Base::Needed,
            models: Count::at_least(1),
            parameters: vec![Parameter::weight()],
            coefficients: true,
            learnable: false,
            statistic: None,
        };
        let package = Package { name: "theirs".into(), version: "1.2".into() };
        Foreign { schema, package, form: Form::Entries, function: Arc::new(Nothing) }
    }

    #[test]
    fn a_method_is_registered_once_and_not_under_a_name_of_ours() {
        register(named("of_a_test")).expect("the name is free");
        let found = find("of_a_test").and_then(|method| method.package());
        assert_eq!(found.map(ToString::to_string).as_deref(), Some("theirs 1.2"));
        let said = |method| register(method).expect_err("it is refused").to_string();
        assert!(said(named("of_a_test")).contains("already, of theirs 1.2"));
        assert!(said(named("ties")).contains("method 'ties' of theirs 1.2: is the name of"));
    }

    #[test]
    fn what_functions_cannot_do_is_refused() {
        let refused = |change: fn(&mut Schema)| {
            let mut method = named("of_another_test");
            change(&mut method.schema);
            register(method).expect_err("it is refused").to_string()
        };
        assert!(refused(|schema| schema.learnable = true).contains("cannot be learnable"));
        let said = refused(|schema| schema.parameters.push(Parameter::normalize(true)));
        assert!(said.contains("parameter normalize is a switch"));
        let said = refused(|schema| schema.parameters.push(Parameter::weight()));
        assert!(said.contains("has two parameters weight"));
        assert!(find("of_another_test").is_none());
    }
}
