//! The layout of the output files: the file and the offset of every tensor, decided before anything
//! is written.

use serde_json::{Map, Value, json};

use super::header::LENGTH_BYTES;
use crate::dtype::Dtype;

/// Headers are padded to a multiple of this many bytes, as by the format's own implementation, so that
/// the data starts aligned.
const ALIGNMENT: usize = 8;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// The dtype it is stored in.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Number of bytes.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        let elements: usize = self.shape.iter().product();
        (elements * self.dtype.bits() / 8) as u64
    }
}

/// One output file.
#[derive(Clone, Debug)]
pub struct ShardLayout {
    /// Its name, such as `model-00001-of-00003.safetensors`.
    pub file_name: String,
    /// The bytes before the data: length and JSON.
    pub header: Vec<u8>,
    /// Its tensors, each with its offset from the start of the file.
    pub tensors: Vec<(TensorSpec, u64)>,
    /// Its size in bytes.
    pub file_bytes: u64,
}

/// Spread tensors, in their order, over files of at most `max_shard_bytes` of data each.
///
/// A larger tensor gets a file of its own. Without tensors there is one file, without data.
#[must_use]
pub fn layout(tensors: Vec<TensorSpec>, max_shard_bytes: u64) -> Vec<ShardLayout> {
    let mut groups: Vec<Vec<TensorSpec>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let size = tensor.nbytes();
        let last = groups.len() - 1;
        if filled + size > max_shard_bytes && !groups[last].is_empty() {
            groups.push(vec![tensor]);
            filled = size;
        } else {
            groups[last].push(tensor);
            filled += size;
        }
    }
    let count = groups.len();
    let name = |place: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", place + 1),
    };
    groups.into_iter().enumerate().map(|(place, group)| shard(name(place), group)).collect()
}

fn shard(file_name: String, tensors: Vec<TensorSpec>) -> ShardLayout {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    let mut offsets = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let end = offset + tensor.nbytes();
        entries.insert(
            tensor.name.clone(),
            json!({
                "dtype": tensor.dtype.name(),
                "shape": tensor.shape,
                "data_offsets": [offset, end],
            }),
        );
        offsets.push(offset);
        offset = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    debug_assert_eq!(header.len(), LENGTH_BYTES);
    header.append(&mut json);

    let start = header.len() as u64;
    let tensors = tensors.into_iter().zip(offsets.iter().map(|offset| start + offset)).collect();
    ShardLayout { file_name, header, tensors, file_bytes: start + offset }
}

/// The text of `model.safetensors.index.json`.
#[must_use]
pub fn index_json(shards: &[ShardLayout]) -> String {
    let tensors = || shards.iter().flat_map(|shard| &shard.tensors);
    let total: u64 = tensors().map(|(tensor, _)| tensor.nbytes()).sum();
    let weight_map: Map<String, Value> = shards
        .iter()
        .flat_map(|shard| {
            shard.tensors.iter().map(|(tensor, _)| (tensor.name.clone(), json!(shard.file_name)))
        })
        .collect();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    format!("{index:#}\n")
}
