//! A weight file of any bytes: refused, or read so that each tensor has the bytes that it claims.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sensmerge_core::checkpoint::Checkpoint;

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("model.safetensors"), data).expect("a file");
    let Ok(checkpoint) = Checkpoint::open(folder.path()) else { return };
    let mut bytes = 0;
    for tensor in checkpoint.tensors() {
        assert_eq!(checkpoint.bytes(tensor).len(), tensor.nbytes());
        assert_eq!(tensor.elements() * tensor.dtype.bits(), tensor.nbytes() * 8);
        bytes += tensor.nbytes();
    }
    let header = u64::from_le_bytes(*data.first_chunk().expect("eight bytes")) as usize;
    assert_eq!(8 + header + bytes, data.len());
    assert!(!checkpoint.fingerprint().is_empty());
});
