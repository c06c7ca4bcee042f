//! Merges by several processes, on one machine or many: each writes some weight files of the output
//! ([`SharedFolder`]), and one of them puts all in place.
//!
//! ```text
//! for every weight file of this process:
//!     where the method has to know something of the whole model: find it of this file's tensors, and leave
//!         it in the folder for the others; go on once what all others found is there, too
//!     merge the file's tensors
//! ```
//!
//! What is found over a whole model are counts and least and greatest values, and a merge by one process
//! adds up the same ones: so the bytes are the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::destination::Destination;
use super::tensor::Tensor;
use super::{Inputs, Job, Monitor, Options, Sidecar, Summary, execute, pool, resume, run, writing};
use crate::checkpoint::layout::{ShardLayout, layout};
use crate::checkpoint::output::{Progress, SharedFolder, check_space};
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::program::sweep::Together;

/// Time between two looks whether other processes have done their part.
const PAUSE: Duration = Duration::from_millis(200);

/// Names that an error lists, at most.
const LISTED: usize = 8;

/// What a process did of a merge.
#[derive(Clone, Debug, Serialize)]
pub struct Shards {
    /// The output folder.
    pub output: PathBuf,
    /// The weight files that it merged.
    pub merged: Vec<String>,
    /// Those of its weight files that were whole already.
    pub whole: Vec<String>,
    /// Size in bytes of the files that it merged.
    pub bytes: u64,
    /// Seconds from the call to the end.
    pub seconds: f64,
}

/// Merge the tensors of some weight files, `which` of the output's layout (from 0). Other processes may
/// write the rest at the same time; [`commit`] makes the folder a model once all are whole. A file that is
/// whole already is left as it is, so that a call may be repeated.
///
/// Where a reduction is over the whole model, and other processes have not found their part of it yet, this
/// one waits so long for them. Its own part stays for the others, whatever happens.
///
/// # Errors
/// [`Error::Waiting`] when that time is over; [`Error::Setting`] for a file that the output does not have;
/// otherwise as [`execute`].
pub fn execute_shards(
    manifest: &Manifest,
    inputs: &Inputs,
    output: &Path,
    which: &BTreeSet<usize>,
    wait: Duration,
    options: &Options,
    monitor: &Monitor,
) -> Result<Shards> {
    let start = Instant::now();
    let shards = layout(manifest.specs(), options.max_shard_bytes);
    if let Some(place) = which.iter().find(|place| **place >= shards.len()) {
        let (asked, all) = (place + 1, shards.len());
        let reason = format!("there is no weight file {asked}; the output has {all}");
        return Err(Error::setting("shards", reason));
    }
    let name = |place: &usize| shards[*place].file_name.clone();
    let digest = resume::digest(manifest, inputs, &shards, options);
    let mut done = Shards {
        output: output.to_path_buf(),
        merged: Vec::new(),
        whole: Vec::new(),
        bytes: 0,
        seconds: 0.0,
    };
    let mut pending: Vec<usize> = which.iter().copied().collect();
    if SharedFolder::progress(output, digest.as_deref())? == Progress::Complete {
        done.whole = pending.iter().map(name).collect();
        return Ok(Shards { seconds: start.elapsed().as_secs_f64(), ..done });
    }
    let protected = manifest.inputs();
    let protected: Vec<&Path> = protected.iter().map(PathBuf::as_path).collect();
    let folder = SharedFolder::join(output, &protected, writing(options, digest))?;
    let whole = folder.whole()?;
    pending.retain(|place| !whole.contains(&shards[*place].file_name));
    done.whole = which.iter().filter(|place| !pending.contains(place)).map(name).collect();
    check_space(output, pending.iter().map(|place| shards[*place].file_bytes).sum())?;
    let pool = pool(options.threads)?;
    let exchanged = Exchanged::default();
    let work = Work {
        manifest,
        inputs,
        output,
        options,
        monitor,
        folder: &folder,
        shards: &shards,
        exchanged: &exchanged,
    };
    loop {
        let (before, mut waiting) = (exchanged.left(), None);
        for place in std::mem::take(&mut pending) {
            let progress = monitor.progress();
            match pool.install(|| work.merge(place)) {
                Ok(()) => {
                    done.merged.push(name(&place));
                    done.bytes += shards[place].file_bytes;
                }
                Err(error @ Error::Waiting { .. }) => {
                    monitor.rewind(progress);
                    waiting = Some(error);
                    pending.push(place);
                }
                Err(error) => return Err(error),
            }
        }
        let Some(error) = waiting else { break };
        // What this process left meanwhile may be all that its other files waited for.
        while exchanged.left() == before && !exchanged.are_there(&folder)? {
            if start.elapsed() >= wait {
                return Err(error);
            }
            monitor.check()?;
            std::thread::sleep(PAUSE);
        }
    }
    Ok(Shards { seconds: start.elapsed().as_secs_f64(), ..done })
}

