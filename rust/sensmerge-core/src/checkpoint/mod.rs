//! Checkpoints as folders of safetensors: read without copying, written without half-done
//! results; and checkpoints of tensors in memory. Untrusted input is data: nothing outside the
//! model's folder is opened because a file says so, and nothing is unpickled.

mod fingerprint;
mod header;
mod identity;
mod index;
pub mod layout;
mod mapping;
mod memory;
pub mod output;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
pub use index::INDEX_FILE;
pub use memory::MemoryTensor;

/// The weights of a checkpoint that is one file.
const SINGLE_FILE: &str = "model.safetensors";

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
}

impl Checkpoint {
    /// Open a model's folder, or one safetensors file.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Tensor`] or [`Error::Io`] for what is missing, truncated,
    /// malformed or not what it claims to be.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(Error::io(path))?;
        if !kind.is_dir() {
            return Self::from_files(path, vec![path.to_path_buf()]);
        }
        let index = path.join(INDEX_FILE);
        let single = path.join(SINGLE_FILE);
        if index.exists() {
            let files = index::read(&index)?;
            let names: BTreeSet<&String> = files.values().collect();
            let paths = names.iter().map(|name| path.join(name)).collect();
            let checkpoint = Self::from_files(path, paths)?;
            checkpoint.check_index(&index, &files)?;
            return Ok(checkpoint);
        }
        if single.exists() {
            return Self::from_files(path, vec![single]);
        }
        Self::from_files(path, vec![only_safetensors(path)?])
    }

    /// Open just these files of a model at `path`.
    pub(crate) fn from_files(path: &Path, files: Vec<PathBuf>) -> Result<Self> {
        let mut storages = Vec::<Bytes>::with_capacity(files.len());
        let mut tensors = BTreeMap::new();
        for (shard, file) in files.iter().enumerate() {
            let map = mapping::map(file)?;
            for tensor in header::read(file, &map, shard)? {
                if let Some(twin) = tensors.insert(tensor.name.clone(), Arc::new(tensor)) {
                    return Err(Error::tensor(file, &twin.name, "is in two files"));
                }
            }
            storages.push(Box::new(map));
        }
        Ok(Self { path: path.to_path_buf(), files, storages, tensors, tied: BTreeMap::new() })
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
    fn check_index(&self, index: &Path, files: &BTreeMap<String, String>) -> Result<()> {
        for (name, file) in files {
            let held = self.tensors.get(name).map(|tensor| &self.files[tensor.shard]);
            if held.and_then(|held| held.file_name()) != Some(file.as_ref()) {
                let reason = format!("the index places it in '{file}', which does not hold it");
                return Err(Error::tensor(index, name, reason));
            }
        }
        match self.tensors.values().find(|tensor| !files.contains_key(&tensor.name)) {
            None => Ok(()),
            Some(tensor) => {
                let file = &self.files[tensor.shard];
                Err(Error::tensor(file, &tensor.name, "is not in the index"))
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

/// The one safetensors file of a folder that has neither an index nor the usual name.
fn only_safetensors(folder: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    let mut others = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
        match extension {
            "safetensors" => found.push(path),
            "bin" | "pt" | "pth" | "gguf" => drop(others.insert(extension.to_owned())),
            _ => {}
        }
    }
    if folder.join("adapter_config.json").exists() {
        return Err(Error::file(
            folder,
            "is a LoRA adapter; merge it into its base first (PEFT's merge_and_unload) and name \
             the result",
        ));
    }
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Error::file(
            folder,
            format!("holds several safetensors files and no {INDEX_FILE}; name one of them"),
        )),
        (None, _) if !others.is_empty() => Err(Error::file(
            folder,
            format!(
                "holds weights only as .{}; convert them to safetensors, since pickle can run \
                 code and is not read",
                others.into_iter().collect::<Vec<_>>().join(", .")
            ),
        )),
        (None, _) => Err(Error::file(folder, "holds no safetensors file")),
    }
}
