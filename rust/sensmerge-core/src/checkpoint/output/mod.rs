//! The output folder as a transaction: absent, marked as unfinished, or complete.
//!
//! Every file is written under a temporary name in the folder itself, hashed and flushed if the caller
//! asks for it, and renamed; the file that makes the folder a model (the index, or the only weight file)
//! is renamed last. Until then a marker says that the folder is unfinished and whose it is, and a lock on
//! the marker keeps other merges out. The marker also lists weight files that are whole, so that after a
//! kill the same merge goes on from them. The files that an older output listed and the new one does not
//! write are removed. Several processes may write one folder's weight files ([`SharedFolder`]); what they
//! finished is then taken over like the work of a merge that was killed.

mod marker;
mod ours;
mod place;
mod record;
mod shared;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::checkpoint::index::{INDEX_FILE, is_bare};
use crate::checkpoint::layout::ShardLayout;
use crate::checkpoint::mapping;
use crate::checkpoint::origin::Origin;
use crate::checkpoint::select::{SINGLE_FILE, names};
use crate::error::{Error, Hint, Result};
pub use place::{check, check_space};
use place::{check_content, is_empty, missing};
use record::{Finished, Owner, Record};
pub use shared::{Progress, SharedFolder};
pub use weights::ShardWriter;
use weights::{Finishing, sha256, sha256_of};

/// The file that lists the files of an output, itself included.
pub const OUTPUT_FILE: &str = "sensmerge_output.json";

/// The marker: a file that is in the folder while it is being written.
pub(super) const MARKER: &str = ".sensmerge-unfinished";

const TEMPORARY_PREFIX: &str = ".sensmerge-";
const TEMPORARY_SUFFIX: &str = ".partial";
/// Of files in which processes that write one folder tell each other what they finished and found.
const FINISHED_SUFFIX: &str = ".finished";
const FOUND_SUFFIX: &str = ".found";

/// The content of a folder before the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Files,
    /// Files, and the marker of a merge that was killed while it renamed them.
    Unfinished,
}

/// Why an unfinished merge of another job is refused.
const OTHERS: &str = "holds an unfinished merge of another recipe, of other options, or of inputs that \
                      have changed since: finish it by the command that began it, name another folder, \
                      or set overwrite to start anew";

/// How the files of an output are written.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent switches")]
pub struct Writing {
    /// Replace the output of an earlier merge.
    pub overwrite: bool,
    /// Flush files to the disk.
    pub sync: bool,
    /// Hash files, and list the hashes; a merge that was killed goes on only from hashed files.
    pub hash: bool,
    /// Leave what is written if the folder is not finished, as if the process had been killed.
    pub keep: bool,
    /// A digest of all that decides the bytes of the weight files; `None` if there is none.
    pub job: Option<String>,
}

/// An output folder being written.
///
/// If it is dropped before [`OutputFolder::finish`] has succeeded, it removes all that it wrote, unless it is
/// to [keep](Writing::keep) it. Where its files already replace some of an older output, they stay too, and
/// with them the marker.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    /// Folders that were created for it, innermost first.
    made: Vec<PathBuf>,
    before: Before,
    /// Whether any file has been renamed or removed yet.
    touched: bool,
    /// Final names of the files that are written but not renamed yet.
    files: Mutex<BTreeSet<String>>,
    /// Names of the files that are in place.
    placed: Vec<String>,
    /// Weight files that are whole, those of a killed merge too.
    finishing: Arc<Finishing>,
    /// What is kept beside the list of files.
    described: Described,
    finished: bool,
}

/// What an output's list holds beside the files.
#[derive(Debug, Default)]
struct Described {
    origins: Vec<Origin>,
    notes: Vec<String>,
    inputs: Vec<Input>,
}

/// A file that was merged, as an output's list names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Input {
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Digest of its header.
    pub header: String,
}

impl OutputFolder {
    /// Create the folder, or take over one that is empty but for the marker and temporary files of a
    /// killed merge, or, with `overwrite`, one that holds other files.
    ///
    /// # Errors
    /// As [`OutputFolder::create_for`].
    pub fn create(path: &Path, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        Self::create_for(path, inputs, Writing { overwrite, ..Writing::default() })
    }

