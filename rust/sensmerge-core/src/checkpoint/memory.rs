//! Checkpoints in memory: tensors that the caller owns or keeps alive.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::header::byte_size;
use super::{Bytes, Checkpoint, Storage, TensorInfo};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// A tensor in memory.
pub struct MemoryTensor {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its entries, row by row, little-endian.
    pub bytes: Bytes,
}

impl MemoryTensor {
    /// Address, dtype and shape: equal for two tensors if and only if they are views of the same
    /// memory.
    fn place(&self) -> (usize, Dtype, Vec<usize>) {
        ((*self.bytes).as_ref().as_ptr() as usize, self.dtype, self.shape.clone())
    }

    fn check(&self, checkpoint: &Path) -> Result<()> {
        let (found, dtype) = ((*self.bytes).as_ref().len(), self.dtype.name());
        if byte_size(self.dtype, &self.shape) == Some(found) {
            return Ok(());
        }
        let reason = format!("shape {:?} of {dtype} is not {found} bytes", self.shape);
        Err(Error::tensor(checkpoint, &self.name, reason))
    }
}

/// A checkpoint of `tensors`; messages call it `path`.
pub(super) fn checkpoint(path: &Path, tensors: Vec<MemoryTensor>) -> Result<Checkpoint> {
    let mut storages = Vec::with_capacity(tensors.len());
    let mut infos = BTreeMap::new();
    let mut tied = BTreeMap::new();
    let mut first = HashMap::new();
    for tensor in tensors {
        tensor.check(path)?;
        let place = tensor.place();
        let MemoryTensor { name, dtype, shape, bytes } = tensor;
        if infos.contains_key(&name) || tied.contains_key(&name) {
            return Err(Error::tensor(path, name, "is given twice"));
        }
        let end = (*bytes).as_ref().len();
        // Empty tensors may have equal addresses without sharing anything.
        if let Some(twin) = first.get(&place).filter(|_| end > 0) {
            tied.insert(name, String::clone(twin));
            continue;
        }
        first.insert(place, name.clone());
        let shard = storages.len();
        let info = TensorInfo { name: name.clone(), dtype, shape, shard, start: 0, end };
        infos.insert(name, Arc::new(info));
        storages.push(Storage::Memory(bytes));
    }
    let path = path.to_path_buf();
    Ok(Checkpoint { path, storages, tensors: infos, tied, ..Checkpoint::default() })
}
