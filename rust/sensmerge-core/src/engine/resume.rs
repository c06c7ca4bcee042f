//! What has to be the same for a killed merge to go on from the weight files that it finished.

use super::{Inputs, Options};
use crate::checkpoint::layout::ShardLayout;
use crate::manifest::{Manifest, Model};

/// A digest of all that decides the bytes of the weight files: this program's version, the manifest, the
/// state of every input file unless the manifest has a digest of its weights, and the layout of the output. `None` where inputs lie in memory, whose state
/// nobody knows later, or where nobody is to go on.
pub(super) fn digest(
    manifest: &Manifest,
    inputs: &Inputs,
    shards: &[ShardLayout],
    options: &Options,
) -> Option<String> {
    if !options.resume || inputs.checkpoints.iter().any(|checkpoint| checkpoint.in_memory()) {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        // A length precedes every field, so that other cuts are other digests.
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(&serde_json::to_vec(manifest).ok()?);
    add(&[u8::from(options.allow_nan)]);
    // Where other machines take part, inputs have other devices and times there.
    let unsealed = |(_, model): &(_, &Model)| model.fingerprint.is_none();
    let pairs = inputs.checkpoints.iter().zip(&manifest.models).filter(unsealed);
    for (checkpoint, _) in pairs {
        checkpoint.stamps().iter().for_each(|stamp| add(stamp.as_bytes()));
    }
    for shard in shards {
        add(shard.file_name.as_bytes());
        add(&shard.header);
    }
    Some(format!("blake3:{}", hasher.finalize().to_hex()))
}
