//! Merges that differ in weights alone, for searches: what sparsification keeps is decided once, a
//! candidate is one sweep, and a loss can be differentiated by the weights.

use std::collections::BTreeMap;
use std::path::Path;

use super::destination::Destination;
use super::reduce::Buffer;
use super::stage::{Decided, Stage};
use super::tensor::{Precision, Tensor};
use super::window::precision;
use super::{Inputs, Job, Monitor, Options, copy, derivative, pool, tensors_and_stages, write};
use crate::error::{Error, Result};
use crate::manifest::{Content, Manifest, Merge};
use crate::program::{Number, Numbers};

/// A merge whose reductions are done.
pub struct Prepared {
    manifest: Manifest,
    inputs: Inputs,
    options: Options,
    /// One for every tensor that is merged, in the manifest's order: a decision of one tensor needs
    /// no other.
    stages: Vec<StageDecision>,
    /// Where a tensor is.
    places: BTreeMap<String, Place>,
}

/// The decisions of a stage.
enum StageDecision {
    Single(Decided<f32>),
    Double(Decided<f64>),
}

/// Where a tensor is: its place in the manifest, its stage, and its place in the stage.
struct Place {
    tensor: usize,
    stage: usize,
    in_stage: usize,
}

impl Prepared {
    /// Decide what the method keeps of every task vector: the sweeps of a merge but for the last one.
    ///
    /// # Errors
    /// [`Error::Tensor`] for data that cannot be merged, [`Error::Setting`] where threads cannot be
    /// started, [`Error::Interrupted`].
    pub fn new(
        manifest: Manifest,
        inputs: Inputs,
        options: Options,
        monitor: &Monitor,
    ) -> Result<Self> {
        let mut places = BTreeMap::new();
        let job = Job::new(&manifest, &inputs, Path::new("output"), &options, monitor)?;
        let (tensors, cuts) = tensors_and_stages(&job)?;
        let stages = pool(options.threads)?.install(|| {
            copy::verify(&job)?;
            let decide = |cut: &std::ops::Range<usize>| {
                let tensors = &tensors[cut.clone()];
                match precision(tensors) {
                    Precision::Single => {
                        Stage::<f32>::new(&job, tensors).decide().map(StageDecision::Single)
                    }
                    Precision::Double => {
                        Stage::<f64>::new(&job, tensors).decide().map(StageDecision::Double)
                    }
                }
            };
            cuts.iter().map(decide).collect::<Result<Vec<_>>>()
        })?;
        for (stage, cut) in cuts.iter().enumerate() {
            for (in_stage, tensor) in tensors[cut.clone()].iter().enumerate() {
                let place = Place { tensor: tensor.place, stage, in_stage };
                places.insert(tensor.output.name.clone(), place);
            }
        }
        drop(tensors);
        Ok(Self { manifest, inputs, options, stages, places })
    }

    /// Whether the decisions hold for another manifest too: it may differ in weights, λ, what is
    /// divided by, and in the output's dtype, but not in what decides which entries are kept.
    #[must_use]
    pub fn serves(&self, manifest: &Manifest) -> bool {
        let (ours, theirs) = (&self.manifest, manifest);
        let (Some(program), Some(other)) = (super::program(ours), super::program(theirs)) else {
            return false;
        };
        let sparsifying = program.sparsifying_parameters();
        let same_steps = format!("{:?}", program.steps) == format!("{:?}", other.steps);
        program.operand == other.operand
            && same_steps
            && program.combine.reductions() == other.combine.reductions()
            && (sparsifying.is_empty() || ours.seed == theirs.seed)
            && ours.models == theirs.models
            && ours.tensors.len() == theirs.tensors.len()
            && ours.tensors.iter().zip(&theirs.tensors).all(|(one, other)| {
                one.name == other.name
                    && match (&one.content, &other.content) {
                        (Content::Copy(ours), Content::Copy(theirs)) => ours == theirs,
                        (Content::Merge(ours), Content::Merge(theirs)) => {
                            same_entries(ours, theirs, &sparsifying)
                        }
                        _ => false,
                    }
            })
    }

    /// Take the weights of another manifest that this one [serves](Self::serves).
    ///
    /// # Errors
    /// [`Error::Setting`] where it does not.
    pub fn reweigh(&mut self, manifest: Manifest) -> Result<()> {
        if !self.serves(&manifest) {
            let reason = "only weights, λ and normalize may change; prepare the merge anew";
            return Err(Error::setting("manifest", reason));
        }
        self.manifest = manifest;
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
        let mut destination = Destination::memory(&self.manifest, buffers)?;
        let job = self.job(monitor)?;
        let (tensors, cuts) = tensors_and_stages(&job)?;
        pool(self.options.threads)?.install(|| {
            copy::write(&job, &mut destination)?;
            for (cut, decision) in cuts.into_iter().zip(&self.stages) {
                let tensors = &tensors[cut];
                match decision {
                    StageDecision::Single(decided) => {
                        write::write(&Stage::<f32>::new(&job, tensors), decided, &mut destination)?;
                    }
                    StageDecision::Double(decided) => {
                        write::write(&Stage::<f64>::new(&job, tensors), decided, &mut destination)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// `∂L/∂w_i` for every model's weight of one tensor, from `∂L/∂θ` of that tensor at the
    /// current weights. What is kept and the signs that are elected are held fixed: they are, but
    /// where a vote is a draw. Runs on the rayon pool that calls it.
    ///
    /// # Errors
    /// [`Error::Setting`] for a tensor that is not merged, a gradient of another length, or a method
    /// whose weights cannot be learned.
    pub fn derivatives(&self, tensor: &str, gradient: Buffer) -> Result<Vec<f64>> {
        let place = self.places.get(tensor).ok_or_else(|| {
            Error::setting(tensor, "is no tensor that is merged, so no weight changes it")
        })?;
        let monitor = Monitor::new();
        let job = self.job(&monitor)?;
        let Some(tensor) = Tensor::at(&self.manifest, &self.inputs, place.tensor)? else {
            return Ok(Vec::new());
        };
        let tensors = std::slice::from_ref(&tensor);
        match &self.stages[place.stage] {
            StageDecision::Single(decided) => derivative::derivatives(
                &Stage::<f32>::new(&job, tensors),
                decided,
                place.in_stage,
                gradient,
            ),
            StageDecision::Double(decided) => derivative::derivatives(
                &Stage::<f64>::new(&job, tensors),
                decided,
                place.in_stage,
                gradient,
            ),
        }
    }

    fn job<'e>(&'e self, monitor: &'e Monitor) -> Result<Job<'e>> {
        Job::new(&self.manifest, &self.inputs, Path::new("output"), &self.options, monitor)
    }
}

/// Whether two merges read the same entries, and keep the same of them.
fn same_entries(one: &Merge, other: &Merge, sparsifying: &[&str]) -> bool {
    let bits = |numbers: &Numbers, parameter: &str| -> Option<Vec<u64>> {
        numbers.get(parameter).map(|number| match number {
            Number::Merge(number) => vec![number.to_bits()],
            Number::Models(numbers) => numbers.iter().map(|number| number.to_bits()).collect(),
        })
    };
    one.base == other.base
        && one.experts == other.experts
        && sparsifying
            .iter()
            .all(|parameter| bits(&one.numbers, parameter) == bits(&other.numbers, parameter))
}
