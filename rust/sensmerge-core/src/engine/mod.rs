//! Carries a manifest out: the only room that uses both kernels and files.
//!
//! ```text
//! for every stage (a window of tensors; all tensors where a reduction is over the whole model):
//!     run the program's reductions: sweeps over the inputs that find thresholds, norms, products,
//!         ... whose partial results by chunk are merged (`stage`)
//!     sweep over the inputs once more: change, combine, round and write every entry (`write`)
//! rename the files of an output folder (`checkpoint::output`)
//! ```
//!
//! [`execute`] writes a folder, [`execute_into`] the caller's memory, and [`Prepared`] runs the
//! reductions once and the last sweep often. [`execute_shards`] writes some files of a folder to which
//! other processes write the rest, and [`commit`] puts all of them in place. The merged bytes are the same
//! in all of them, and depend neither on the number of threads nor on the size of chunks.

mod average;
mod card;
mod columns;
mod copy;
mod damping;
mod derivative;
mod destination;
pub mod difference;
mod direct;
mod entries;
mod function;
mod inputs;
mod low_rank;
mod matrices;
mod monitor;
mod pack;
mod pool;
mod prepare;
mod read;
pub mod reduce;
mod resume;
mod scaled;
mod shards;
mod stage;
mod tensor;
mod units;
mod window;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::checkpoint::INDEX_FILE;
use crate::checkpoint::layout::{ShardLayout, index_json, layout};
use crate::checkpoint::output::{Input, OutputFolder, Writing, check_space};
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::method::{Form, find};
use crate::program::{Computed, Program, Scope, Subject};
use destination::Destination;
pub use inputs::Inputs;
pub use monitor::Monitor;
pub use pool::pool;
pub use prepare::Prepared;
pub use read::read_into;
use shards::Share;
pub use shards::{Shards, commit, execute_shards};
use stage::Stage;
use tensor::{Precision, Tensor};
pub use units::match_units;
use window::{WINDOW_ENTRIES, precision, windows};

/// Default size of a chunk: the part of a tensor that a thread works on at a time, in bytes of the
/// computing type.
pub const DEFAULT_CHUNK_BYTES: usize = 1 << 20;

/// Options of a merge. None of them changes the value of a merged entry.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent switches")]
pub struct Options {
    /// Number of threads; `None` uses every core.
    pub threads: Option<usize>,
    /// Size of a chunk in bytes of the computing type, rounded down to whole blocks, at least one.
    /// Methods that work on the rows of matrices ignore it.
    pub chunk_bytes: usize,
    /// Largest size of a weight file's data, in bytes; a larger tensor gets a file of its own.
    pub max_shard_bytes: u64,
    /// Flush files and folder to the disk before returning.
    pub sync: bool,
    /// Hash every file that is written, and list the hashes. A merge that was killed goes on only from
    /// weight files that were hashed.
    pub hash: bool,
    /// Whether the same merge may go on from there if it is killed. Not where inputs lie in places that
    /// are gone by then.
    pub resume: bool,
    /// Replace the output of an earlier merge in the output folder.
    pub overwrite: bool,
    /// Write NaN and infinite values instead of refusing NaN in inputs and merges that overflow.
    pub allow_nan: bool,
    /// Bytes that matrices which are merged as wholes may take together; one is always merged. `None` is
    /// half of the memory that is available when they are merged.
    pub matrix_bytes: Option<u64>,
    /// Leave what is written if the merge fails or is cancelled, for the same merge to go on from, as if it
    /// had been killed; otherwise it is removed.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: None,
            chunk_bytes: DEFAULT_CHUNK_BYTES,
            max_shard_bytes: 5_000_000_000,
            sync: true,
            hash: true,
            resume: true,
            overwrite: false,
            allow_nan: false,
            matrix_bytes: None,
            keep: false,
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

/// Description of a written model.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The output folder.
    pub output: PathBuf,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of entries of all tensors.
    pub parameters: u64,
    /// Size of all tensors in bytes.
    pub bytes: u64,
    /// Names of the weight files.
    pub shards: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Seconds from the call to the end of the merge, the flush included.
    pub seconds: f64,
}

