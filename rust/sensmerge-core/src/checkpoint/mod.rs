//! Checkpoints as folders of safetensors: read without copying, written without half-done
//! results; and checkpoints of tensors in memory. Untrusted input is data: nothing outside the
//! model's folder is opened because a file says so, and nothing is unpickled.

mod fingerprint;
mod foreign;
mod header;
mod identity;
mod index;
pub mod layout;
mod mapping;
mod memory;
pub mod output;
mod select;
mod suspicion;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use foreign::enumerate;
pub use index::INDEX_FILE;
use index::Index;
pub use memory::MemoryTensor;

/// What a header says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The dtype it is stored in.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The file, or piece of memory, that holds it, among the checkpoint's.
    pub shard: usize,
    /// Where its bytes start in it.
    pub start: usize,
    /// Where they end.
    pub end: usize,
}

impl TensorInfo {
    /// Number of entries.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of bytes.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.end - self.start
    }
}

/// Bytes that lie still: a mapped file, or memory that is kept alive by what is boxed here.
pub type Bytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// A checkpoint, opened: headers checked, data mapped, or in memory from the start.
pub struct Checkpoint {
    path: PathBuf,
    /// The file of every shard; none in memory.
    files: Vec<PathBuf>,
    /// The bytes of every shard.
    storages: Vec<Bytes>,
    tensors: BTreeMap<String, Arc<TensorInfo>>,
    tied: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Open a model's folder, or one safetensors file.
    ///
    /// Of a folder's files those are read that transformers' `from_pretrained` loads; see
    /// [`Checkpoint::notes`] for what is passed over.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Tensor`] or [`Error::Io`] for what is missing, truncated,
    /// malformed or not what it claims to be.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(Error::io(path))?;
        if kind.is_dir() {
            let select::Selection { files, index, notes } = select::select(path)?;
            return Self::from_files(path, files, index.as_ref(), notes);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if foreign::is_adapter(&name) {
            let config = path.with_file_name(foreign::ADAPTER_CONFIG);
            return Err(Error::file(path, foreign::adapter(&config)));
        }
        Self::from_files(path, vec![path.to_path_buf()], None, Vec::new())
    }

    fn from_files(
        path: &Path,
        files: Vec<PathBuf>,
        index: Option<&Index>,
        notes: Vec<String>,
    ) -> Result<Self> {
        let mut storages = Vec::<Bytes>::with_capacity(files.len());
        let mut tensors = BTreeMap::new();
        let mut twice = Vec::new();
        for (shard, file) in files.iter().enumerate() {
            let map = mapping::map(file)?;
            for tensor in header::read(file, &map, shard)? {
                if index.is_some_and(|index| index.places_elsewhere(&tensor.name, file)) {
                    twice.push(tensor.name);
                    continue;
                }
                if let Some(twin) = tensors.insert(tensor.name.clone(), Arc::new(tensor)) {
                    return Err(Error::tensor(file, &twin.name, "is in two files"));
                }
            }
            storages.push(Box::new(map));
        }
        let path = path.to_path_buf();
        let mut checkpoint = Self { path, files, storages, tensors, tied: BTreeMap::new(), notes };
        if let Some(index) = index {
            checkpoint.check_index(index)?;
            checkpoint.notes.extend(told_twice(&index.path, twice));
        }
        Ok(checkpoint)
    }

    /// A checkpoint of tensors in memory, which are not copied.
    ///
    /// Tensors that share all their memory are one tensor under the first of their names, as in
    /// the files that models are saved to.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that is given twice, or whose bytes are not as many as its
    /// dtype and shape need; `name` stands for the checkpoint's path.
    pub fn from_memory(name: impl AsRef<Path>, tensors: Vec<MemoryTensor>) -> Result<Self> {
        memory::checkpoint(name.as_ref(), tensors)
    }

    /// The index and the shards tell the same story.
    fn check_index(&self, index: &Index) -> Result<()> {
        for (name, file) in &index.files {
            if !self.tensors.contains_key(name) {
                let reason = format!("the index places it in '{file}', which does not hold it");
                return Err(Error::tensor(&index.path, name, reason));
            }
        }
        match self.tensors.values().find(|tensor| !index.files.contains_key(&tensor.name)) {
            None => Ok(()),
            Some(tensor) => {
                Err(Error::tensor(self.file_of(tensor), &tensor.name, "is not in the index"))
            }
        }
    }

    /// The folder or file that was opened; in memory, the checkpoint's name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether no file holds it.
    #[must_use]
    pub fn in_memory(&self) -> bool {
        self.files.is_empty()
    }

    /// The files that hold the weights; none in memory.
    #[must_use]
    pub fn shard_paths(&self) -> Vec<&Path> {
        self.files.iter().map(PathBuf::as_path).collect()
    }

    /// Names of tensors in memory that share another's bytes, and that other's name.
    #[must_use]
    pub fn tied(&self) -> &BTreeMap<String, String> {
        &self.tied
    }

    /// What the caller should be told about which files were read: one sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What a sound file can hold and a trained model does not, one sentence each: tensors of no
    /// entries, or zeros throughout.
    ///
    /// Data is read until an entry is found that is not zero: one page of a sound model.
    #[must_use]
    pub fn suspicions(&self) -> Vec<String> {
        suspicion::of(self)
    }

    /// Whether it holds floats, and all of them are zero: no model, and nothing to merge.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        suspicion::is_zero_throughout(self)
    }

    /// The file that holds a tensor; in memory, the checkpoint's name.
    fn file_of(&self, tensor: &TensorInfo) -> &Path {
        self.files.get(tensor.shard).unwrap_or(&self.path)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Arc<TensorInfo>> {
        self.tensors.values()
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<TensorInfo>> {
        self.tensors.get(name)
    }

    /// A tensor's data, as it lies in the file or in memory.
    ///
    /// # Panics
    /// If the tensor is not one of this checkpoint's.
    #[must_use]
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &(*self.storages[tensor.shard]).as_ref()[tensor.start..tensor.end]
    }

    /// A short digest of the weights: names, dtypes, shapes and sampled bytes.
    ///
    /// How tensors are spread over files does not matter. Training changes nearly every entry, so
    /// samples tell models apart; a change to entries that are not sampled goes unseen.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint::of(self)
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { path, files, tensors, .. } = self;
        let mut debug = formatter.debug_struct("Checkpoint");
        debug.field("path", path).field("files", files).field("tensors", tensors);
        debug.finish_non_exhaustive()
    }
}

/// The sentence about tensors that more than one file holds.
fn told_twice(index: &Path, mut names: Vec<String>) -> Option<String> {
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| {
        format!(
            "{}: more than one file holds {}; read is what the index names",
            index.display(),
            enumerate(names.iter().map(String::as_str))
        )
    })
}
