//! Merges that differ only in their weights, for searches: the reductions (thresholds, norms,
//! products) run once, each candidate then costs one sweep, and a loss can be differentiated by the
//! weights.

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
use crate::numbers::{Number, Numbers};

/// A merge whose reductions are done.
pub struct Prepared {
    manifest: Manifest,
    inputs: Inputs,
    options: Options,
    /// The decisions of every stage, in the order of the stages.
    stages: Vec<StageDecision>,
    /// The place of every merged tensor, by name.
    places: BTreeMap<String, Place>,
}

/// The decisions of a stage.
enum StageDecision {
    Single(Decided<f32>),
    Double(Decided<f64>),
}

/// The place of a tensor: its index in the manifest, the index of its stage, and its index there.
struct Place {
    tensor: usize,
    stage: usize,
    in_stage: usize,
}

impl Prepared {
    /// Run the reductions of a merge: all its sweeps but the last one.
    ///
    /// # Errors
    /// [`Error::Tensor`] for data that cannot be merged, [`Error::Setting`] for an unknown method or
    /// threads that cannot be started, [`Error::Interrupted`].
    pub fn new(
        manifest: Manifest,
        inputs: Inputs,
        options: Options,
        monitor: &Monitor,
    ) -> Result<Self> {
        let mut places = BTreeMap::new();
        let mut job = Job::new(&manifest, &inputs, Path::new("output"), &options, monitor)?;
        job.is_brief = false;
        let (tensors, cuts) = tensors_and_stages(&job, |_| false)?;
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

    /// Whether the reductions' results hold for another manifest too. It may differ in the weights, λ,
    /// `normalize` and the output's dtype, but not in the inputs, in how the output is quantised or in a
    /// parameter of the steps that drop, trim or rescale entries.
    #[must_use]
    pub fn serves(&self, manifest: &Manifest) -> bool {
        let (ours, theirs) = (&self.manifest, manifest);
        let (Some(program), Some(other)) = (super::program(ours), super::program(theirs)) else {
            return false;
        };
        let reduced = program.reduced_parameters();
        let same_steps = format!("{:?}", program.steps) == format!("{:?}", other.steps);
        program.operand == other.operand
            && same_steps
            && program.combine.reductions() == other.combine.reductions()
            && (reduced.is_empty() || ours.seed == theirs.seed)
            && ours.models == theirs.models
            && ours.tensors.len() == theirs.tensors.len()
            && ours.tensors.iter().zip(&theirs.tensors).all(|(one, other)| {
                // Quantised outputs are cut into chunks of their own.
                one.name == other.name
                    && one.packing == other.packing
                    && match (&one.content, &other.content) {
                        (Content::Copy(ours), Content::Copy(theirs)) => ours == theirs,
                        (Content::Merge(ours), Content::Merge(theirs)) => {
                            same_entries(ours, theirs, &reduced)
                        }
                        _ => false,
                    }
            })
    }

    /// Take the weights of another manifest that this one [serves](Self::serves).
    ///
    /// # Errors
    /// [`Error::Setting`] if it does not serve the manifest.
    pub fn reweigh(&mut self, manifest: Manifest) -> Result<()> {
        if !self.serves(&manifest) {
            let reason = "only weights, λ and normalize may change; prepare the merge anew";
            return Err(Error::setting("manifest", reason));
        }
        self.manifest = manifest;
        Ok(())
    }

    /// Merge into memory, like [`execute_into`](super::execute_into), with the last sweep alone.
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
        let (tensors, cuts) = tensors_and_stages(&job, |_| false)?;
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

    /// `∂L/∂w_i` for every model's weight of one tensor, from its gradient `∂L/∂θ` at the current
    /// weights. The kept entries and the elected signs are treated as constants, which they are in a
    /// neighbourhood of the weights unless an election is a draw. Runs on the rayon pool of the caller.
    ///
    /// # Errors
    /// [`Error::Setting`] for a tensor that is not merged, a gradient of another length, or a method
    /// whose weights cannot be learned; [`Error::Tensor`] for NaN in an input.
    pub fn derivatives(&self, tensor: &str, gradient: Buffer) -> Result<Vec<f64>> {
        let place = self.places.get(tensor).ok_or_else(|| {
            Error::setting(tensor, "is not a merged tensor, so that no weight changes it")
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

/// Whether two merges of a tensor have the same inputs and the same values, bit for bit, of the
/// parameters `reduced`, so that the reductions of one hold for the other.
fn same_entries(one: &Merge, other: &Merge, reduced: &[&str]) -> bool {
    let bits = |numbers: &Numbers, parameter: &str| -> Option<Vec<u64>> {
        numbers.get(parameter).map(|number| match number {
            Number::Merge(number) => vec![number.to_bits()],
            Number::Models(numbers) => numbers.iter().map(|number| number.to_bits()).collect(),
        })
    };
    one.base == other.base
        && one.experts == other.experts
        && one.statistics == other.statistics
        && reduced
            .iter()
            .all(|parameter| bits(&one.numbers, parameter) == bits(&other.numbers, parameter))
}
