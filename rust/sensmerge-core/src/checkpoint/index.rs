//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::mapping;
use crate::error::{Error, Result};

/// File name of the index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The largest index, in bytes: models of 200,000 tensors have 25 MB.
const LARGEST: u64 = 40_000_000;

/// The most tensors that a model has. The largest mixtures of experts, quantised, have 210,000.
pub(super) const MOST_TENSORS: usize = 400_000;

/// An index, parsed.
pub(super) struct Index {
    /// Its file.
    pub path: PathBuf,
    /// The file of every tensor.
    pub files: BTreeMap<String, String>,
}

impl Index {
    /// Whether the index names another file than `file` for a tensor.
    pub(super) fn places_elsewhere(&self, tensor: &str, file: &Path) -> bool {
        self.files.get(tensor).is_some_and(|named| file.file_name() != Some(named.as_ref()))
    }
}

#[derive(Deserialize)]
struct Text {
    weight_map: WeightMap,
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
}

/// The file of each tensor; a tensor that is named twice is refused.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object that maps every tensor to a file name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<WeightMap, A::Error> {
        let mut files = BTreeMap::new();
        while let Some((tensor, file)) = map.next_entry::<String, String>()? {
            if files.len() == MOST_TENSORS {
                let reason = format!("it names more than {MOST_TENSORS} tensors");
                return Err(serde::de::Error::custom(reason));
            }
            if files.insert(tensor.clone(), file).is_some() {
                return Err(serde::de::Error::custom(format!("'{tensor}' occurs twice")));
            }
        }
        Ok(WeightMap(files))
    }
}

/// Read an index.
///
/// # Errors
/// [`Error::File`] for an index that is malformed or empty, [`Error::Tensor`] for a tensor whose file
/// is not a bare file name, [`Error::Io`].
pub(super) fn read(path: &Path) -> Result<Index> {
    let text = mapping::map_small(path, LARGEST)?;
    let Text { weight_map: WeightMap(files), .. } = serde_json::from_slice(text.as_ref())
        .map_err(|error| Error::file(path, format!("the index is malformed: {error}")))?;
    if files.is_empty() {
        return Err(Error::file(path, "the index names no tensor"));
    }
    for (tensor, file) in &files {
        if !is_bare(file) {
            return Err(Error::tensor(
                path,
                tensor,
                format!("weight_map names '{file}', which is not a file name in this folder"),
            ));
        }
    }
    Ok(Index { path: path.to_path_buf(), files })
}

/// Whether a name is a bare file name on every platform, so that joining it to a folder stays in the
/// folder.
pub(super) fn is_bare(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let single = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    single && !name.contains(['/', '\\', ':', '\0'])
}
