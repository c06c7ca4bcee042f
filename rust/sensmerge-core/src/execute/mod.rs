//! The only room that sees both kernels and files: cuts a plan into chunks, runs them on a thread
//! pool of its own, and writes the output folder.

mod copy;
mod majority;
mod merge;
mod monitor;
mod pool;
pub mod reduce;
mod rescale;
mod tensor;
mod threshold;
mod window;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::checkpoint::INDEX_FILE;
use crate::checkpoint::layout::index_json;
use crate::checkpoint::output::{OutputFolder, ShardWriter};
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::method::{Rescale, Scope};
use crate::plan::{Plan, Precision};
use merge::{Combination, merge_chunk};
pub use monitor::Monitor;
pub use pool::pool;
use tensor::{Cut, Sparsity, Tensor};
use window::{Chunk, Scratch, chunk_entries, chunks_of, precision, windows};

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
    plan: &'e Plan<'e>,
    output: &'e Path,
    options: &'e Options,
    monitor: &'e Monitor,
}

impl Run<'_> {
    fn chunk_entries<T: Real>(&self) -> usize {
        chunk_entries::<T>(self.options.chunk_bytes)
    }

    /// Progress of a sweep over the base and one expert.
    fn advance_expert(&self, tensor: &Tensor, entries: usize) {
        let experts = tensor.merge.terms.len() as u64;
        self.monitor.advance(tensor.entry_bytes * entries as u64 / experts);
    }
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
    pool.install(|| write(&run, &folder))?;
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

/// Write every shard.
fn write(run: &Run, folder: &OutputFolder) -> Result<()> {
    let tensors: Vec<Tensor> =
        (run.plan.merges()).map(|(step, merge)| Tensor::new(step, merge, run.plan.seed)).collect();
    let bytes = |tensor: &Tensor| tensor.entry_bytes * tensor.step.elements as u64;
    run.monitor.expect(sweeps(run.plan) * tensors.iter().map(bytes).sum::<u64>());

    copy::verify(run)?;
    let writers = run.plan.shards.iter().map(|shard| folder.shard(shard));
    let writers = writers.collect::<Result<Vec<_>>>()?;
    copy::write(run, &writers)?;
    if run.plan.method.trim.is_some_and(|trim| trim.scope == Scope::Model) {
        match precision(&tensors) {
            Precision::Single => merge_by_model::<f32>(run, &tensors, &writers),
            Precision::Double => merge_by_model::<f64>(run, &tensors, &writers),
        }
    } else {
        windows(&tensors).into_iter().try_for_each(|window| match precision(window) {
            Precision::Single => merge_by_tensor::<f32>(run, window, &writers),
            Precision::Double => merge_by_tensor::<f64>(run, window, &writers),
        })
    }
}

/// How often a plan's inputs are read, at most.
fn sweeps(plan: &Plan) -> u64 {
    let method = &plan.method;
    let trims = plan.merges().any(|(_, merge)| merge.terms.iter().any(|t| t.trim_density < 1.0));
    let select = match method.trim.filter(|_| trims).map(|trim| trim.scope) {
        None => 0,
        Some(Scope::Model) => 2,
        Some(Scope::Tensor) => 3,
    };
    let norms = u64::from(method.rescale == Rescale::PreserveL1);
    let majority = u64::from(method.trim.is_some_and(|trim| trim.scope == Scope::Model));
    1 + select + norms + majority
}

/// Merge a window of tensors whose sparsification each tensor decides for itself.
fn merge_by_tensor<T: Real>(run: &Run, window: &[Tensor], writers: &[ShardWriter]) -> Result<()> {
    let experts = window.first().map_or(0, |tensor| tensor.merge.terms.len());
    let scratch = Scratch::<T>::new(experts);
    let combine = |tensor: &Tensor| {
        let of_expert = |expert| {
            run.monitor.check()?;
            let cut = match run.plan.method.trim {
                Some(_) => threshold::cut_tensor(run, &scratch, tensor, expert)?,
                None => Cut::None,
            };
            let scale = rescale::factor(run, &scratch, tensor, expert, &cut)?;
            Ok(Sparsity { cut, scale })
        };
        let sparsity = (0..experts).map(of_expert).collect::<Result<Vec<_>>>()?;
        Ok(Combination::new(run, tensor, sparsity, T::ZERO))
    };
    let combinations = window.par_iter().map(combine).collect::<Result<Vec<_>>>()?;
    merge_window(run, &scratch, window, &combinations, writers)
}

/// Merge all tensors where sparsification is decided over the whole model.
fn merge_by_model<T: Real>(run: &Run, tensors: &[Tensor], writers: &[ShardWriter]) -> Result<()> {
    let experts = tensors.first().map_or(0, |tensor| tensor.merge.terms.len());
    let scratch = Scratch::<T>::new(experts);
    let cut = |expert| threshold::cut_model(run, &scratch, tensors, expert);
    let cuts = (0..experts).map(cut).collect::<Result<Vec<_>>>()?;
    let sparsity = |tensor: &Tensor| {
        let of_expert = |(expert, cut): (usize, &Cut)| {
            let scale = rescale::factor(run, &scratch, tensor, expert, cut)?;
            Ok(Sparsity { cut: cut.clone(), scale })
        };
        cuts.iter().enumerate().map(of_expert).collect::<Result<Vec<_>>>()
    };
    let sparsities = tensors.iter().map(sparsity).collect::<Result<Vec<_>>>()?;
    let majority = majority::majority_sign(run, &scratch, tensors, &sparsities)?;
    let combinations: Vec<Combination<T>> = (tensors.iter().zip(sparsities))
        .map(|(tensor, sparsity)| Combination::new(run, tensor, sparsity, majority))
        .collect();
    merge_window(run, &scratch, tensors, &combinations, writers)
}

/// The last sweep over a window.
fn merge_window<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    window: &[Tensor],
    combinations: &[Combination<T>],
    writers: &[ShardWriter],
) -> Result<()> {
    let chunks: Vec<Chunk> = (window.iter().enumerate())
        .flat_map(|(place, tensor)| {
            chunks_of(place, tensor.step.elements, run.chunk_entries::<T>())
        })
        .collect();
    chunks.par_iter().try_for_each(|chunk| {
        let tensor = &window[chunk.tensor];
        let writer = &writers[tensor.step.shard];
        merge_chunk(run, scratch, tensor, &combinations[chunk.tensor], chunk, writer)
    })
}
