//! A digest that tells fine-tuned models apart and reads at most 64 KiB of each tensor.

use super::Checkpoint;

/// Tensors up to this size are hashed whole.
const WHOLE: usize = 64 * 1024;

/// Windows hashed of a larger tensor: one at its start, one at its end, the others evenly between.
const WINDOWS: usize = 16;

/// Bytes of a window.
const WINDOW: usize = 4096;

/// The prefix of the digest: it names the scheme, so that digests of a later scheme never compare
/// equal.
const SCHEME: &str = "sampled-blake3";

pub(super) fn of(checkpoint: &Checkpoint) -> String {
    let mut hasher = blake3::Hasher::new();
    for tensor in checkpoint.stored().into_values() {
        // A length precedes every field of variable length, so that two models whose fields are cut
        // differently cannot feed the same bytes to the hash.
        hasher.update(&(tensor.name.len() as u64).to_le_bytes());
        hasher.update(tensor.name.as_bytes());
        hasher.update(tensor.dtype.name().as_bytes());
        hasher.update(&(tensor.shape.len() as u64).to_le_bytes());
        for &size in &tensor.shape {
            hasher.update(&(size as u64).to_le_bytes());
        }
        let bytes = checkpoint.bytes(tensor);
        if bytes.len() <= WHOLE {
            hasher.update(bytes);
            continue;
        }
        let last = bytes.len() - WINDOW;
        for window in 0..WINDOWS {
            let start = (last as u128 * window as u128 / (WINDOWS as u128 - 1)) as usize;
            hasher.update(&bytes[start..start + WINDOW]);
        }
    }
    format!("{SCHEME}:{}", hasher.finalize().to_hex())
}
