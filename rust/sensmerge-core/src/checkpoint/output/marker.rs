//! The marker of an unfinished output, which is locked while it is written.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Result};

/// Open the marker, or create it.
///
/// Whoever made the folder may have put something else under its name. A link is not followed: where it
/// leads to nothing, a file would be created outside the folder. A pipe is not opened: that would wait
/// for its reader.
///
/// # Errors
/// [`Error::File`] for what is not a regular file; [`Error::Io`].
pub(super) fn open(path: &Path) -> Result<File> {
    // Creating a new file follows no link.
    match OpenOptions::new().read(true).write(true).create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        created => return created.map_err(Error::io(path)),
    }
    let kind = std::fs::symlink_metadata(path).map_err(Error::io(path))?;
    if !kind.is_file() {
        let reason =
            "is not a regular file, and no merge made it; remove it, or name another folder";
        return Err(Error::file(path, reason));
    }
    OpenOptions::new().read(true).write(true).open(path).map_err(Error::io(path))
}
