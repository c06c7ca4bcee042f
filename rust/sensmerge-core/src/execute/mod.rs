//! The only room that sees both kernels and files: cuts a plan into chunks, runs them on a thread
//! pool of its own, and writes the output folder.

mod copy;
mod derivative;
mod destination;
mod idle;
mod majority;
mod merge;
mod monitor;
mod pool;
mod prepare;
pub mod reduce;
mod rescale;
mod sample;
mod select;
mod tensor;
mod threshold;
mod window;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::checkpoint::INDEX_FILE;
use crate::checkpoint::layout::index_json;
use crate::checkpoint::output::OutputFolder;
use crate::dtype::Real;
use crate::error::Result;
use crate::method::{Rescale, Scope};
use crate::plan::{Plan, Precision};
use destination::{Destination, Slot};
use merge::{Combination, merge_chunk};
pub use monitor::Monitor;
pub use pool::pool;
pub use prepare::Prepared;
use tensor::{Cut, Sparsity, Tensor};
use window::{Chunk, Scratch, all_chunks, chunk_entries, precision, scratch, windows};

/// Bytes of one input tensor that a thread works on at a time, as floats of the computing type.
pub const DEFAULT_CHUNK_BYTES: usize = 1 << 20;

/// How to execute a plan. No option changes a byte of what is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads; `None` uses every core.
    pub threads: Option<usize>,
    /// Size of a chunk, rounded down to whole blocks.
    pub chunk_bytes: usize,
    /// Flush files and folder to the disk before returning.
    pub sync: bool,
    /// Replace a model that is already in the output folder.
    pub overwrite: bool,
    /// Let NaN in inputs, and what overflows the output's dtype, through to the output.
    pub allow_nan: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: None,
            chunk_bytes: DEFAULT_CHUNK_BYTES,
            sync: true,
            overwrite: false,
            allow_nan: false,
        }
    }
}

/// A file that goes beside the weights.
#[derive(Clone, Debug)]
pub enum Sidecar {
    /// A copy, byte for byte.
    Copy {
        /// Bare file name in the output folder.
        name: String,
        /// The file to copy.
        from: PathBuf,
    },
    /// A text.
    Text {
        /// Bare file name in the output folder.
        name: String,
        /// Its content.
        content: String,
    },
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The output folder.
    pub output: PathBuf,
    /// Tensors in it.
    pub tensors: usize,
    /// Entries of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Names of the weight files.
    pub shards: Vec<String>,
    /// What the caller should be told.
    pub notes: Vec<String>,
    /// Seconds from the call to the last file's renaming.
    pub seconds: f64,
}

/// A merge in progress: what every stage looks at.
struct Run<'e> {
    plan: &'e Plan,
    output: &'e Path,
    options: &'e Options,
    monitor: &'e Monitor,
}

