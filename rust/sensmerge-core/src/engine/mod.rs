//! Carries a manifest out: the only room that sees both kernels and files.
//!
//! Whoever drives, the work is the same four verbs:
//!
//! 1. *reduce* some tensors: what the program has to know before it can change or combine entries
//!    (`stage`, by the reductions of `program`),
//! 2. *merge* the partial results,
//! 3. *write* some tensors: the last sweep over the inputs (`write`), into files or memory,
//! 4. *commit*: give the files their names.
//!
//! [`execute`] drives them for a folder, [`execute_into`] for memory, and [`Prepared`] reduces once
//! and writes often. The bytes never depend on who drives, on threads or on the size of chunks.

mod copy;
mod derivative;
mod destination;
mod entries;
mod inputs;
mod monitor;
mod pool;
mod prepare;
pub mod reduce;
mod stage;
mod tensor;
mod window;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::checkpoint::INDEX_FILE;
use crate::checkpoint::layout::{index_json, layout};
use crate::checkpoint::output::OutputFolder;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::method::find;
use crate::program::{Computed, Program, Scope, Subject};
use destination::Destination;
pub use inputs::Inputs;
pub use monitor::Monitor;
pub use pool::pool;
pub use prepare::Prepared;
use stage::Stage;
use tensor::{Precision, Tensor};
use window::{precision, windows};

/// Bytes of one input tensor that a thread works on at a time, as floats of the computing type.
pub const DEFAULT_CHUNK_BYTES: usize = 1 << 20;

/// How to carry a manifest out. No option changes a byte of what is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads; `None` uses every core.
    pub threads: Option<usize>,
    /// Size of a chunk, rounded down to whole blocks.
    pub chunk_bytes: usize,
    /// Largest weight file; a tensor above it gets a file alone.
    pub max_shard_bytes: u64,
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
            max_shard_bytes: 5_000_000_000,
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
    /// A text in Markdown, at whose end the notes of the merge are listed.
    Card {
        /// Bare file name in the output folder.
        name: String,
        /// What comes before the notes.
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

/// A manifest being carried out: what every part of the engine looks at.
struct Job<'e> {
    manifest: &'e Manifest,
    inputs: &'e Inputs,
    program: Program,
    output: &'e Path,
    options: &'e Options,
    monitor: &'e Monitor,
    notes: Mutex<BTreeSet<String>>,
}

impl<'e> Job<'e> {
    fn new(
        manifest: &'e Manifest,
        inputs: &'e Inputs,
        output: &'e Path,
        options: &'e Options,
        monitor: &'e Monitor,
    ) -> Result<Self> {
        let program = program(manifest).ok_or_else(|| {
            let name = &manifest.method.name;
            Error::setting("merge_method", format!("'{name}' is no method that is known"))
        })?;
        let notes = Mutex::default();
        Ok(Self { manifest, inputs, program, output, options, monitor, notes })
    }

    /// What the caller knew, what the manifest says and what was found, each once.
    fn all_notes(&self, known: &[String]) -> Vec<String> {
        let found = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notes: Vec<String> = Vec::new();
        for note in known.iter().chain(&self.manifest.notes).chain(found.iter()) {
            if !notes.contains(note) {
                notes.push(note.clone());
            }
        }
        notes
    }

    /// Remember what the caller should be told.
    fn note(&self, note: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(note);
    }
}

/// The program of a manifest's method.
fn program(manifest: &Manifest) -> Option<Program> {
    find(&manifest.method.name).map(|method| method.program(&manifest.method))
}

