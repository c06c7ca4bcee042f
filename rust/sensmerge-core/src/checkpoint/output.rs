//! The output folder as a transaction: absent, marked as unfinished, or complete.
//!
//! Every file is written under a temporary name in the folder itself, then flushed, then renamed;
//! what makes the folder a model (the index, or the only weight file) comes last. Until then a
//! marker says that the folder is unfinished, and a lock on it keeps other merges out.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::index::{INDEX_FILE, is_bare};
use super::layout::ShardLayout;
use crate::error::{Error, Result};

/// Stands in a folder while it is written.
const MARKER: &str = ".sensmerge-unfinished";

const TEMPORARY_PREFIX: &str = ".sensmerge-";
const TEMPORARY_SUFFIX: &str = ".partial";

/// An output folder being written. Dropped before [`OutputFolder::finish`], it takes back all it
/// wrote.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    /// Folders that did not exist before, outermost first.
    made: Vec<PathBuf>,
    /// Whether an older model is replaced.
    replaces: bool,
    marker: File,
    /// Final names of the files written so far.
    files: Mutex<BTreeSet<String>>,
    /// Final names already in place.
    placed: Vec<String>,
    finished: bool,
}

/// Refuse an output folder that cannot be written as asked, without touching anything.
///
/// `inputs` are the folders and files that are merged; `overwrite` allows replacing a model.
///
/// # Errors
/// [`Error::Output`] for a folder that is not empty, is no folder, or belongs to an input.
pub fn check(path: &Path, overwrite: bool, inputs: &[&Path]) -> Result<()> {
    let output = canonical(path)?;
    for input in inputs {
        let input_path = canonical(input)?;
        let inside = output.starts_with(&input_path);
        let around = input_path.is_file() && input_path.parent() == Some(&output);
        if inside || around || holds_weights_of(&output, input)? {
            return Err(Error::output(
                path,
                format!("belongs to the input {}; inputs are never written to", input.display()),
            ));
        }
    }
    match std::fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(_) if !path.is_dir() => Err(Error::output(path, "exists and is not a folder")),
        Ok(_) => check_empty(path, overwrite),
    }
}

