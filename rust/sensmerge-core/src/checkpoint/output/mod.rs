//! The output folder as a transaction: absent, marked as unfinished, or complete.
//!
//! Every file is written under a temporary name in the folder itself, flushed if the caller asks for
//! it, and renamed; the file that makes the folder a model (the index, or the only weight file) is
//! renamed last. Until then a marker says that the folder is unfinished, and a lock on the marker
//! keeps other merges out. The files that an older output listed and the new one does not write are
//! removed.

mod marker;
mod ours;
mod place;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::checkpoint::index::{INDEX_FILE, is_bare};
use crate::checkpoint::layout::ShardLayout;
use crate::checkpoint::mapping;
use crate::checkpoint::origin::Origin;
use crate::checkpoint::select::names;
use crate::error::{Error, Result};
pub use place::check;
use place::{check_content, is_empty, missing};

/// The file that lists the files of an output, itself included.
pub const OUTPUT_FILE: &str = "sensmerge_output.json";

/// The marker: a file that is in the folder while it is being written.
const MARKER: &str = ".sensmerge-unfinished";

const TEMPORARY_PREFIX: &str = ".sensmerge-";
const TEMPORARY_SUFFIX: &str = ".partial";

/// The content of a folder before the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Files,
    /// Files, and the marker of a merge that was killed while it renamed them.
    Unfinished,
}

/// An output folder being written.
///
/// If it is dropped before [`OutputFolder::finish`] has succeeded, it removes all that it wrote. Only
/// where its files already replace some of an older output do they stay, and with them the marker.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    /// Folders that were created for it, innermost first.
    made: Vec<PathBuf>,
    before: Before,
    /// Whether any file has been renamed or removed yet.
    touched: bool,
    marker: File,
    /// Final names of the files that are written but not renamed yet.
    files: Mutex<BTreeSet<String>>,
    /// Names of the files that are in place.
    placed: Vec<String>,
    /// The inputs that came from the Hub, kept beside the list of files.
    origins: Vec<Origin>,
    /// Notes for the user, kept there too.
    notes: Vec<String>,
    finished: bool,
}

impl OutputFolder {
    /// Create the folder, or take over one that is empty but for the marker and temporary files of a
    /// killed merge, or, with `overwrite`, one that holds other files.
    ///
    /// # Errors
    /// [`Error::Output`] for a folder that [`check`] refuses or that another merge is writing;
    /// [`Error::Io`].
    pub fn create(path: &Path, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        check(path, overwrite, inputs)?;
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
        let folder = Self {
            path: path.to_path_buf(),
            made,
            before: match is_empty(path)? {
                true => Before::Nothing,
                false if was_unfinished => Before::Unfinished,
                false => Before::Files,
            },
            touched: false,
            marker,
            files: Mutex::default(),
            placed: Vec::new(),
            origins: Vec::new(),
            notes: Vec::new(),
            finished: false,
        };
        // A merge that ended between the check and the lock may have filled the folder.
        check_content(path, overwrite)?;
        for name in names(path)?.iter().filter(|name| is_temporary(name)) {
            let stale = path.join(name);
            std::fs::remove_file(&stale).map_err(Error::io(&stale))?;
        }
        Ok(folder)
    }

    /// Keep notes for the user, and the inputs that came from the Hub, beside the list of files.
    pub fn note(&mut self, notes: &[String], origins: Vec<Origin>) {
        self.notes.extend_from_slice(notes);
        self.origins.extend(origins);
    }

    /// Create a weight file and write its header; the caller writes the data.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn shard(&self, layout: &ShardLayout) -> Result<ShardWriter> {
        let (file, path) = self.start(&layout.file_name)?;
        file.set_len(layout.file_bytes).map_err(Error::io(&path))?;
        let writer = ShardWriter { file, path };
        writer.write_at(0, &layout.header)?;
        Ok(writer)
    }

    /// Write a small file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let (file, path) = self.start(name)?;
        ShardWriter { file, path }.write_at(0, content)
    }

    /// Copy a small file, byte for byte.
    ///
    /// # Errors
    /// [`Error::File`] for a source that is not a regular file; [`Error::Io`], which names the file
    /// that failed.
    pub fn copy(&self, name: &str, from: &Path) -> Result<()> {
        self.write(name, &mapping::read(from, u64::MAX)?)
    }

    /// Put all files in place. In this order:
    ///
    /// ```text
    /// write the list of the files of this output and of the older one
    /// flush every file, if `sync` is set
    /// rename the list, so that a merge killed from here on leaves no file that is not listed
    /// remove the older output's index, so that the folder is not a sharded model meanwhile
    /// rename the sidecars, then the weights
    /// remove the files that only the older output listed, and list the new files alone
    /// rename the index
    /// remove the marker
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for an older output's list that is malformed. The files written
    /// are then removed or, where some already replace those of an older output, the folder keeps the
    /// marker.
    pub fn finish(mut self, sync: bool) -> Result<()> {
        let mut files = lock(&self.files).clone();
        files.insert(OUTPUT_FILE.to_owned());
        let old = ours::listed(&self.path)?;
        let all: BTreeSet<String> = old.union(&files).cloned().collect();
        self.write(OUTPUT_FILE, &ours::listing(&all, &self.origins, &self.notes))?;
        if sync {
            files.iter().try_for_each(|name| self.sync(name))?;
        }
        self.place(OUTPUT_FILE)?;
        self.remove(INDEX_FILE)?;
        let weights = |name: &&String| name.ends_with(".safetensors") || *name == INDEX_FILE;
        let others = files.iter().filter(|name| *name != OUTPUT_FILE);
        let (last, first): (Vec<&String>, Vec<&String>) = others.partition(weights);
        let (index, shards): (Vec<&String>, Vec<&String>) =
            last.into_iter().partition(|name| *name == INDEX_FILE);
        for name in first.into_iter().chain(shards) {
            self.place(name)?;
        }
        for name in old.difference(&files) {
            self.remove(name)?;
        }
        if all != files {
            self.write(OUTPUT_FILE, &ours::listing(&files, &self.origins, &self.notes))?;
            if sync {
                self.sync(OUTPUT_FILE)?;
            }
            self.place(OUTPUT_FILE)?;
        }
        for name in index {
            self.place(name)?;
        }
        if sync {
            self.sync_folder()?;
        }
        self.remove(MARKER)?;
        if sync {
            self.sync_folder()?;
        }
        self.finished = true;
        Ok(())
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

    /// Make the renamings durable. Only on Unix can a folder be flushed.
    fn sync_folder(&self) -> Result<()> {
        if cfg!(unix) {
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
        } else if self.before != Before::Unfinished && self.marker.unlock().is_ok() {
            let _ = remove(&marker);
            remove_folders(&self.made);
        }
    }
}

/// A weight file being written, by any number of threads at once.
#[derive(Debug)]
pub struct ShardWriter {
    file: File,
    path: PathBuf,
}

impl ShardWriter {
    /// Write `bytes` at `offset` of the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, bytes, offset).map_err(Error::io(&self.path))
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn temporary(name: &str) -> String {
    format!("{TEMPORARY_PREFIX}{name}{TEMPORARY_SUFFIX}")
}

fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX)
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
