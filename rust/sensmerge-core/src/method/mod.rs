//! The methods, one file each: a schema (the models and parameters) beside a program (the
//! computation).
//!
//! A new method needs a file here and a line in `METHODS`. No other code of this crate and the Python
//! package names a method, apart from the package's demo, which writes recipes, and its reference.

mod actmat;
mod arcee_fusion;
mod breadcrumbs;
mod breadcrumbs_ties;
mod consensus;
mod dare_linear;
mod dare_ties;
mod della;
mod della_linear;
mod emr;
mod fisher;
mod foreign;
mod iso_c;
mod iso_cts;
mod karcher;
mod linear;
mod magmax;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod pcb;
mod ram;
mod ramplus_tl;
mod regmean;
mod sce;
mod schema;
mod slerp;
mod task_arithmetic;
mod ties;
mod tsv;
mod widen;
mod wsm;
mod wudi;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::program::Program;
pub use crate::program::function::{Call, Failure, Form, Function};
pub use foreign::{Foreign, Package, register};
pub(crate) use passthrough::NAME as IDENTITY;
pub use schema::{Base, Count, Kind, Owner, Parameter, Range, Schema, Search, Statistic};

/// A merge method.
pub(crate) trait Method: Sync {
    /// Its models and parameters, in one of the two semantics.
    fn schema(&self, semantics: Semantics) -> Schema;

    /// Its computation with these settings.
    fn program(&self, settings: &Settings) -> Program;

    /// Whether mergekit has a method of this name that computes the same.
    fn in_mergekit(&self) -> bool {
        true
    }

    /// The package that it comes from; `None` for the methods of this crate.
    fn package(&self) -> Option<&Package> {
        None
    }
}

/// Every method of this crate, in the order of the documentation.
pub(crate) static METHODS: [&dyn Method; 33] = [
    &linear::Linear,
    &wsm::Wsm,
    &task_arithmetic::TaskArithmetic,
    &ties::Ties,
    &dare_linear::DareLinear,
    &dare_ties::DareTies,
    &breadcrumbs::Breadcrumbs,
    &breadcrumbs_ties::BreadcrumbsTies,
    &della::Della,
    &della_linear::DellaLinear,
    &sce::Sce,
    &ram::Ram,
    &ramplus_tl::RamplusTl,
    &magmax::Magmax,
    &emr::Emr,
    &consensus::Consensus,
    &pcb::Pcb,
    &widen::Widen,
    &fisher::Fisher,
    &slerp::Slerp,
    &nuslerp::Nuslerp,
    &multislerp::Multislerp,
    &karcher::Karcher,
    &model_stock::ModelStock,
    &tsv::Tsv,
    &iso_c::IsoC,
    &iso_cts::IsoCts,
    &actmat::Actmat,
    &wudi::Wudi,
    &regmean::RegMean,
    &nearswap::Nearswap,
    &arcee_fusion::ArceeFusion,
    &passthrough::Passthrough,
];

/// All methods: those of this crate, then those that were registered.
fn all() -> impl Iterator<Item = &'static dyn Method> {
    let others = foreign::registered().into_iter().map(|method| method as &dyn Method);
    METHODS.into_iter().chain(others)
}

/// The schemas of all methods: those of this crate in the order of the documentation, then those that
/// were registered.
#[must_use]
pub fn schemas(semantics: Semantics) -> Vec<Schema> {
    all().map(|method| method.schema(semantics)).collect()
}

/// The names of the methods that mergekit does not have.
#[must_use]
pub fn outside_mergekit() -> Vec<&'static str> {
    let others = all().filter(|method| !method.in_mergekit());
    others.map(|method| method.schema(Semantics::default()).name).collect()
}

/// The packages of the methods that were registered, by the method's name.
#[must_use]
pub fn packages() -> BTreeMap<&'static str, &'static Package> {
    foreign::registered().into_iter().map(|method| (method.schema.name, &method.package)).collect()
}

/// The method that recipes call `name`.
pub(crate) fn find(name: &str) -> Option<&'static dyn Method> {
    all().find(|method| method.schema(Semantics::default()).name == name)
}

/// The variant of a method, where the paper's code and mergekit compute different things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Semantics {
    /// The merge that mergekit computes for the same recipe.
    #[default]
    Mergekit,
    /// The merge that the paper's own code computes.
    Original,
}

/// The settings that determine a method's program, for a whole merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The method's name.
    pub name: String,
    /// The variant of the method.
    #[serde(default)]
    pub semantics: Semantics,
    /// Its switches, by name. A switch that is missing is off.
    #[serde(default)]
    pub switches: BTreeMap<String, bool>,
    /// Whether the merge has a base, from which task vectors are differences.
    pub base: bool,
    /// The package of a method from outside this crate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<Package>,
}

impl Settings {
    /// Whether a switch is on. [`Builder`](crate::manifest::Builder) sets every switch of the method's
    /// schema.
    #[must_use]
    pub fn switch(&self, name: &str) -> bool {
        self.switches.get(name).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const BOTH: [Semantics; 2] = [Semantics::Mergekit, Semantics::Original];

    #[test]
    fn names_are_unique_and_found() {
        let names: BTreeSet<&str> =
            METHODS.iter().map(|method| method.schema(Semantics::Mergekit).name).collect();
        assert_eq!(names.len(), METHODS.len());
        for name in names {
            assert!(
                find(name).is_some_and(|method| method.schema(Semantics::Mergekit).name == name)
            );
        }
        assert!(find("nothing").is_none());
    }

    #[test]
    fn defaults_lie_within_their_ranges() {
        for method in METHODS {
            for semantics in BOTH {
                let schema = method.schema(semantics);
                for parameter in &schema.parameters {
                    if let Kind::Number { default: Some(default), range, search, .. } =
                        &parameter.kind
                    {
                        assert!(range.admits(*default), "{} {}", schema.name, parameter.name);
                        for bound in search.iter().flat_map(|search| [search.low, search.high]) {
                            assert!(range.admits(bound), "{} {}", schema.name, parameter.name);
                        }
                    }
                }
                assert!(!schema.learnable || schema.parameter("weight").is_some());
            }
        }
    }

    #[test]
    fn only_some_methods_differ_between_semantics() {
        for method in METHODS {
            let program = |semantics| {
                let schema = method.schema(semantics);
                let switch = |parameter: &Parameter| match parameter.kind {
                    Kind::Switch { default } => Some((parameter.name.to_owned(), default)),
                    Kind::Number { .. } => None,
                };
                let switches = schema.parameters.iter().filter_map(switch).collect();
                let name = schema.name.to_owned();
                let settings = Settings { name, semantics, switches, base: true, package: None };
                format!("{:?}", method.program(&settings))
            };
            let name = method.schema(Semantics::Mergekit).name;
            let same = program(Semantics::Mergekit) == program(Semantics::Original);
            let two = ["ties", "dare_linear", "dare_ties", "breadcrumbs", "della", "della_linear"];
            assert_eq!(same, !two.contains(&name), "{name}");
        }
    }
}
