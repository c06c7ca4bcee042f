//! Checkpoints written by hand, for the integration tests.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use sensmerge_core::Result;
use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::engine::Inputs;
use sensmerge_core::manifest::{Builder, Manifest, View};
use serde_json::{Map, Value, json};

/// One tensor of a file: name, dtype, shape, bytes.
pub(crate) type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// A file's bytes from a header and data.
pub(crate) fn file(header: &Value, data: &[u8]) -> Vec<u8> {
    raw_file(header.to_string().as_bytes(), data)
}

/// The same from any text as the header.
pub(crate) fn raw_file(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    bytes
}

/// A valid file that holds `tensors`.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header
            .insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    file(&Value::Object(header), &data)
}

/// A float32 tensor.
pub(crate) fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    (name.into(), "F32", shape.to_vec(), bytes)
}

/// A folder with one weight file.
pub(crate) fn write_model(folder: &Path, tensors: &[Tensor]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("model.safetensors"), safetensors(tensors)).unwrap();
}

/// A folder with one weight file per group, and an index.
pub(crate) fn write_sharded(folder: &Path, groups: &[Vec<Tensor>]) {
    fs::create_dir_all(folder).unwrap();
    let mut weight_map = Map::new();
    for (place, group) in groups.iter().enumerate() {
        let name = format!("part-{place}.safetensors");
        fs::write(folder.join(&name), safetensors(group)).unwrap();
        for (tensor, ..) in group {
            weight_map.insert(tensor.clone(), json!(name));
        }
    }
    write_index(folder, &json!({"weight_map": weight_map}).to_string());
}

/// Write any text as the index.
pub(crate) fn write_index(folder: &Path, text: &str) {
    fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
}

/// A tensor's values as float32.
pub(crate) fn values(checkpoint: &sensmerge_core::checkpoint::Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.get(name).unwrap();
    let (entries, _) = checkpoint.bytes(tensor).as_chunks::<4>();
    entries.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Build a manifest over checkpoints, the base first if there is one; `change` is applied to its inputs.
pub(crate) fn plan(
    builder: Builder,
    base: Option<&Arc<Checkpoint>>,
    models: &[Arc<Checkpoint>],
    change: impl Fn(usize, View) -> View,
) -> Result<(Manifest, Inputs)> {
    let manifest = planned(builder, base, models, change)?;
    let all = base.into_iter().chain(models).cloned().collect();
    let inputs = Inputs::of(&manifest, all)?;
    Ok((manifest, inputs))
}

/// The manifest of [`plan`], which may name more checkpoints than those.
pub(crate) fn planned(
    builder: Builder,
    base: Option<&Arc<Checkpoint>>,
    models: &[Arc<Checkpoint>],
    change: impl Fn(usize, View) -> View,
) -> Result<Manifest> {
    let mut builder = builder;
    if let Some(base) = base {
        builder = builder.base(View::new(Arc::clone(base)));
    }
    for (place, model) in models.iter().enumerate() {
        builder = builder.model(change(place, View::new(Arc::clone(model))));
    }
    builder.build()
}

/// Open several checkpoints.
pub(crate) fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<Arc<Checkpoint>>> {
    paths.iter().map(|path| Checkpoint::open(path.as_ref()).map(Arc::new)).collect()
}
