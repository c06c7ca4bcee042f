//! Checkpoints as folders of safetensors: read without copying, written without half-done
//! results. Untrusted input is data: nothing outside the model's folder is opened because a file
//! says so, and nothing is unpickled.

mod fingerprint;
mod header;
mod index;
pub mod layout;
mod mapping;
pub mod output;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
pub use index::INDEX_FILE;

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
    /// The file that holds it, among the checkpoint's.
    pub shard: usize,
    /// Where its bytes start in that file.
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

/// A checkpoint, opened: headers checked, data mapped.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, TensorInfo>,
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

    fn from_files(path: &Path, files: Vec<PathBuf>) -> Result<Self> {
        let mut shards = Vec::with_capacity(files.len());
        let mut tensors = BTreeMap::new();
        for (shard, file) in files.into_iter().enumerate() {
            let map = mapping::map(&file)?;
            for tensor in header::read(&file, &map, shard)? {
                if let Some(twin) = tensors.insert(tensor.name.clone(), tensor) {
                    return Err(Error::tensor(file, twin.name, "is in two files"));
                }
            }
            shards.push((file, map));
        }
        Ok(Self { path: path.to_path_buf(), shards, tensors })
    }

    /// The index and the shards tell the same story.
    fn check_index(&self, index: &Path, files: &BTreeMap<String, String>) -> Result<()> {
        for (name, file) in files {
            let held = self.tensors.get(name).map(|tensor| &self.shards[tensor.shard].0);
            if held.and_then(|held| held.file_name()) != Some(file.as_ref()) {
                let reason = format!("the index places it in '{file}', which does not hold it");
                return Err(Error::tensor(index, name, reason));
            }
        }
        match self.tensors.values().find(|tensor| !files.contains_key(&tensor.name)) {
            None => Ok(()),
            Some(tensor) => {
                let shard = &self.shards[tensor.shard].0;
                Err(Error::tensor(shard, &tensor.name, "is not in the index"))
            }
        }
    }

    /// The folder or file that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the weights.
    #[must_use]
    pub fn shard_paths(&self) -> Vec<&Path> {
        self.shards.iter().map(|(path, _)| path.as_path()).collect()
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// A tensor's data, as it lies in the file.
    ///
    /// # Panics
    /// If the tensor is not one of this checkpoint's.
    #[must_use]
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.shards[tensor.shard].1[tensor.start..tensor.end]
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