impl Summary {
    fn of(
        manifest: &Manifest,
        output: &Path,
        shards: Vec<ShardLayout>,
        notes: Vec<String>,
        seconds: f64,
    ) -> Self {
        Self {
            output: output.to_path_buf(),
            tensors: manifest.tensors.len(),
            parameters: manifest.tensors.iter().map(|tensor| tensor.elements() as u64).sum(),
            bytes: manifest.tensors.iter().map(|tensor| tensor.nbytes() as u64).sum(),
            shards: shards.into_iter().map(|shard| shard.file_name).collect(),
            notes,
            seconds,
        }
    }
}

/// A merge in progress: the data shared by all parts of the engine.
struct Job<'e> {
    manifest: &'e Manifest,
    inputs: &'e Inputs,
    program: Program,
    output: &'e Path,
    options: &'e Options,
    monitor: &'e Monitor,
    notes: Arc<Mutex<BTreeSet<String>>>,
    /// Whether decisions are dropped once their tensors are merged.
    is_brief: bool,
    /// What is shared with other processes, where each merges a part of the model.
    share: Option<&'e Share<'e>>,
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
            Error::setting("merge_method", format!("'{name}' is not a known method"))
        })?;
        let notes = Arc::default();
        let is_brief = true;
        let share = None;
        Ok(Self { manifest, inputs, program, output, options, monitor, notes, is_brief, share })
    }

    /// The notes that were `known` before, the manifest's and those found by the merge, each once.
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

    /// Add a note for the user.
    fn note(&self, note: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(note);
    }
}

/// The program of a manifest's method; `None` for an unknown method.
fn program(manifest: &Manifest) -> Option<Program> {
    find(&manifest.method.name).map(|method| method.program(&manifest.method))
}

/// Merge the inputs of `manifest` and write the model and its `sidecars` into the folder `output`.
///
/// `notes` are notes for the user that are kept with those of the merge.
///
/// The folder is complete when this returns `Ok`. On an error, or when `monitor` is cancelled, the
/// written files are removed; only if some already replace those of an older output does the folder
/// stay, marked as unfinished. A killed process leaves a folder marked as unfinished, too; the same merge
/// then goes on from the weight files that are whole.
///
/// # Errors
/// [`Error::Output`] for a folder that cannot be written to as asked, [`Error::Tensor`] for data
/// that cannot be merged, [`Error::File`] for an input that changed meanwhile, [`Error::Setting`] for an unknown method or threads that cannot be started,
/// [`Error::File`] for a sidecar that is not a regular file, [`Error::Io`], [`Error::Interrupted`].
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
    let mut job = Job::new(manifest, inputs, output, options, monitor)?;
    let protected = manifest.inputs();
    let protected: Vec<&Path> = protected.iter().map(PathBuf::as_path).collect();
    let shards = layout(manifest.specs(), options.max_shard_bytes);
    let pool = pool(options.threads)?;
    let digest = resume::digest(manifest, inputs, &shards, options);
    let how = writing(options, digest);
    let mut folder = OutputFolder::create_for(output, &protected, how)?;
    job.notes = folder.found();
    let missing = shards.iter().filter(|shard| !folder.has(&shard.file_name));
    check_space(output, missing.map(|shard| shard.file_bytes).sum())?;
    pool.install(|| {
        let writers = shards.iter().map(|shard| {
            if folder.has(&shard.file_name) { Ok(None) } else { folder.shard(shard).map(Some) }
        });
        let writers = writers.collect::<Result<Vec<_>>>()?;
        run(&job, Destination::files(manifest, &writers, &shards))
    })?;
    if shards.len() > 1 {
        folder.write(INDEX_FILE, index_json(&shards).as_bytes())?;
    }
    let notes = job.all_notes(notes);
    let origins = manifest.models.iter().filter_map(|model| model.origin.clone());
    let files = manifest.models.iter().flat_map(|model| &model.files);
    let files = files.map(|file| Input {
        path: file.path.clone(),
        bytes: file.bytes,
        header: file.header.clone(),
    });
    folder.note(&notes, origins.collect(), files.collect());
    for sidecar in sidecars {
        match sidecar {
            Sidecar::Copy { name, from } => folder.copy(name, from)?,
            Sidecar::Text { name, content } => folder.write(name, content.as_bytes())?,
            Sidecar::Card { name, content } => {
                folder.write(name, with_notes(content, &notes).as_bytes())?;
            }
        }
    }
    folder.finish_if(|| {
        inputs.check_unchanged()?;
        monitor.commit()
    })?;
    Ok(Summary::of(manifest, output, shards, notes, start.elapsed().as_secs_f64()))
}

