//! What a sound file can hold and a trained model does not.

use super::Checkpoint;

/// What both are a sign of.
const CAUSE: &str = "it was probably saved from a sharded run without gathering its parts";

/// Bytes that are looked at together.
const STEP: usize = 4096;

/// Sentences on what is odd about a checkpoint; none for a sound one.
///
/// Only what is stored as floats is looked at: integers are buffers, which may well be zero.
pub(super) fn of(checkpoint: &Checkpoint) -> Vec<String> {
    let floats = checkpoint.tensors().filter(|tensor| tensor.dtype.float().is_some());
    let empty: Vec<_> = floats.filter(|tensor| tensor.nbytes() == 0).collect();
    let mut found = Vec::new();
    if let Some(first) = empty.first() {
        let others = match empty.len() - 1 {
            0 => String::new(),
            1 => ", and so is 1 other".to_owned(),
            more => format!(", and so are {more} others"),
        };
        found.push(format!(
            "{}: tensor '{}' is empty, of shape {:?}{others}; {CAUSE}",
            checkpoint.file_of(first).display(),
            first.name,
            first.shape
        ));
    }
    if is_zero_throughout(checkpoint) {
        found.push(format!("{}: every tensor is zero; {CAUSE}", checkpoint.path().display()));
    }
    found
}

/// Whether there are floats, and all of them are zero.
pub(super) fn is_zero_throughout(checkpoint: &Checkpoint) -> bool {
    let floats = checkpoint.tensors().filter(|tensor| tensor.dtype.float().is_some());
    let mut full = floats.filter(|tensor| tensor.nbytes() > 0).peekable();
    full.peek().is_some() && full.all(|tensor| is_zero(checkpoint.bytes(tensor)))
}

/// Whether all bytes are zero; ends at the first stretch with one that is not.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(STEP).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
