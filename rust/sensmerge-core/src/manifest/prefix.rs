//! Names that differ by a prefix: a model that was saved without its head has `layers.0.` for
//! `model.layers.0.`, and wrappers of a training run leave a name of their own before all others.

use std::collections::{BTreeMap, BTreeSet};

use super::advice::is_wrapper;
use super::view::View;

/// Names of a low-rank adapter's tensors, which wrap those of a model for another reason.
const ADAPTER: &str = ".lora_";

/// A model under the names of another, if most of its names are the same but for a prefix; and a note
/// on that. Names that need no change stay.
pub(super) fn under_the_names_of(template: &View, model: View) -> (View, Option<String>) {
    if model.tensors().any(|(name, _)| name.contains(ADAPTER)) {
        return (model, None);
    }
    let (path, other) = (model.path().display().to_string(), template.path().display());
    if let Some(prefix) = prefix(&model, template) {
        let note = format!(
            "{path}: its tensors' names start with '{prefix}', and those of {other} are the same \
             without it: they are taken for the same tensors"
        );
        let without = |name: &str| name.strip_prefix(&prefix).map(str::to_owned);
        return (renamed(model, template, without), Some(note));
    }
    if let Some(prefix) = prefix(template, &model).filter(|prefix| !is_wrapper(prefix)) {
        let note = format!(
            "{path}: its tensors' names lack the '{prefix}' with which those of {other} start: they \
             are taken for the same tensors"
        );
        let with = |name: &str| Some(format!("{prefix}{name}"));
        return (renamed(model, template, with), Some(note));
    }
    (model, None)
}

/// The model with other names for tensors that the template has under these.
fn renamed(model: View, template: &View, other: impl Fn(&str) -> Option<String>) -> View {
    let name_of = |name: &str| match other(name) {
        Some(changed) if template.own(name).is_none() && template.own(&changed).is_some() => {
            changed
        }
        _ => name.to_owned(),
    };
    let names: BTreeMap<String, String> =
        model.tensors().map(|(name, tensor)| (name_of(name), tensor.name.clone())).collect();
    model.names(names)
}

/// What stands before most names of one model and before none of another's, where the names are the
/// same otherwise.
fn prefix(longer: &View, shorter: &View) -> Option<String> {
    let count = shorter.tensors().count();
    let mut tried = BTreeSet::new();
    for (name, _) in longer.tensors() {
        for (dot, _) in name.match_indices('.') {
            let (prefix, rest) = name.split_at(dot + 1);
            if shorter.own(rest).is_none() || !tried.insert(prefix) {
                continue;
            }
            let same = shorter.tensors().filter(|(name, _)| {
                longer.own(name).is_none() && longer.own(&format!("{prefix}{name}")).is_some()
            });
            if same.count() * 2 > count {
                return Some(prefix.to_owned());
            }
        }
    }
    None
}
