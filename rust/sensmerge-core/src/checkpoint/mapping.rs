//! Files mapped into memory: one of the crate's two files with `unsafe` code (`processor.rs` is the
//! other).
#![expect(unsafe_code, reason = "a file is mapped to be read without copying it")]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Map a regular file, read-only. Links are followed: the Hub's cache is made of them.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = open(path)?;
    // SAFETY: nothing is written through the map. The operating system cannot keep other processes
    // from changing or truncating the file meanwhile; like every mapped reader, this one relies on
    // checkpoints not being rewritten in place while they are merged.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}

/// Read a small regular file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

fn open(path: &Path) -> Result<File> {
    // Checked before opening: opening a pipe would wait for its writer.
    let kind = std::fs::metadata(path).map_err(Error::io(path))?;
    if !kind.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    File::open(path).map_err(Error::io(path))
}