    /// The same; where the marker of a killed merge names the same job, its finished weight files are
    /// kept.
    ///
    /// # Errors
    /// [`Error::Output`] for a folder that [`check`] refuses, that holds an unfinished merge of another
    /// job, or that another merge is writing; [`Error::Io`].
    pub fn create_for(path: &Path, inputs: &[&Path], how: Writing) -> Result<Self> {
        check(path, how.overwrite, inputs)?;
        let made = missing(path)?;
        std::fs::create_dir_all(path).map_err(Error::io(path))?;
        let was_unfinished = names(path)?.contains(MARKER);
        let marker_path = path.join(MARKER);
        let marker = marker::open(&marker_path).inspect_err(|_| remove_folders(&made))?;
        match marker.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Error::output(path, "another merge is writing to it"));
            }
            // Some network file systems have no locks: there, only the marker protects the folder.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let found = record::read(&marker, &marker_path)?;
        let ours = found.is_of(how.job.as_deref());
        // A merge that ended between the check and the lock may have filled the folder.
        check_content(path, how.overwrite)?;
        if !ours && !how.overwrite && found.owner.as_ref().is_some_and(|owner| owner.job.is_some())
        {
            return Err(Error::output(path, OTHERS).with_hint(Hint::Overwrite));
        }
        let (overwrite, replaced) = (how.overwrite, ours && !found.is_alone());
        let finishing = Finishing {
            how,
            marker,
            marker_path,
            shared: false,
            notes: Arc::default(),
            hashes: Mutex::default(),
            threads: Mutex::default(),
            stopped: AtomicBool::new(false),
        };
        let mut folder = Self {
            path: path.to_path_buf(),
            made,
            before: Before::Nothing,
            touched: false,
            files: Mutex::default(),
            placed: Vec::new(),
            finishing: Arc::new(finishing),
            described: Described::default(),
            finished: false,
        };
        // Until what a killed merge left is known, nothing may remove its marker.
        folder.before = if was_unfinished { Before::Unfinished } else { Before::Files };
        let mut kept = if ours { folder.take_back(&found)? } else { BTreeMap::new() };
        if let Some(job) = folder.finishing.how.job.as_deref().filter(|_| ours) {
            kept.extend(shared::finished(path, job)?);
        }
        folder.before = match is_empty(path)? {
            true if !replaced => Before::Nothing,
            _ if was_unfinished => Before::Unfinished,
            _ => Before::Files,
        };
        let has_older = folder.before != Before::Nothing && (overwrite || replaced);
        let kept_names: BTreeSet<String> = kept.keys().map(|name| temporary(name)).collect();
        // What other processes said is in the marker before their files go.
        folder.begin(kept, has_older)?;
        for name in names(path)?.iter().filter(|name| is_temporary(name)) {
            if !kept_names.contains(name) {
                let stale = path.join(name);
                std::fs::remove_file(&stale).map_err(Error::io(&stale))?;
            }
        }
        Ok(folder)
    }

    /// Bring what a killed merge of the same job left back to the state before files were renamed, and
    /// find the weight files that are whole.
    fn take_back(&mut self, found: &Record) -> Result<BTreeMap<String, Finished>> {
        let mut kept = BTreeMap::new();
        for (name, finished) in found.finished.iter().filter(|(name, _)| is_bare(name)) {
            let (aside, placed) = (self.path.join(temporary(name)), self.path.join(name));
            if !is_whole(&aside, finished)? {
                if !is_whole(&placed, finished)? {
                    continue;
                }
                self.touched = true;
                std::fs::rename(&placed, &aside).map_err(Error::io(&placed))?;
            }
            kept.insert(name.clone(), finished.clone());
        }
        if found.is_alone() {
            // Nothing was there before: all that the list names was written by that merge.
            for name in ours::listed(&self.path)?.iter().filter(|name| *name != OUTPUT_FILE) {
                self.remove(name)?;
            }
            self.remove(OUTPUT_FILE)?;
        }
        Ok(kept)
    }

    /// Write the marker, and count what is kept as written.
    fn begin(&mut self, kept: BTreeMap<String, Finished>, replaces: bool) -> Result<()> {
        let finishing = &self.finishing;
        for (name, finished) in &kept {
            lock(&self.files).insert(name.clone());
            lock(&finishing.hashes).insert(name.clone(), finished.sha256.clone());
            lock(&finishing.notes).extend(finished.notes.iter().cloned());
        }
        let sensmerge = env!("CARGO_PKG_VERSION").to_owned();
        let owner = Some(Owner { sensmerge, job: finishing.how.job.clone(), replaces });
        record::begin(&finishing.marker, &Record { owner, finished: kept })
            .map_err(Error::io(&finishing.marker_path))
    }

    /// Whether a weight file is whole already.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        lock(&self.files).contains(name)
    }

    /// The place for notes that are found while weights are written; those of a killed merge are in it.
    #[must_use]
    pub fn found(&self) -> Arc<Mutex<BTreeSet<String>>> {
        Arc::clone(&self.finishing.notes)
    }

    /// Keep notes for the user, the inputs' files, and those that came from the Hub, beside the list of
    /// files.
    pub fn note(&mut self, notes: &[String], origins: Vec<Origin>, inputs: Vec<Input>) {
        self.described.notes.extend_from_slice(notes);
        self.described.origins.extend(origins);
        self.described.inputs.extend(inputs);
    }

    /// Create a weight file and write its header; the caller writes the data, every byte once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn shard(&self, layout: &ShardLayout) -> Result<ShardWriter> {
        let (file, path) = self.start(&layout.file_name)?;
        file.set_len(layout.file_bytes).map_err(Error::io(&path))?;
        let (name, finishing) = (layout.file_name.clone(), Arc::clone(&self.finishing));
        let left = AtomicU64::new(layout.file_bytes);
        let writer = ShardWriter { file, path, name, left, finishing };
        writer.write_at(0, &layout.header)?;
        Ok(writer)
    }

    /// Write a small file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let (file, path) = self.start(name)?;
        weights::write_all_at(&file, content, 0).map_err(Error::io(&path))?;
        if self.finishing.how.hash && name != OUTPUT_FILE {
            lock(&self.finishing.hashes).insert(name.to_owned(), sha256_of(content));
        }
        Ok(())
    }

    /// Copy a small file, byte for byte.
    ///
    /// # Errors
    /// [`Error::File`] for a source that is not a regular file; [`Error::Io`], which names the file
    /// that failed.
    pub fn copy(&self, name: &str, from: &Path) -> Result<()> {
        self.write(name, &mapping::read(from, u64::MAX)?)
    }

    /// Put all files in place; see [`OutputFolder::finish_if`].
    ///
    /// # Errors
    /// As [`OutputFolder::finish_if`].
    pub fn finish(self) -> Result<()> {
        self.finish_if(|| Ok(()))
    }

    /// Put all files in place. In this order:
    ///
    /// ```text
    /// write the list of the files of this output and of the older one
    /// flush every file, if asked for
    /// ask `ready`: from here on nothing is taken back
    /// rename the list, so that a merge killed from here on leaves no file that is not listed
    /// remove the older output's index and only weight file, so that the folder is not a model meanwhile
    /// rename the sidecars, then the shards
    /// remove the files that only the older output listed, and list the new files alone
    /// rename the index or the only weight file
    /// remove the marker
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for an older output's list that is malformed; those of `ready`. The
    /// files written are then removed or, where some already replace those of an older output, the folder
    /// keeps the marker.
    pub fn finish_if(mut self, ready: impl FnOnce() -> Result<()>) -> Result<()> {
        let sync = self.finishing.how.sync;
        self.finishing.wait()?;
        let mut files = lock(&self.files).clone();
        files.insert(OUTPUT_FILE.to_owned());
        let old = ours::listed(&self.path)?;
        let all: BTreeSet<String> = old.union(&files).cloned().collect();
        self.write(OUTPUT_FILE, &self.listing(&all))?;
        if sync {
            files.iter().try_for_each(|name| self.sync(name))?;
        }
        ready()?;
        self.place(OUTPUT_FILE)?;
        self.remove(INDEX_FILE)?;
        self.remove(SINGLE_FILE)?;
        self.sync_folder()?;
        let is_weight = |name: &&String| name.ends_with(".safetensors") || *name == INDEX_FILE;
        let others = files.iter().filter(|name| *name != OUTPUT_FILE);
        let (weights, first): (Vec<&String>, Vec<&String>) = others.partition(is_weight);
        let makes_a_model = |name: &&String| [INDEX_FILE, SINGLE_FILE].contains(&name.as_str());
        let (last, shards): (Vec<&String>, Vec<&String>) =
            weights.into_iter().partition(makes_a_model);
        for name in first.into_iter().chain(shards) {
            self.place(name)?;
        }
        for name in old.difference(&files) {
            self.remove(name)?;
        }
        if all != files {
            self.write(OUTPUT_FILE, &self.listing(&files))?;
            if sync {
                self.sync(OUTPUT_FILE)?;
            }
            self.place(OUTPUT_FILE)?;
        }
        self.sync_folder()?;
        for name in last {
            self.place(name)?;
        }
        self.sync_folder()?;
        self.remove(MARKER)?;
        self.sync_folder()?;
        self.finished = true;
        Ok(())
    }

    /// The list of an output that has these files.
    fn listing(&self, files: &BTreeSet<String>) -> Vec<u8> {
        let hashes = lock(&self.finishing.hashes).clone();
        ours::listing(files, hashes, self.finishing.how.job.as_deref(), &self.described)
    }

    /// Flush a file that is not in place yet.
    fn sync(&self, name: &str) -> Result<()> {
        let path = self.path.join(temporary(name));
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))
    }

    fn start(&self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.path.join(temporary(name));
        if !is_bare(name) {
            return Err(Error::output(&self.path, format!("'{name}' is not a file name")));
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        lock(&self.files).insert(name.to_owned());
        Ok((file, path))
    }

    fn place(&mut self, name: &str) -> Result<()> {
        self.touched = true;
        let path = self.path.join(name);
        std::fs::rename(self.path.join(temporary(name)), &path).map_err(Error::io(&path))?;
        lock(&self.files).remove(name);
        self.placed.push(name.to_owned());
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.touched = true;
        let path = self.path.join(name);
        remove(&path).map_err(Error::io(&path))
    }

    /// Make the renamings durable, if asked for. Only on Unix can a folder be flushed.
    fn sync_folder(&self) -> Result<()> {
        if cfg!(unix) && self.finishing.how.sync {
            let folder = File::open(&self.path).and_then(|folder| folder.sync_all());
            folder.map_err(Error::io(&self.path))?;
        }
        Ok(())
    }
}

