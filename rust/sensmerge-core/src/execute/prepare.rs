//! Merges that differ in weights alone, for searches: what sparsification does is decided once, a
//! candidate is one sweep, and a loss can be differentiated by the weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::derivative::derivatives;
use super::destination::Destination;
use super::reduce::Buffer;
use super::tensor::Tensor;
use super::window::{precision, scratch};
use super::{Decided, Monitor, Options, Run, copy, decide, merge_decided, pool, stages};
use crate::error::{Error, Result};
use crate::plan::{Content, Located, Plan, Precision, Step};

/// A plan and what its method keeps of every task vector.
pub struct Prepared {
    plan: Plan,
    options: Options,
    stages: Vec<Stage>,
    /// Where the decision on a tensor is.
    places: BTreeMap<String, Place>,
}

/// The decisions of a stage.
enum Stage {
    Single(Decided<f32>),
    Double(Decided<f64>),
}

/// Where a tensor is: its step in the plan, its stage, and its place in the stage.
struct Place {
    step: usize,
    stage: usize,
    tensor: usize,
}

impl Prepared {
    /// Decide what the plan's method keeps of every task vector: the sweeps of a merge but for the
    /// last one.
    ///
    /// # Errors
    /// [`Error::Tensor`] for data that cannot be merged, [`Error::Setting`] where threads cannot be
    /// started, [`Error::Interrupted`].
    pub fn new(plan: Plan, options: Options, monitor: &Monitor) -> Result<Self> {
        let run = Run { plan: &plan, output: Path::new("output"), options: &options, monitor };
        let tensors = Tensor::all(&plan);
        let cut = stages(&plan, &tensors);
        let decide = |stage: &&[Tensor]| match precision(stage) {
            Precision::Single => decide(&run, &scratch(experts(stage)), stage).map(Stage::Single),
            Precision::Double => decide(&run, &scratch(experts(stage)), stage).map(Stage::Double),
        };
        let decided = pool(options.threads)?.install(|| {
            copy::verify(&run)?;
            cut.iter().map(decide).collect::<Result<_>>()
        })?;
        let mut places = BTreeMap::new();
        for (stage, tensors) in cut.iter().enumerate() {
            for (tensor, found) in tensors.iter().enumerate() {
                let place = Place { step: found.place, stage, tensor };
                places.insert(found.step.name.clone(), place);
            }
        }
        Ok(Self { stages: decided, places, options, plan })
    }

    /// Whether another plan keeps the same of the same task vectors: it may differ in weights, λ,
    /// and what is divided by, and in the output's dtype.
    #[must_use]
    pub fn serves(&self, plan: &Plan) -> bool {
        let (ours, theirs) = (&self.plan, plan);
        let parts = |plan: &Plan| {
            let method = plan.method;
            let seed = method.drop.then_some(plan.seed);
            (method.operand, method.drop, method.trim, method.rescale, seed)
        };
        parts(ours) == parts(theirs)
            && ours.steps.len() == theirs.steps.len()
            && ours.steps.iter().zip(&theirs.steps).all(|(one, other)| same_sparsity(one, other))
    }

    /// Take the weights of another plan that this one [serves](Self::serves).
    ///
    /// # Errors
    /// [`Error::Setting`] where it does not.
    pub fn reweigh(&mut self, plan: Plan) -> Result<()> {
        if !self.serves(&plan) {
            let reason = "only weights, λ and normalize may change; prepare the merge anew";
            return Err(Error::setting("recipe", reason));
        }
        self.plan = plan;
        Ok(())
    }

    /// Merge into memory, as [`execute_into`](super::execute_into) does, by the last sweep alone.
    ///
    /// # Errors
    /// As [`execute_into`](super::execute_into).
    pub fn merge_into(
        &self,
        buffers: BTreeMap<String, &mut [u8]>,
        monitor: &Monitor,
    ) -> Result<()> {
        let mut destination = Destination::memory(&self.plan, buffers)?;
        let run = self.run(monitor);
        let tensors = Tensor::all(&self.plan);
        pool(self.options.threads)?.install(|| {
            copy::write(&run, &mut destination)?;
            let stages = stages(&self.plan, &tensors).into_iter().zip(&self.stages);
            stages.into_iter().try_for_each(|(stage, decided)| match decided {
                Stage::Single(decided) => {
                    merge_decided(&run, &scratch(experts(stage)), stage, decided, &mut destination)
                }
                Stage::Double(decided) => {
                    merge_decided(&run, &scratch(experts(stage)), stage, decided, &mut destination)
                }
            })
        })
    }

    /// `∂L/∂w_i` for every expert's weight of one tensor, from `∂L/∂θ` of that tensor at the
    /// current weights. What is kept and the signs that are elected are held fixed: they are, but
    /// where a vote is a draw. Runs on the rayon pool that calls it.
    ///
    /// # Errors
    /// [`Error::Setting`] for a tensor that is not merged, or a gradient of another length.
    pub fn derivatives(&self, tensor: &str, gradient: Buffer) -> Result<Vec<f64>> {
        let place = self.places.get(tensor).ok_or_else(|| {
            Error::setting(tensor, "is no tensor that is merged, so no weight changes it")
        })?;
        let monitor = Monitor::new();
        let run = self.run(&monitor);
        let Some(tensor) = Tensor::at(&self.plan, place.step) else { return Ok(Vec::new()) };
        match &self.stages[place.stage] {
            Stage::Single(decided) => {
                let sparsities = &decided.sparsities[place.tensor];
                derivatives(&run, &tensor, sparsities, decided.majority, gradient)
            }
            Stage::Double(decided) => {
                let sparsities = &decided.sparsities[place.tensor];
                derivatives(&run, &tensor, sparsities, decided.majority, gradient)
            }
        }
    }

    fn run<'e>(&'e self, monitor: &'e Monitor) -> Run<'e> {
        Run { plan: &self.plan, output: Path::new("output"), options: &self.options, monitor }
    }
}

fn experts(stage: &[Tensor]) -> usize {
    stage.first().map_or(0, Tensor::experts)
}

/// Whether two steps are made of the same entries of the same tensors.
fn same_sparsity(one: &Step, other: &Step) -> bool {
    let same = |one: &Located, other: &Located| {
        Arc::ptr_eq(&one.checkpoint, &other.checkpoint) && one.tensor == other.tensor
    };
    match (&one.content, &other.content) {
        (Content::Copy(ours), Content::Copy(theirs)) => same(ours, theirs),
        (Content::Merge(ours), Content::Merge(theirs)) => {
            let sources = ours.base.iter().zip(&theirs.base);
            let terms = ours.terms.iter().zip(&theirs.terms);
            one.name == other.name
                && ours.precision == theirs.precision
                && ours.base.is_some() == theirs.base.is_some()
                && ours.terms.len() == theirs.terms.len()
                && sources.into_iter().all(|(ours, theirs)| same(&ours.at, &theirs.at))
                && terms.into_iter().all(|(ours, theirs)| {
                    same(&ours.source.at, &theirs.source.at)
                        && ours.drop_density.to_bits() == theirs.drop_density.to_bits()
                        && ours.trim_density.to_bits() == theirs.trim_density.to_bits()
                })
        }
        _ => false,
    }
}