/// Put the weight files in place that several processes merged, and the `sidecars` beside them: [`execute`],
/// but for files that it refuses to merge itself.
///
/// If it fails or is cancelled, what was merged stays. An output that is complete already is left as it is.
///
/// # Errors
/// [`Error::Waiting`] if weight files are missing; otherwise as [`execute`].
pub fn commit(
    manifest: &Manifest,
    inputs: &Inputs,
    output: &Path,
    sidecars: &[Sidecar],
    notes: &[String],
    options: &Options,
    monitor: &Monitor,
) -> Result<Summary> {
    let start = Instant::now();
    let shards = layout(manifest.specs(), options.max_shard_bytes);
    let digest = resume::digest(manifest, inputs, &shards, options);
    let whole = match SharedFolder::progress(output, digest.as_deref())? {
        Progress::Complete => {
            let seconds = start.elapsed().as_secs_f64();
            let notes = [notes, &manifest.notes[..]].concat();
            return Ok(Summary::of(manifest, output, shards, notes, seconds));
        }
        Progress::NotBegun => BTreeSet::new(),
        Progress::Begun => {
            let protected = manifest.inputs();
            let protected: Vec<&Path> = protected.iter().map(PathBuf::as_path).collect();
            SharedFolder::join(output, &protected, writing(options, digest))?.whole()?
        }
    };
    let names = shards.iter().map(|shard| shard.file_name.as_str());
    let missing: Vec<&str> = names.filter(|name| !whole.contains(*name)).collect();
    if !missing.is_empty() {
        let reason = format!("not merged yet: {}", listed(&missing));
        return Err(Error::Waiting { path: output.to_path_buf(), reason });
    }
    let options = Options { keep: true, ..options.clone() };
    execute(manifest, inputs, output, sidecars, notes, &options, monitor)
}

/// The names of some weight files, as many as can be read at a glance.
fn listed(names: &[&str]) -> String {
    let text = names[..names.len().min(LISTED)].join(", ");
    match names.len().checked_sub(LISTED) {
        Some(more @ 1..) => format!("{text} and {more} more"),
        _ => text,
    }
}

/// A merge, of which a process merges a file at a time.
struct Work<'w> {
    manifest: &'w Manifest,
    inputs: &'w Inputs,
    output: &'w Path,
    options: &'w Options,
    monitor: &'w Monitor,
    folder: &'w SharedFolder,
    shards: &'w [ShardLayout],
    exchanged: &'w Exchanged,
}

/// What this process left for others, and what it lacked of theirs.
#[derive(Default)]
struct Exchanged {
    left: AtomicUsize,
    /// Names of the numbers that were missing when they were last asked for.
    missing: Mutex<Vec<String>>,
}

impl Exchanged {
    /// How often numbers were left for others.
    fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// Whether all that was missing is there now.
    fn are_there(&self, folder: &SharedFolder) -> Result<bool> {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(name) = missing.last() {
            if folder.numbers(name)?.is_none() {
                return Ok(false);
            }
            missing.pop();
        }
        Ok(true)
    }
}

