//! Signs of a badly saved model in a well-formed file: empty tensors, or zeros throughout.

use super::{Checkpoint, TensorInfo};

/// The probable cause of both.
const CAUSE: &str = "it was probably saved from a sharded run without gathering its parts";

/// Bytes looked at at a time.
const STEP: usize = 4096;

/// One sentence for each sign found in a checkpoint.
///
/// Only tensors of floats are looked at: tensors of integers are buffers, which may well be zero.
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

/// Whether there are floats and every bit of them is zero.
pub(super) fn is_zero_throughout(checkpoint: &Checkpoint) -> bool {
    let floats = checkpoint.tensors().filter(|tensor| tensor.dtype.float().is_some());
    let mut full = floats.filter(|tensor| tensor.nbytes() > 0).peekable();
    full.peek().is_some() && full.all(|tensor| is_zero(checkpoint, tensor))
}

/// Whether all entries are zero. Stops at the first step that holds another one.
fn is_zero(checkpoint: &Checkpoint, tensor: &TensorInfo) -> bool {
    let packed = checkpoint.packed(&tensor.name);
    let zero = packed.map_or(0, |packed| packed.encoding.code.zero());
    let mut chunks = checkpoint.bytes(tensor).chunks(STEP);
    chunks.all(|chunk| chunk.iter().fold(0, |all, byte| all | (byte ^ zero)) == 0)
}
