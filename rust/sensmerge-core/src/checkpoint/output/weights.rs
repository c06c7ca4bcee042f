//! Weight files while they are written, by any number of threads at once; and what is done once one is
//! whole, on a thread of its own: hash it, flush it, and say so in the marker, if this process alone writes
//! the folder.
//!
//! The hash is of what the file holds, read back from the system's cache, since pieces are written in any
//! order. While it is computed, other weight files are being written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::record::{self, Finished};
use super::{Writing, lock};
use crate::error::{Error, Result};

/// Bytes hashed at a time.
const STEP: usize = 1 << 20;

/// A weight file being written.
#[derive(Debug)]
pub struct ShardWriter {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) name: String,
    /// Bytes that are not written yet.
    pub(super) left: AtomicU64,
    pub(super) finishing: Arc<Finishing>,
}

impl ShardWriter {
    /// Write `bytes` at `offset` of the file. Every byte is written once: when all are, the file is
    /// finished.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, bytes, offset).map_err(Error::io(&self.path))?;
        let count = bytes.len() as u64;
        if count > 0 && self.left.fetch_sub(count, Ordering::AcqRel) == count {
            Finishing::start(&self.finishing, &self.name, &self.path);
        }
        Ok(())
    }
}

/// The weight files that are whole, and the threads that see to it.
#[derive(Debug)]
pub(super) struct Finishing {
    pub how: Writing,
    /// The marker and its path.
    pub marker: File,
    pub marker_path: PathBuf,
    /// Whether other processes write the folder too: each says of its files elsewhere that they are whole.
    pub shared: bool,
    /// Notes of the merge, kept with what is finished.
    pub notes: Arc<Mutex<BTreeSet<String>>>,
    /// Hashes of files, by name.
    pub hashes: Mutex<BTreeMap<String, String>>,
    pub threads: Mutex<Vec<JoinHandle<Result<()>>>>,
    pub stopped: AtomicBool,
}

impl Finishing {
    fn start(this: &Arc<Self>, name: &str, path: &Path) {
        if !this.how.hash && !this.how.sync {
            return;
        }
        let (shared, name, path) = (Arc::clone(this), name.to_owned(), path.to_path_buf());
        let thread = std::thread::spawn(move || shared.finish(name, &path));
        lock(&this.threads).push(thread);
    }

    fn finish(&self, file: String, path: &Path) -> Result<()> {
        let sha256 = if self.how.hash { Some(sha256(path, &self.stopped)?) } else { None };
        if self.how.sync {
            File::open(path).and_then(|file| file.sync_all()).map_err(Error::io(path))?;
        }
        let Some(sha256) = sha256 else { return Ok(()) };
        let bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
        let notes = lock(&self.notes).iter().cloned().collect();
        let finished = Finished { file, bytes, sha256, notes };
        let mut hashes = lock(&self.hashes);
        if self.shared {
            hashes.insert(finished.file, finished.sha256);
            return Ok(());
        }
        let written = record::add(&self.marker, &finished)
            .and_then(|()| if self.how.sync { self.marker.sync_all() } else { Ok(()) });
        written.map_err(Error::io(&self.marker_path))?;
        hashes.insert(finished.file, finished.sha256);
        Ok(())
    }

    /// Wait until every weight file that is whole is seen to.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Interrupted`] after [`stop`](Self::stop).
    pub(super) fn wait(&self) -> Result<()> {
        let threads = std::mem::take(&mut *lock(&self.threads));
        let results = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        // All of them, whatever the first one says: none may run on.
        results.fold(Ok(()), Result::and)
    }

    /// Make the threads stop, and wait for them.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = self.wait();
    }
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// [`Error::Io`]; [`Error::Interrupted`] once `stopped` is set.
pub(super) fn sha256(path: &Path, stopped: &AtomicBool) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let (mut hasher, mut part) = (Sha256::new(), vec![0; STEP]);
    loop {
        let count = match file.read(&mut part) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.map_err(Error::io(path))?,
        };
        if count == 0 {
            return Ok(hexadecimal(hasher));
        }
        if stopped.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        hasher.update(&part[..count]);
    }
}

pub(super) fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(Sha256::new_with_prefix(bytes))
}

fn hexadecimal(hasher: Sha256) -> String {
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16));
    hasher.finalize().iter().flat_map(digits).flatten().collect()
}

#[cfg(unix)]
pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}
