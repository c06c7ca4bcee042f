//! An output folder to which several processes write at once, each some of its weight files: on one machine
//! or on many that share a file system.
//!
//! ```text
//! the first process writes the marker, with the digest of the job; every other one must have the same
//! a weight file is written under a name that is the process's own; once it is whole, hashed and, if asked
//!     for, flushed, it is renamed to the one under which a killed merge leaves it, and a small file beside
//!     it says so
//! whoever finishes the folder takes that over like the work of a merge that was killed
//! ```
//!
//! No two processes write to one file, and renaming is all that is asked of the file system. Two that
//! write the same weight file write the same bytes, and the last one's stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::ours;
use super::place::{check, is_empty};
use super::record::{self, Finished, Owner, Record};
use super::weights::{Finishing, ShardWriter, sha256};
use super::{
    FINISHED_SUFFIX, FOUND_SUFFIX, MARKER, OTHERS, TEMPORARY_PREFIX, Writing, lock, marker,
    temporary,
};
use crate::checkpoint::layout::ShardLayout;
use crate::checkpoint::mapping;
use crate::checkpoint::select::names;
use crate::error::{Error, Hint, Result};

/// Bytes of a file that tells others of a weight file, at most.
const FINISHED_BYTES: u64 = 1 << 20;

/// Bytes of a file that tells others what was found of some tensors, at most.
const FOUND_BYTES: u64 = 1 << 30;

/// Says of a weight file that it is whole.
#[derive(Serialize, Deserialize)]
struct Said {
    job: String,
    /// When the weight file was last changed, in ns since 1970, so that it need not be hashed again.
    modified: u64,
    #[serde(flatten)]
    finished: Finished,
}

/// What a process found of some tensors, for the others.
#[derive(Serialize, Deserialize)]
struct Found {
    job: String,
    numbers: Vec<i64>,
}

/// An output folder that other processes write to as well.
#[derive(Debug)]
pub struct SharedFolder {
    path: PathBuf,
    job: String,
    finishing: Arc<Finishing>,
    /// Files being written: their names in the end, and now.
    files: Mutex<BTreeMap<String, PathBuf>>,
}

/// How far a folder is that several processes write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing was written yet, or by others.
    NotBegun,
    /// Some process began.
    Begun,
    /// It is complete, as the output of this job.
    Complete,
}

