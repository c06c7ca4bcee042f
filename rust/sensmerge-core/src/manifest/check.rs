//! Whether the numbers and shapes of a manifest fit its method.

use super::{Manifest, Merge, Output, Source};
use crate::error::{Error, Result};
use crate::method::{Kind, Owner, Package, Parameter, Semantics, Settings, Statistic, find};
use crate::numbers::{Number, Numbers};
use crate::program::{Operand, Scope};

/// Refuse a manifest whose numbers do not fit its method, wherever it came from.
pub(super) fn check(manifest: &Manifest) -> Result<()> {
    let settings = &manifest.method;
    let method = find(&settings.name).ok_or_else(|| unknown(settings))?;
    if method.package() != settings.package.as_ref() {
        return Err(other_package(settings, method.package()));
    }
    let schema = method.schema(settings.semantics);
    let program = method.program(settings);
    let switch =
        |name: &str| matches!(schema.parameter(name).map(|p| &p.kind), Some(Kind::Switch { .. }));
    if let Some(name) = settings.switches.keys().find(|name| !switch(name)) {
        return Err(Error::setting(format!("parameters.{name}"), "is not a switch of the method"));
    }
    let mut switches = schema.parameters.iter().filter(|parameter| switch(parameter.name));
    if let Some(missing) = switches.find(|known| !settings.switches.contains_key(known.name)) {
        let key = format!("parameters.{}", missing.name);
        return Err(Error::setting(key, "is neither on nor off"));
    }
    let mut counts = manifest.merges().map(|(_, merge)| merge.experts.len());
    let count = counts.next();
    if program.scope() == Scope::Model && counts.any(|other| Some(other) != count) {
        let reason = format!(
            "{} with these settings looks at the whole model at once, and its slices have different \
             numbers of models",
            settings.name
        );
        return Err(Error::setting("merge_method", reason));
    }
    let mut first: Option<&Numbers> = None;
    for (output, merge) in manifest.merges() {
        if merge.base.is_some() != (program.operand == Operand::TaskVectors) {
            let reason = if merge.base.is_some() {
                "has a base, which the method does not use"
            } else {
                "lacks the base that the method needs"
            };
            return Err(Error::setting(&output.name, reason));
        }
        let shapes = merge.base.iter().chain(&merge.experts).map(Source::shape);
        if let Some(shape) = shapes.into_iter().find(|shape| *shape != output.shape) {
            let reason = format!("has shape {:?}, but an input has {shape:?}", output.shape);
            return Err(Error::setting(&output.name, reason));
        }
        check_statistics(schema.statistic, output, merge)?;
        check_damping(output, merge)?;
        if let Some(packing) = &output.packing {
            packing.check(&output.name, &output.shape)?;
        }
        for parameter in &schema.parameters {
            check_number(manifest, output, merge, parameter, first)?;
        }
        program.check(&merge.subject(output, manifest.seed))?;
        first = first.or(Some(&merge.numbers));
    }
    Ok(())
}

/// Refuse statistics that the method does not read, that some model lacks, or of another shape.
fn check_statistics(statistic: Option<Statistic>, output: &Output, merge: &Merge) -> Result<()> {
    let (found, models) = (&merge.statistics, merge.experts.len());
    let shape = statistic.and_then(|statistic| statistic.shape(&output.shape));
    let fits = found.is_empty()
        || (found.len() == models && found.iter().all(|source| Some(source.shape()) == shape));
    if fits {
        return Ok(());
    }
    let reason = "has statistics that the method does not read, or of other models or shapes";
    Err(Error::setting(&output.name, reason))
}

/// Refuse damping where no task vector is merged, or by activations of other channels.
fn check_damping(output: &Output, merge: &Merge) -> Result<()> {
    let Some(damping) = &merge.damping else { return Ok(()) };
    let mismatch = match merge.base {
        None => Some("is damped, and no task vector is merged".to_owned()),
        Some(_) => damping.mismatch(&output.shape),
    };
    mismatch.map_or(Ok(()), |reason| Err(Error::setting(&output.name, reason)))
}

fn unknown(settings: &Settings) -> Error {
    let name = &settings.name;
    let reason = match &settings.package {
        None => format!("'{name}' is not a known method"),
        Some(package) => format!("'{name}' is a method of {package}; {}", install(package)),
    };
    Error::setting("merge_method", reason)
}

fn install(package: &Package) -> String {
    format!("install it: pip install {}=={}", package.name, package.version)
}

/// The error of a manifest whose method is that of another package, or of another version.
fn other_package(settings: &Settings, found: Option<&Package>) -> Error {
    let name = &settings.name;
    let here = found.map_or_else(|| "sensmerge itself".into(), ToString::to_string);
    let reason = match &settings.package {
        None => format!("the manifest's '{name}' names no package, and here it is of {here}"),
        Some(package) => {
            format!(
                "the manifest's '{name}' is of {package}, here it is of {here}; {}",
                install(package)
            )
        }
    };
    Error::setting("merge_method", reason)
}

/// Refuse a number that is missing, of the wrong owner, out of bounds, or different from that of the
/// `first` tensor if the parameter has one number for the whole model.
fn check_number(
    manifest: &Manifest,
    output: &Output,
    merge: &Merge,
    parameter: &Parameter,
    first: Option<&Numbers>,
) -> Result<()> {
    let Kind::Number { range, by_tensor, .. } = &parameter.kind else { return Ok(()) };
    let key = |model: Option<usize>| match model {
        None => format!("parameters.{}", parameter.name),
        Some(place) => format!("models[{place}].parameters.{}", parameter.name),
    };
    let numbers: Vec<(Option<usize>, f64)> =
        match (parameter.owner, merge.numbers.get(parameter.name)) {
            (Owner::Merge, Some(Number::Merge(number))) => vec![(None, *number)],
            (Owner::Model, Some(Number::Models(numbers)))
                if numbers.len() == merge.experts.len() =>
            {
                numbers.iter().enumerate().map(|(place, &number)| (Some(place), number)).collect()
            }
            _ => {
                let one = if parameter.owner == Owner::Model { "one per model" } else { "one" };
                let reason = format!("'{}' needs {one} in the manifest", output.name);
                return Err(Error::setting(key(None), reason));
            }
        };
    for (model, number) in numbers {
        if !range.admits(number) {
            let (name, words) = (&output.name, range.words());
            return Err(Error::setting(
                key(model),
                format!("{number} for '{name}' is not {words}"),
            ));
        }
    }
    let same =
        first.is_none_or(|first| first.get(parameter.name) == merge.numbers.get(parameter.name));
    if !by_tensor && !same {
        let reason = format!(
            "with semantics: {} {} takes one number for the whole model",
            if manifest.method.semantics == Semantics::Original { "original" } else { "mergekit" },
            manifest.method.name,
        );
        return Err(Error::setting(key(None), reason));
    }
    Ok(())
}