impl OutputFolder {
    /// Create the folder, or take over an empty one, one that a killed merge left unfinished, or,
    /// with `overwrite`, one that holds a model.
    ///
    /// # Errors
    /// What [`check`] refuses, a folder that another merge is writing, and [`Error::Io`].
    pub fn create(path: &Path, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        check(path, overwrite, inputs)?;
        let missing = path.ancestors().take_while(|folder| is_missing(folder));
        let made: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
        std::fs::create_dir_all(path).map_err(Error::io(path))?;
        let marker_path = path.join(MARKER);
        let marker = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&marker_path)
            .map_err(Error::io(&marker_path))?;
        match marker.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Error::output(path, "another merge is writing to it"));
            }
            // Some network file systems have no locks; the marker still stands.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let folder = Self {
            path: path.to_path_buf(),
            replaces: !made.iter().any(|folder| folder == path) && !is_empty(path)?,
            made: made.into_iter().rev().collect(),
            marker,
            files: Mutex::default(),
            placed: Vec::new(),
            finished: false,
        };
        // A merge that ended between the check and the lock may have filled the folder.
        check_empty(path, overwrite)?;
        for name in names(path)?.iter().filter(|name| is_temporary(name)) {
            let stale = path.join(name);
            std::fs::remove_file(&stale).map_err(Error::io(&stale))?;
        }
        Ok(folder)
    }

    /// Start a weight file: its header is written, its data is not.
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

    /// Copy a file, byte for byte.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn copy(&self, name: &str, from: &Path) -> Result<()> {
        let mut source = File::open(from).map_err(Error::io(from))?;
        let (mut file, path) = self.start(name)?;
        std::io::copy(&mut source, &mut file).map(drop).map_err(Error::io(path))
    }

    /// Flush (where `sync` asks for it), rename everything, the weights' entry point last, and
    /// remove the marker.
    ///
    /// # Errors
    /// [`Error::Io`]. A new folder is then removed; one that held a model stays marked.
    pub fn finish(mut self, sync: bool) -> Result<()> {
        let files = std::mem::take(&mut *lock(&self.files));
        if sync {
            for name in &files {
                let path = self.path.join(temporary(name));
                File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))?;
            }
        }
        // Put back: what is not renamed yet is still to be removed if this fails.
        lock(&self.files).clone_from(&files);
        self.remove(INDEX_FILE)?;
        let weights = |name: &&String| name.ends_with(".safetensors") || *name == INDEX_FILE;
        let (last, first): (Vec<&String>, Vec<&String>) = files.iter().partition(weights);
        let (index, shards): (Vec<&String>, Vec<&String>) =
            last.into_iter().partition(|name| *name == INDEX_FILE);
        for name in first.into_iter().chain(shards) {
            self.place(name)?;
        }
        for name in names(&self.path)? {
            if name.ends_with(".safetensors") && !files.contains(&name) {
                self.remove(&name)?;
            }
        }
        for name in index {
            self.place(name)?;
        }
        if sync {
            self.sync_folder()?;
        }
        self.remove(MARKER)?;
        self.finished = true;
        if sync { self.sync_folder() } else { Ok(()) }
    }

    fn start(&self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.path.join(temporary(name));
        if !is_bare(name) {
            return Err(Error::output(&self.path, format!("'{name}' is no file name")));
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
        let path = self.path.join(name);
        std::fs::rename(self.path.join(temporary(name)), &path).map_err(Error::io(&path))?;
        lock(&self.files).remove(name);
        self.placed.push(name.to_owned());
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(&path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Make the renamings durable. Folders cannot be flushed everywhere.
    fn sync_folder(&self) -> Result<()> {
        if cfg!(unix) {
            let folder = File::open(&self.path).and_then(|folder| folder.sync_all());
            folder.map_err(Error::io(&self.path))?;
        }
        Ok(())
    }
}

impl Drop for OutputFolder {
    /// Take back what an unfinished merge wrote. Failures cannot be told here: the marker says it.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut clean = true;
        for name in lock(&self.files).iter() {
            clean &= std::fs::remove_file(self.path.join(temporary(name))).is_ok();
        }
        if self.replaces && !self.placed.is_empty() {
            // Old and new files are mixed: the marker must stay.
            return;
        }
        for name in &self.placed {
            clean &= std::fs::remove_file(self.path.join(name)).is_ok();
        }
        if clean && self.marker.unlock().is_ok() {
            let _ = std::fs::remove_file(self.path.join(MARKER));
            for folder in self.made.iter().rev() {
                let _ = std::fs::remove_dir(folder);
            }
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

fn is_missing(path: &Path) -> bool {
    // The empty path is what a relative path's outermost ancestor is called.
    !path.as_os_str().is_empty() && std::fs::symlink_metadata(path).is_err()
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        Ok(entry.map_err(Error::io(folder))?.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

/// Whether a folder holds nothing but what an unfinished merge may leave.
fn is_empty(folder: &Path) -> Result<bool> {
    Ok(names(folder)?.iter().all(|name| name == MARKER || is_temporary(name)))
}

fn check_empty(path: &Path, overwrite: bool) -> Result<()> {
    if overwrite || is_empty(path)? {
        return Ok(());
    }
    let unfinished = path.join(MARKER).exists();
    let state = if unfinished { "holds an unfinished merge" } else { "is not empty" };
    Err(Error::output(path, format!("{state}; name another folder, or pass --force to replace it")))
}

/// A path without links, whether or not it exists yet.
fn canonical(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(Error::io(path))?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists());
    let existing = existing.unwrap_or(&absolute);
    let mut resolved = existing.canonicalize().map_err(Error::io(path))?;
    // What does not exist cannot be a link, so that `..` takes back just what was named.
    for part in absolute.strip_prefix(existing).into_iter().flat_map(Path::components) {
        match part {
            Component::ParentDir => drop(resolved.pop()),
            part => resolved.push(part),
        }
    }
    Ok(resolved.canonicalize().unwrap_or(resolved))
}

/// Whether weights of `input` really lie in the folder `output`, by links.
fn holds_weights_of(output: &Path, input: &Path) -> Result<bool> {
    if !input.is_dir() {
        return Ok(false);
    }
    let weights = names(input)?.into_iter().filter(|name| name.ends_with(".safetensors"));
    Ok(weights.into_iter().any(|name| {
        let target = input.join(name).canonicalize();
        target.is_ok_and(|target| target.parent() == Some(output))
    }))
}