/// Merge: read the inputs of `plan`, write the model and its `sidecars` into the folder `output`.
///
/// The folder is complete when this returns `Ok`. On an error, or when `monitor` is cancelled, what
/// was written is removed; a process that is killed leaves a folder marked as unfinished.
///
/// # Errors
/// [`Error::Output`] for a folder that cannot be written to as asked, [`Error::Tensor`] for data
/// that cannot be merged, [`Error::Io`], [`Error::Interrupted`].
pub fn execute(
    plan: &Plan,
    output: &Path,
    sidecars: &[Sidecar],
    options: &Options,
    monitor: &Monitor,
) -> Result<Summary> {
    let start = std::time::Instant::now();
    let run = Run { plan, output, options, monitor };
    let pool = pool(options.threads)?;
    let protected: Vec<&Path> = plan.inputs.iter().map(PathBuf::as_path).collect();
    let folder = OutputFolder::create(output, options.overwrite, &protected)?;
    pool.install(|| {
        let writers = plan.shards.iter().map(|shard| folder.shard(shard));
        let writers = writers.collect::<Result<Vec<_>>>()?;
        write(&run, Destination::Files(&writers))
    })?;
    if plan.shards.len() > 1 {
        folder.write(INDEX_FILE, index_json(&plan.shards).as_bytes())?;
    }
    for sidecar in sidecars {
        match sidecar {
            Sidecar::Copy { name, from } => folder.copy(name, from)?,
            Sidecar::Text { name, content } => folder.write(name, content.as_bytes())?,
        }
    }
    monitor.check()?;
    folder.finish(options.sync)?;
    Ok(Summary {
        output: output.to_path_buf(),
        tensors: plan.steps.len(),
        parameters: plan.steps.iter().map(|step| step.elements as u64).sum(),
        bytes: plan.steps.iter().map(|step| step.bytes.end - step.bytes.start).sum(),
        shards: plan.shards.iter().map(|shard| shard.file_name.clone()).collect(),
        notes: plan.notes.clone(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Merge into memory: one buffer for every tensor of the plan, by name, of exactly its bytes,
/// little-endian.
///
/// On an error, or when `monitor` is cancelled, some of them are merged and others are not.
///
/// # Errors
/// [`Error::Setting`](crate::Error::Setting) where a tensor has no buffer or one of another size,
/// or a buffer belongs to no tensor; otherwise as [`execute`].
pub fn execute_into(
    plan: &Plan,
    buffers: BTreeMap<String, &mut [u8]>,
    options: &Options,
    monitor: &Monitor,
) -> Result<()> {
    let destination = Destination::memory(plan, buffers)?;
    let run = Run { plan, output: Path::new("output"), options, monitor };
    pool(options.threads)?.install(|| write(&run, destination))
}

/// Compute every step.
fn write(run: &Run, mut destination: Destination) -> Result<()> {
    let tensors = Tensor::all(run.plan);
    let bytes = |tensor: &Tensor| tensor.entry_bytes * tensor.step.elements as u64;
    run.monitor.expect(sweeps(run.plan) * tensors.iter().map(bytes).sum::<u64>());

    copy::verify(run)?;
    copy::write(run, &mut destination)?;
    stages(run.plan, &tensors).into_iter().try_for_each(|stage| match precision(stage) {
        Precision::Single => merge_stage::<f32>(run, stage, &mut destination),
        Precision::Double => merge_stage::<f64>(run, stage, &mut destination),
    })
}

/// Tensors whose sparsification is decided together: all of them where one threshold is compared
/// with all, a window at a time elsewhere.
fn stages<'t, 'p>(plan: &Plan, tensors: &'t [Tensor<'p>]) -> Vec<&'t [Tensor<'p>]> {
    if plan.method.trim.is_some_and(|trim| trim.scope == Scope::Model) {
        vec![tensors]
    } else {
        windows(tensors)
    }
}

/// How often a plan's inputs are read, as a rule.
fn sweeps(plan: &Plan) -> u64 {
    let method = &plan.method;
    let trims = plan.merges().any(|(_, merge)| merge.terms.iter().any(|t| t.trim_density < 1.0));
    let norms = method.rescale == Rescale::PreserveL1;
    let majority = method.trim.is_some_and(|trim| trim.scope == Scope::Model);
    1 + u64::from(trims) + u64::from(norms) + u64::from(majority)
}

/// Merge the tensors of a stage.
fn merge_stage<T: Real>(run: &Run, stage: &[Tensor], destination: &mut Destination) -> Result<()> {
    let scratch = scratch::<T>(stage.first().map_or(0, Tensor::experts));
    let decided = decide(run, &scratch, stage)?;
    merge_decided(run, &scratch, stage, &decided, destination)
}

/// What sparsification does to the tensors of a stage. No weight has a say in it.
struct Decided<T: Real> {
    /// By tensor and expert.
    sparsities: Vec<Vec<Sparsity<T>>>,
    /// The sign of an entry whose election ends in a draw, where that is the model's.
    majority: T,
}

/// Decide what sparsification does to the tensors of a stage.
fn decide<T: Real>(run: &Run, scratch: &Scratch<T>, stage: &[Tensor]) -> Result<Decided<T>> {
    let trim = run.plan.method.trim;
    let by_model = trim.is_some_and(|trim| trim.scope == Scope::Model);
    let cuts = if by_model {
        let cuts = threshold::cuts_by_model(run, scratch, stage)?;
        stage.iter().map(|_| cuts.clone()).collect()
    } else {
        threshold::cuts_by_tensor(run, scratch, stage)?
    };
    let factors = rescale::factors(run, scratch, stage, &cuts)?;
    let of_tensor = |(cuts, factors): (Vec<Cut<T>>, Vec<T>)| {
        cuts.into_iter().zip(factors).map(|(cut, scale)| Sparsity { cut, scale }).collect()
    };
    let sparsities: Vec<Vec<Sparsity<T>>> = cuts.into_iter().zip(factors).map(of_tensor).collect();
    let majority =
        if by_model { majority::majority_sign(run, scratch, stage, &sparsities)? } else { T::ZERO };
    Ok(Decided { sparsities, majority })
}

/// The last sweep over the tensors of a stage.
fn merge_decided<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    stage: &[Tensor],
    decided: &Decided<T>,
    destination: &mut Destination,
) -> Result<()> {
    let combinations: Vec<Combination<T>> = (stage.iter().zip(&decided.sparsities))
        .map(|(tensor, sparsity)| Combination::new(run.plan, tensor, sparsity, decided.majority))
        .collect();
    let entries = chunk_entries::<T>(run.options.chunk_bytes);
    let slots = stage.iter().flat_map(|tensor| {
        destination.slots(tensor.place, tensor.step, entries * tensor.merge.out_dtype.size())
    });
    let pieces: Vec<(Chunk, Slot)> = all_chunks::<T>(run, stage).into_iter().zip(slots).collect();
    pieces.into_par_iter().try_for_each(|(chunk, slot)| {
        let combination = &combinations[chunk.tensor];
        merge_chunk(run, scratch, &stage[chunk.tensor], combination, &chunk, slot)
    })
}
