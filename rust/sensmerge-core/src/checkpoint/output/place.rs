//! Checks of the output's place: it must not be an input, lie in one or contain one, and it must not
//! hold files that may not be replaced.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use super::record::{self, Record};
use super::{MARKER, OUTPUT_FILE, is_temporary, ours};
use crate::checkpoint::foreign::enumerate;
use crate::checkpoint::select::names;
use crate::error::{Error, Hint, Result};

/// Refuse an output folder that cannot be written as asked. Nothing is changed.
///
/// `inputs` are the folders and files that are merged. `overwrite` allows a folder that is not empty,
/// unless it holds weights that no earlier merge listed.
///
/// # Errors
/// [`Error::Output`] for a path that is not a folder, a folder that is not empty (without
/// `overwrite`) or holds weights that no earlier merge listed, and a folder that is, contains or lies
/// in an input; [`Error::File`] for an older output's list that is malformed; [`Error::Io`].
pub fn check(path: &Path, overwrite: bool, inputs: &[&Path]) -> Result<()> {
    let output = canonical(path)?;
    for input in inputs {
        let input_path = canonical(input)?;
        let how = if output == input_path {
            "is"
        } else if output.starts_with(&input_path) {
            "lies in"
        } else if input_path.starts_with(&output) || holds_weights_of(&output, input)? {
            "contains"
        } else {
            continue;
        };
        let reason = format!("{how} the input {}; inputs are never written to", input.display());
        return Err(Error::output(path, reason));
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if is_absence(&error) => check_writable(path),
        Err(error) => Err(Error::io(path)(error)),
        Ok(_) if !is_folder(path)? => Err(Error::output(path, "exists and is not a folder")),
        Ok(_) => {
            check_content(path, overwrite)?;
            check_writable(path)
        }
    }
}

/// Refuse a folder in which no file can be made, or the nearest one above that exists.
fn check_writable(path: &Path) -> Result<()> {
    let absolute = std::path::absolute(path).map_err(Error::io(path))?;
    for folder in absolute.ancestors() {
        match std::fs::metadata(folder) {
            Err(error) if is_absence(&error) => {}
            Err(error) => return Err(Error::io(folder)(error)),
            Ok(found) if !found.is_dir() => {
                let reason = format!("cannot be made: {} is not a folder", folder.display());
                return Err(Error::output(path, reason));
            }
            Ok(_) => return may_write(folder).map_err(Error::io(folder)),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn may_write(folder: &Path) -> std::io::Result<()> {
    use rustix::fs::Access;
    Ok(rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}

#[cfg(not(unix))]
fn may_write(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Refuse a folder whose file system has fewer than `needed` bytes left. What an older output takes counts
/// as taken: it is removed only once the new one is whole.
///
/// # Errors
/// [`Error::Output`], with both figures; [`Error::Io`].
pub fn check_space(path: &Path, needed: u64) -> Result<()> {
    let absolute = std::path::absolute(path).map_err(Error::io(path))?;
    let mut folders = absolute.ancestors();
    let Some(folder) = folders.find(|folder| folder.is_dir()) else { return Ok(()) };
    match free_bytes(folder).map_err(Error::io(folder))? {
        Some(free) if free < needed => {
            let reason = format!(
                "the weights take {needed} bytes, and its file system has {free} left; free {} more, or \
                 name a folder elsewhere",
                needed - free
            );
            Err(Error::output(path, reason))
        }
        _ => Ok(()),
    }
}

/// The bytes that are left to this user on a folder's file system; `None` where it does not say.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> std::io::Result<Option<u64>> {
    let found = rustix::fs::statvfs(folder)?;
    Ok((found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize)))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> std::io::Result<Option<u64>> {
    Ok(None)
}

/// Refuse a folder whose content may not be replaced.
pub(super) fn check_content(path: &Path, overwrite: bool) -> Result<()> {
    if is_empty(path)? {
        return Ok(());
    }
    let unfinished = names(path)?.contains(MARKER);
    // Whose it is will be seen once the merge is planned.
    let taken_over = overwrite || (unfinished && marked(path)?.is_alone());
    if !taken_over {
        let state = if unfinished { "holds an unfinished merge" } else { "is not empty" };
        let reason = format!("{state}; name another folder, or set overwrite to replace it");
        return Err(Error::output(path, reason).with_hint(Hint::Overwrite));
    }
    let strangers = ours::strangers(path)?;
    if strangers.is_empty() {
        return Ok(());
    }
    let names = enumerate(strangers.iter().map(String::as_str));
    Err(Error::output(
        path,
        format!(
            "holds weights that no {OUTPUT_FILE} lists, so that no merge of this version wrote them: \
             {names}; move or delete them, or name another folder"
        ),
    ))
}

/// What the marker of a folder says.
fn marked(path: &Path) -> Result<Record> {
    let path = path.join(MARKER);
    let marker = std::fs::File::open(&path).map_err(Error::io(&path))?;
    record::read(&marker, &path)
}

/// Whether a folder holds at most the marker and temporary files of an unfinished merge.
pub(super) fn is_empty(folder: &Path) -> Result<bool> {
    Ok(names(folder)?.iter().all(|name| name == MARKER || is_temporary(name)))
}

/// The folders of a path that do not exist yet, innermost first.
pub(super) fn missing(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    // The outermost ancestor of a relative path is the empty path.
    for folder in path.ancestors().take_while(|folder| !folder.as_os_str().is_empty()) {
        match std::fs::symlink_metadata(folder) {
            Ok(_) => break,
            Err(error) if is_absence(&error) => found.push(folder.to_path_buf()),
            Err(error) => return Err(Error::io(folder)(error)),
        }
    }
    Ok(found)
}

/// Whether an error says that nothing of this name exists. Any other error leaves that open.
fn is_absence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn is_folder(path: &Path) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(kind) => Ok(kind.is_dir()),
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// The path with links resolved; `None` where it does not exist.
fn resolved(path: &Path) -> Result<Option<PathBuf>> {
    match path.canonicalize() {
        Ok(path) => Ok(Some(path)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// The path with links resolved, whether or not it exists yet.
fn canonical(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(Error::io(path))?;
    for existing in absolute.ancestors() {
        let Some(mut found) = resolved(existing)? else { continue };
        // A part that does not exist is not a link, so that `..` after it removes exactly that part.
        for part in absolute.strip_prefix(existing).into_iter().flat_map(Path::components) {
            match part {
                Component::ParentDir => drop(found.pop()),
                part => found.push(part),
            }
        }
        return Ok(resolved(&found)?.unwrap_or(found));
    }
    Ok(absolute)
}

/// Whether links in the folder `input` lead to weights below the folder `output`.
fn holds_weights_of(output: &Path, input: &Path) -> Result<bool> {
    if !is_folder(input)? {
        return Ok(false);
    }
    for name in names(input)?.iter().filter(|name| name.ends_with(".safetensors")) {
        if resolved(&input.join(name))?.is_some_and(|target| target.starts_with(output)) {
            return Ok(true);
        }
    }
    Ok(false)
}