impl Drop for OutputFolder {
    /// Remove what an unfinished merge wrote. An error cannot be returned from here: if a removal
    /// fails, the marker stays.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.finishing.stop();
        if self.finishing.how.keep {
            return;
        }
        let mut clean = true;
        for name in lock(&self.files).iter() {
            clean &= remove(&self.path.join(temporary(name))).is_ok();
        }
        let mixed = self.before != Before::Nothing && self.touched;
        if !mixed {
            for name in &self.placed {
                clean &= remove(&self.path.join(name)).is_ok();
            }
        }
        let marker = self.path.join(MARKER);
        if mixed || !clean {
            // Created again, since `finish` may have failed after it removed the marker.
            let _ = marker::open(&marker);
        } else if self.before != Before::Unfinished && self.finishing.marker.unlock().is_ok() {
            let _ = remove(&marker);
            remove_folders(&self.made);
        }
    }
}

/// Whether a file holds what a record says.
fn is_whole(path: &Path, finished: &Finished) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path)(error)),
        Ok(found) if !found.is_file() || found.len() != finished.bytes => Ok(false),
        Ok(_) => Ok(sha256(path, &AtomicBool::new(false))? == finished.sha256),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn temporary(name: &str) -> String {
    format!("{TEMPORARY_PREFIX}{name}{TEMPORARY_SUFFIX}")
}

fn is_temporary(name: &str) -> bool {
    let suffixes = [TEMPORARY_SUFFIX, FINISHED_SUFFIX, FOUND_SUFFIX];
    name.starts_with(TEMPORARY_PREFIX) && suffixes.iter().any(|suffix| name.ends_with(suffix))
}

/// Remove empty folders, innermost first.
fn remove_folders(folders: &[PathBuf]) {
    for folder in folders {
        let _ = std::fs::remove_dir(folder);
    }
}

/// Remove a file if it exists.
fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