impl SharedFolder {
    /// How far a folder is as the output of `job`.
    ///
    /// # Errors
    /// [`Error::File`] for an output's list that is malformed; [`Error::Io`].
    pub fn progress(path: &Path, job: Option<&str>) -> Result<Progress> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Progress::NotBegun),
            Err(error) => return Err(Error::io(path)(error)),
            Ok(found) if !found.is_dir() => return Ok(Progress::NotBegun),
            Ok(_) => {}
        }
        if names(path)?.contains(MARKER) {
            return Ok(Progress::Begun);
        }
        let complete = job.is_some() && ours::job(path)?.as_deref() == job;
        Ok(if complete { Progress::Complete } else { Progress::NotBegun })
    }

    /// Join those that write a folder, or be the first. `how.job` is what they have in common.
    ///
    /// # Errors
    /// [`Error::Output`] for a folder that [`check`] refuses, that holds an unfinished merge of another job,
    /// or in which a merge by one process alone is going on; [`Error::Setting`] without a job;
    /// [`Error::Io`].
    pub fn join(path: &Path, inputs: &[&Path], how: Writing) -> Result<Self> {
        let Some(job) = how.job.clone() else {
            let reason = "of inputs in memory nobody else can merge a part";
            return Err(Error::setting("shards", reason));
        };
        check(path, how.overwrite, inputs)?;
        std::fs::create_dir_all(path).map_err(Error::io(path))?;
        let marker_path = path.join(MARKER);
        let marker = marker::open(&marker_path)?;
        if let Err(TryLockError::WouldBlock) = marker.try_lock_shared() {
            return Err(Error::output(path, "another merge is writing to it"));
        }
        let found = record::read(&marker, &marker_path)?;
        if found.owner.is_none() {
            // Processes that come here at the same time write the same.
            let (sensmerge, replaces) = (env!("CARGO_PKG_VERSION").to_owned(), !is_empty(path)?);
            let owner = Some(Owner { sensmerge, job: Some(job.clone()), replaces });
            record::begin(&marker, &Record { owner, ..Record::default() })
                .map_err(Error::io(&marker_path))?;
        } else if !found.is_of(Some(&job)) {
            return Err(Error::output(path, OTHERS).with_hint(Hint::Overwrite));
        }
        let finishing = Finishing {
            how: Writing { hash: true, ..how },
            marker,
            marker_path,
            shared: true,
            notes: Arc::default(),
            hashes: Mutex::default(),
            threads: Mutex::default(),
            stopped: AtomicBool::new(false),
        };
        let (path, finishing) = (path.to_path_buf(), Arc::new(finishing));
        Ok(Self { path, job, finishing, files: Mutex::default() })
    }

    /// The names of the weight files that are whole, written by whichever process.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn whole(&self) -> Result<BTreeSet<String>> {
        let Finishing { marker, marker_path, .. } = &*self.finishing;
        // A process that finished the folder but for the last step has taken them over.
        let taken_over = record::read(marker, marker_path)?.finished;
        let said = finished(&self.path, &self.job)?;
        Ok(taken_over.into_keys().chain(said.into_keys()).collect())
    }

    /// The place for notes that are found while weights are written.
    #[must_use]
    pub fn found(&self) -> Arc<Mutex<BTreeSet<String>>> {
        Arc::clone(&self.finishing.notes)
    }

    /// Create a weight file and write its header; the caller writes the data, every byte once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn shard(&self, layout: &ShardLayout) -> Result<ShardWriter> {
        let name = layout.file_name.clone();
        let path = self.path.join(temporary(&format!("{name}.{}", own_name())));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        lock(&self.files).insert(name.clone(), path.clone());
        file.set_len(layout.file_bytes).map_err(Error::io(&path))?;
        let (left, finishing) = (AtomicU64::new(layout.file_bytes), Arc::clone(&self.finishing));
        let writer = ShardWriter { file, path, name, left, finishing };
        writer.write_at(0, &layout.header)?;
        Ok(writer)
    }

    /// Remove a weight file that is not whole.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard(&self, name: &str) -> Result<()> {
        match lock(&self.files).remove(name) {
            Some(path) => std::fs::remove_file(&path).map_err(Error::io(&path)),
            None => Ok(()),
        }
    }

    /// Say of the weight files that were written that they are whole, once `ready` does not object.
    ///
    /// # Errors
    /// [`Error::Io`]; those of `ready`.
    pub fn finish_if(&self, ready: impl FnOnce() -> Result<()>) -> Result<()> {
        self.finishing.wait()?;
        ready()?;
        let notes: Vec<String> = lock(&self.finishing.notes).iter().cloned().collect();
        let hashes = lock(&self.finishing.hashes).clone();
        for (file, sha256) in hashes {
            let Some(written) = lock(&self.files).remove(&file) else { continue };
            let placed = self.path.join(temporary(&file));
            std::fs::rename(&written, &placed).map_err(Error::io(&written))?;
            let (bytes, modified) = state(&placed)?;
            let notes = notes.clone();
            let name = format!("{TEMPORARY_PREFIX}{file}{FINISHED_SUFFIX}");
            let finished = Finished { file, bytes, sha256, notes };
            self.put(&name, &Said { job: self.job.clone(), modified, finished })?;
        }
        Ok(())
    }

    /// The numbers that some process found under a name; `None` if none did yet.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        let path = self.path.join(format!("{TEMPORARY_PREFIX}{name}{FOUND_SUFFIX}"));
        let found: Option<Found> = read(&path, FOUND_BYTES)?;
        Ok(found.filter(|found| found.job == self.job).map(|found| found.numbers))
    }

    /// Keep numbers under a name for other processes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put_numbers(&self, name: &str, numbers: Vec<i64>) -> Result<()> {
        let name = format!("{TEMPORARY_PREFIX}{name}{FOUND_SUFFIX}");
        self.put(&name, &Found { job: self.job.clone(), numbers })
    }

    /// Write a small file that is there as a whole or not at all.
    fn put(&self, name: &str, content: &impl Serialize) -> Result<()> {
        let path = self.path.join(name);
        let aside = self.path.join(temporary(&format!("{name}.{}", own_name())));
        let text = serde_json::json!(content).to_string();
        let written = File::create_new(&aside).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            if self.finishing.how.sync { file.sync_all() } else { Ok(()) }
        });
        let placed = written.and_then(|()| std::fs::rename(&aside, &path));
        placed.map_err(|error| {
            let _ = std::fs::remove_file(&aside);
            Error::io(&path)(error)
        })
    }
}

impl Drop for SharedFolder {
    /// Remove the files that are not whole.
    fn drop(&mut self) {
        self.finishing.stop();
        for path in lock(&self.files).values() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The weight files of a job that processes said to be whole, and that still are.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn finished(folder: &Path, job: &str) -> Result<BTreeMap<String, Finished>> {
    let mut whole = BTreeMap::new();
    for name in names(folder)?.iter().filter(|name| name.ends_with(FINISHED_SUFFIX)) {
        let said: Option<Said> = read(&folder.join(name), FINISHED_BYTES)?;
        let Some(Said { modified, finished, .. }) = said.filter(|said| said.job == job) else {
            continue;
        };
        if *name != format!("{TEMPORARY_PREFIX}{}{FINISHED_SUFFIX}", finished.file) {
            continue;
        }
        let path = folder.join(temporary(&finished.file));
        let same = match state(&path) {
            Ok((bytes, now)) if bytes == finished.bytes => {
                now == modified || sha256(&path, &AtomicBool::new(false))? == finished.sha256
            }
            Ok(_) => false,
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if same {
            whole.insert(finished.file.clone(), finished);
        }
    }
    Ok(whole)
}

/// A small file of another process; `None` where there is none or it cannot be understood.
fn read<T: for<'de> Deserialize<'de>>(path: &Path, most: u64) -> Result<Option<T>> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
        Ok(found) if !found.is_file() => return Ok(None),
        Ok(_) => {}
    }
    match mapping::read(path, most) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        // It was replaced by the same, or its folder was finished, in this moment.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The size of a file in bytes, and when it was last changed in ns since 1970.
fn state(path: &Path) -> Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).map_err(Error::io(path))?;
    let modified = found.modified().map_err(Error::io(path))?;
    let since = SystemTime::duration_since(&modified, UNIX_EPOCH).unwrap_or_default();
    Ok((found.len(), since.as_nanos() as u64))
}

/// A part of a file's name that no other process uses, on whatever machine.
fn own_name() -> String {
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}
