//! The identity of a checkpoint's files, by which a manifest recognises the files it was made from.

use std::path::PathBuf;

use super::Checkpoint;
use super::header::LENGTH_BYTES;

/// The prefix of the digest: it names the scheme, so that digests of a later scheme never compare
/// equal.
const SCHEME: &str = "blake3";

impl Checkpoint {
    /// Path, size in bytes and a digest of the header of every file; empty for a checkpoint in
    /// memory.
    #[must_use]
    pub fn identities(&self) -> Vec<(PathBuf, u64, String)> {
        let identity = |(path, storage): (&PathBuf, &super::Storage)| {
            let bytes = storage.bytes();
            let length = bytes.first_chunk::<LENGTH_BYTES>().map_or(0, |length| {
                usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX)
            });
            let header = &bytes[..bytes.len().min(LENGTH_BYTES.saturating_add(length))];
            let digest = format!("{SCHEME}:{}", blake3::hash(header).to_hex());
            (path.clone(), bytes.len() as u64, digest)
        };
        self.files.iter().zip(&self.storages).map(identity).collect()
    }
}
