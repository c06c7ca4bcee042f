//! An index, a config or an adapter's config of any text, beside two sound weight files.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sensmerge_core::checkpoint::Checkpoint;

fn weights(path: &Path, names: &[&str]) {
    let entries: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(place, name)| {
            let offsets = [4 * place, 4 * place + 4];
            format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{offsets:?}}}")
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + 4 * names.len(), 0);
    std::fs::write(path, bytes).expect("a file");
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, text)) = data.split_first() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    weights(&folder.path().join("part-0.safetensors"), &["a"]);
    weights(&folder.path().join("part-1.safetensors"), &["b", "c"]);
    let names = ["model.safetensors.index.json", "config.json", "adapter_config.json"];
    std::fs::write(folder.path().join(names[*kind as usize % 3]), text).expect("a file");
    let Ok(checkpoint) = Checkpoint::open(folder.path()) else { return };
    for path in checkpoint.shard_paths() {
        assert_eq!(path.parent(), Some(folder.path()));
    }
});
