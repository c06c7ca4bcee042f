//! Files opened for reading, and mapped into memory: every file that the core reads is opened here.
//!
//! Files of a model's folder are named by other files, which are not trusted: each has to be a regular
//! file, and a link must not lead out of the folder. One that the caller names may lie anywhere.
#![expect(unsafe_code, reason = "a file is mapped to be read without copying it")]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use memmap2::Mmap;

use super::origin;
use crate::error::{Error, Result};

/// Map a regular file that the caller named, read-only. Links are followed.
pub(super) fn map_named(path: &Path) -> Result<Mmap> {
    let file = open(path)?;
    // SAFETY: nothing is written through the map. The operating system cannot keep other processes
    // from changing or truncating the file meanwhile; like every mapped reader, this one relies on
    // checkpoints not being rewritten in place while they are merged.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}

/// Map a regular file of a model's folder, read-only.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    check_own(path)?;
    map_named(path)
}

/// Map a regular file of a model's folder that has at most so many bytes.
pub(super) fn map_small(path: &Path, most: u64) -> Result<Mmap> {
    let map = map(path)?;
    check_size(path, map.len() as u64, most)?;
    Ok(map)
}

/// Read a regular file of a model's folder that has at most so many bytes.
pub(super) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    check_own(path)?;
    let file = open(path)?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    check_size(path, size, most)?;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

fn check_size(path: &Path, size: u64, most: u64) -> Result<()> {
    if size <= most {
        return Ok(());
    }
    let reason = format!("has {size} bytes, and at most {most} are read of such a file");
    Err(Error::file(path, reason))
}

/// Refuse a link that leads out of the folder that it is in.
///
/// In the Hub's cache, files of a folder are links to its blobs.
fn check_own(path: &Path) -> Result<()> {
    if !std::fs::symlink_metadata(path).map_err(Error::io(path))?.is_symlink() {
        return Ok(());
    }
    let target = path.canonicalize().map_err(Error::io(path))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let home = folder.canonicalize().map_err(Error::io(folder))?;
    let blobs = origin::blobs(&home);
    if target.starts_with(&home) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(());
    }
    let reason = "is a link that leads outside the model's folder; put the file itself there, or \
                  name the folder that it lies in";
    Err(Error::file(path, reason))
}

fn open(path: &Path) -> Result<File> {
    // Checked before opening: opening a pipe would wait for its writer.
    let kind = std::fs::metadata(path).map_err(Error::io(path))?;
    if !kind.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    File::open(path).map_err(Error::io(path))
}