impl Work<'_> {
    /// Merge the tensors of one weight file.
    fn merge(&self, place: usize) -> Result<()> {
        let common = Share::new(self, place);
        let mut job =
            Job::new(self.manifest, self.inputs, self.output, self.options, self.monitor)?;
        job.notes = self.folder.found();
        job.share = Some(&common);
        let shard = &self.shards[place];
        let only = |(other, _): (usize, &ShardLayout)| {
            (other == place).then(|| self.folder.shard(shard)).transpose()
        };
        let writers = self.shards.iter().enumerate().map(only).collect::<Result<Vec<_>>>()?;
        run(&job, Destination::files(self.manifest, &writers, self.shards)).inspect_err(|_| {
            // Another attempt writes it anew; the first error is the one to report.
            let _ = self.folder.discard(&shard.file_name);
        })?;
        drop(writers);
        self.folder.finish_if(|| {
            self.inputs.check_unchanged()?;
            self.monitor.check()
        })
    }
}

/// What a weight file's merge shares with those of the other files.
pub(super) struct Share<'s> {
    folder: &'s SharedFolder,
    /// The weight files that hold merged tensors, and this one among them.
    files: BTreeSet<&'s str>,
    file: &'s str,
    /// By tensor of the manifest, the weight file with which it counts.
    file_of: Vec<&'s str>,
    /// Number of entries that are merged.
    entries: usize,
    /// Number of results that were exchanged.
    rounds: AtomicUsize,
    exchanged: &'s Exchanged,
}

impl<'s> Share<'s> {
    fn new(work: &Work<'s>, place: usize) -> Self {
        let mut names = work
            .shards
            .iter()
            .flat_map(|shard| std::iter::repeat_n(shard.file_name.as_str(), shard.tensors.len()));
        let file_of: Vec<&str> = (work.manifest.tensors.iter())
            .filter_map(|output| {
                let parts: Vec<&str> = names.by_ref().take(output.specs().len()).collect();
                parts.first().copied()
            })
            .collect();
        let merged: BTreeSet<&str> =
            work.manifest.merges().map(|(output, _)| &*output.name).collect();
        let tensors = work.manifest.tensors.iter().zip(&file_of);
        let files = tensors.filter(|(output, _)| merged.contains(&*output.name));
        Self {
            folder: work.folder,
            files: files.map(|(_, file)| *file).collect(),
            file: &work.shards[place].file_name,
            file_of,
            entries: work.manifest.merges().map(|(output, _)| output.elements()).sum(),
            rounds: AtomicUsize::new(0),
            exchanged: work.exchanged,
        }
    }
}

/// The tensors of a stage, whose reductions over the whole model other processes take part in.
pub(super) struct Across<'s, 'm> {
    pub(super) share: &'s Share<'s>,
    pub(super) tensors: &'s [Tensor<'m>],
    pub(super) output: &'s Path,
}

impl Together for Across<'_, '_> {
    fn entries(&self) -> usize {
        self.share.entries
    }

    fn counts(&self, tensor: usize) -> bool {
        self.share.file_of[self.tensors[tensor].place] == self.share.file
    }

    fn exchange(
        &self,
        find: &mut dyn FnMut() -> Result<Vec<i64>>,
        take: &mut dyn FnMut(&[i64]) -> Result<()>,
    ) -> Result<()> {
        let Share { folder, file, files, .. } = self.share;
        let round = self.share.rounds.fetch_add(1, Ordering::Relaxed);
        let name = |file: &str| format!("{round}-{file}");
        if files.contains(file) && folder.numbers(&name(file))?.is_none() {
            folder.put_numbers(&name(file), find()?)?;
            self.share.exchanged.left.fetch_add(1, Ordering::Relaxed);
        }
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for file in files {
            match folder.numbers(&name(file))? {
                Some(numbers) => found.push(numbers),
                None => missing.push(*file),
            }
        }
        if missing.is_empty() {
            return found.iter().try_for_each(|numbers| take(numbers));
        }
        let names = missing.iter().map(|file| name(file)).collect();
        *self.share.exchanged.missing.lock().unwrap_or_else(PoisonError::into_inner) = names;
        let reason = format!(
            "the method needs to know something of the whole model, and other processes have not found it \
             yet of {}",
            listed(&missing)
        );
        Err(Error::Waiting { path: self.output.to_path_buf(), reason })
    }
}
