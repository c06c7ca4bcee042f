//! The state of a file when it was opened, by which a change under the reader is noticed.

use std::fs::Metadata;
use std::path::Path;

use super::mapping::Mapped;
use crate::error::{Error, Result};

/// Place, size and times of a file. Any write, truncation or replacement changes one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Device and inode; not known on Windows.
    place: Option<[u64; 2]>,
    bytes: u64,
    /// Nanoseconds since the epoch: of the last change of the content, and of the inode.
    times: [i128; 2],
}

impl Stamp {
    #[cfg(unix)]
    pub(super) fn of(found: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let time = |seconds: i64, nanoseconds: i64| {
            i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
        };
        Self {
            place: Some([found.dev(), found.ino()]),
            bytes: found.size(),
            times: [
                time(found.mtime(), found.mtime_nsec()),
                time(found.ctime(), found.ctime_nsec()),
            ],
        }
    }

    #[cfg(not(unix))]
    pub(super) fn of(found: &Metadata) -> Self {
        let since = found.modified().ok().and_then(|time| {
            time.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_nanos() as i128)
        });
        Self { place: None, bytes: found.len(), times: [since.unwrap_or(0); 2] }
    }

    /// The same in a form that another process can compare. Devices are left out: their numbers may
    /// change when a system starts anew.
    pub(super) fn text(&self) -> String {
        let inode = self.place.map_or(0, |[_, inode]| inode);
        format!("{inode}:{}:{}:{}", self.bytes, self.times[0], self.times[1])
    }
}

/// Refuse a file that is no longer what it was when it was mapped.
///
/// # Errors
/// [`Error::File`] for a file that was written to, truncated, replaced or removed, [`Error::Io`].
pub(super) fn check(path: &Path, before: &Stamp, map: &Mapped) -> Result<()> {
    const THEN: &str =
        "what was read is not one model: wait for whatever writes to it, and merge anew";
    let found = match std::fs::metadata(path) {
        Ok(found) => Stamp::of(&found),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::file(path, format!("was removed while it was being read; {THEN}")));
        }
        Err(error) => return Err(Error::io(path)(error)),
    };
    let how = if found.bytes < before.bytes {
        format!("was cut from {} to {} bytes while it was being read", before.bytes, found.bytes)
    } else if map.is_torn() {
        "could not be read throughout: the system gave up on a part of it".to_owned()
    } else if found.place != before.place {
        "was replaced while it was being read".to_owned()
    } else if found != *before {
        "was changed while it was being read".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::file(path, format!("{how}; {THEN}")))
}
