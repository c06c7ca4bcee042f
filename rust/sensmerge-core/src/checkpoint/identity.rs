//! What tells whether a file is the one that a manifest was made from.

use std::path::PathBuf;

use super::Checkpoint;
use super::header::LENGTH_BYTES;

/// Names the scheme, so that a later one can be told from it.
const SCHEME: &str = "blake3";

impl Checkpoint {
    /// Every file with its size and a digest of its header; nothing in memory.
    #[must_use]
    pub fn identities(&self) -> Vec<(PathBuf, u64, String)> {
        let identity = |(path, storage): (&PathBuf, &super::Bytes)| {
            let bytes = (**storage).as_ref();
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