fn writing(options: &Options, job: Option<String>) -> Writing {
    let Options { overwrite, sync, hash, keep, .. } = *options;
    Writing { overwrite, sync, hash, keep, job }
}

/// Merge into memory and return the notes for the user. `buffers` holds, by name, one buffer for every
/// tensor of the manifest, of exactly its size in bytes; entries are written little-endian.
///
/// On an error, or when `monitor` is cancelled, some buffers are merged and others are not.
///
/// # Errors
/// [`Error::Setting`] for a tensor without a buffer or with one of another size, and for a buffer
/// without a tensor; otherwise as [`execute`].
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
    inputs.check_unchanged()?;
    Ok(job.all_notes(&[]))
}

/// A text in Markdown with the notes of a merge listed at its end.
fn with_notes(content: &str, notes: &[String]) -> String {
    if notes.is_empty() {
        return content.to_owned();
    }
    let items: Vec<String> = notes.iter().map(|note| format!("- {}\n", card::text(note))).collect();
    format!("{content}\n## Notes\n\n{}", items.concat())
}

/// Copy the tensors that are copied; reduce and write the others, stage by stage.
fn run(job: &Job, mut destination: Destination) -> Result<()> {
    let (tensors, stages) = tensors_and_stages(job, |place| destination.is_finished(place))?;
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

/// The tensors that are merged, and the stages as ranges of them: one stage of all tensors if a
/// reduction is over the whole model, otherwise one per window. Tensors at places that are whole already are
/// left out; of a reduction over the whole model only where other processes see to them.
fn tensors_and_stages<'e>(
    job: &Job<'e>,
    is_whole: impl Fn(usize) -> bool,
) -> Result<(Vec<Tensor<'e>>, Vec<Range<usize>>)> {
    let mut tensors = Tensor::all(job.manifest, job.inputs)?;
    if job.program.scope() == Scope::Model {
        // Magnitudes that are compared with one threshold must be of one type.
        if tensors.iter().any(|tensor| tensor.precision == Precision::Double) {
            for tensor in &mut tensors {
                tensor.precision = Precision::Double;
            }
        }
        let all_whole = tensors.iter().all(|tensor| is_whole(tensor.place));
        if job.share.is_some() || all_whole {
            tensors.retain(|tensor| !is_whole(tensor.place));
        }
        let all = (!tensors.is_empty()).then_some(0..tensors.len());
        return Ok((tensors, Vec::from_iter(all)));
    }
    tensors.retain(|tensor| !is_whole(tensor.place));
    if let Some(combine) = &job.program.matrices {
        for tensor in &mut tensors {
            tensor.precision = Precision::Double;
            tensor.matrices = combine.shape(&tensor.subject());
        }
    }
    let called = job.program.combine.called();
    if called.is_some_and(|called| called.form == Form::Tensors) {
        for tensor in &mut tensors {
            tensor.whole = true;
        }
    }
    let mut start = 0;
    let entries = if job.program.matrices.is_some() { usize::MAX } else { WINDOW_ENTRIES };
    let stages = windows(&tensors, entries).into_iter().map(|window| {
        start += window.len();
        start - window.len()..start
    });
    let stages = stages.collect();
    Ok((tensors, stages))
}