/// Merge: read the inputs of `manifest`, write the model and its `sidecars` into the folder `output`.
///
/// `notes` are what the caller knows already and wants kept with what the merge finds.
///
/// The folder is complete when this returns `Ok`. On an error, or when `monitor` is cancelled, what
/// was written is removed; a process that is killed leaves a folder marked as unfinished.
///
/// # Errors
/// [`Error::Output`] for a folder that cannot be written to as asked, [`Error::Tensor`] for data
/// that cannot be merged, [`Error::Io`], [`Error::Interrupted`].
pub fn execute(
    manifest: &Manifest,
    inputs: &Inputs,
    output: &Path,
    sidecars: &[Sidecar],
    notes: &[String],
    options: &Options,
    monitor: &Monitor,
) -> Result<Summary> {
    let start = std::time::Instant::now();
    let job = Job::new(manifest, inputs, output, options, monitor)?;
    let protected = manifest.inputs();
    let protected: Vec<&Path> = protected.iter().map(PathBuf::as_path).collect();
    let shards = layout(manifest.specs(), options.max_shard_bytes);
    let pool = pool(options.threads)?;
    let mut folder = OutputFolder::create(output, options.overwrite, &protected)?;
    pool.install(|| {
        let writers = shards.iter().map(|shard| folder.shard(shard));
        let writers = writers.collect::<Result<Vec<_>>>()?;
        run(&job, Destination::files(&writers, &shards))
    })?;
    if shards.len() > 1 {
        folder.write(INDEX_FILE, index_json(&shards).as_bytes())?;
    }
    let notes = job.all_notes(notes);
    folder.note(&notes);
    for sidecar in sidecars {
        match sidecar {
            Sidecar::Copy { name, from } => folder.copy(name, from)?,
            Sidecar::Text { name, content } => folder.write(name, content.as_bytes())?,
            Sidecar::Card { name, content } => {
                folder.write(name, with_notes(content, &notes).as_bytes())?;
            }
        }
    }
    monitor.check()?;
    folder.finish(options.sync)?;
    Ok(Summary {
        output: output.to_path_buf(),
        tensors: manifest.tensors.len(),
        parameters: manifest.tensors.iter().map(|tensor| tensor.elements() as u64).sum(),
        bytes: manifest.tensors.iter().map(|tensor| tensor.nbytes() as u64).sum(),
        shards: shards.into_iter().map(|shard| shard.file_name).collect(),
        notes,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Merge into memory: one buffer for every tensor of the manifest, by name, of exactly its bytes,
/// little-endian. Returns what the caller should be told.
///
/// On an error, or when `monitor` is cancelled, some of them are merged and others are not.
///
/// # Errors
/// [`Error::Setting`] where a tensor has no buffer or one of another size, or a buffer belongs to no
/// tensor; otherwise as [`execute`].
pub fn execute_into(
    manifest: &Manifest,
    inputs: &Inputs,
    buffers: BTreeMap<String, &mut [u8]>,
    options: &Options,
    monitor: &Monitor,
) -> Result<Vec<String>> {
    let destination = Destination::memory(manifest, buffers)?;
    let job = Job::new(manifest, inputs, Path::new("output"), options, monitor)?;
    pool(options.threads)?.install(|| run(&job, destination))?;
    Ok(job.all_notes(&[]))
}

/// A text in Markdown and the notes of a merge.
fn with_notes(content: &str, notes: &[String]) -> String {
    if notes.is_empty() {
        return content.to_owned();
    }
    let items: Vec<String> = notes.iter().map(|note| format!("- {note}\n")).collect();
    format!("{content}\n## Notes\n\n{}", items.concat())
}

/// Reduce and write every tensor, a stage at a time.
fn run(job: &Job, mut destination: Destination) -> Result<()> {
    let (tensors, stages) = tensors_and_stages(job)?;
    let bytes = |tensor: &Tensor| tensor.entry_bytes * tensor.elements() as u64;
    let subjects: Vec<Subject> = tensors.iter().map(Tensor::subject).collect();
    let sweeps = 1 + job.program.sweeps(&subjects);
    job.monitor.expect(sweeps * tensors.iter().map(bytes).sum::<u64>());

    copy::verify(job)?;
    copy::write(job, &mut destination)?;
    stages.into_iter().map(|stage| &tensors[stage]).try_for_each(|stage| match precision(stage) {
        Precision::Single => run_stage::<f32>(job, stage, &mut destination),
        Precision::Double => run_stage::<f64>(job, stage, &mut destination),
    })
}

fn run_stage<T: Computed>(
    job: &Job,
    tensors: &[Tensor],
    destination: &mut Destination,
) -> Result<()> {
    let stage = Stage::<T>::new(job, tensors);
    let decided = stage.decide()?;
    write::write(&stage, &decided, destination)
}

/// The tensors that are merged, and which of them are decided together: all of them where a
/// reduction is over the whole model, a window at a time elsewhere.
fn tensors_and_stages<'e>(job: &Job<'e>) -> Result<(Vec<Tensor<'e>>, Vec<Range<usize>>)> {
    let mut tensors = Tensor::all(job.manifest, job.inputs)?;
    if job.program.scope() == Scope::Model {
        // Magnitudes that share a threshold must share a type.
        if tensors.iter().any(|tensor| tensor.precision == Precision::Double) {
            for tensor in &mut tensors {
                tensor.precision = Precision::Double;
            }
        }
        let all = 0..tensors.len();
        return Ok((tensors, vec![all]));
    }
    let mut start = 0;
    let stages = windows(&tensors).into_iter().map(|window| {
        start += window.len();
        start - window.len()..start
    });
    let stages = stages.collect();
    Ok((tensors, stages))
}
