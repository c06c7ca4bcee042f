//! Checkpoints: folders of safetensors files, which are mapped rather than copied and written as a
//! transaction, and tensors in memory. Input is not trusted: a file name that a file gives must be
//! bare and no link may lead out, so that it stays in the model's folder; sizes and counts are bounded
//! before they are used; and nothing is unpickled.

mod fingerprint;
mod foreign;
mod header;
mod identity;
mod index;
pub mod layout;
mod mapping;
mod memory;
mod origin;
pub mod output;
mod quantised;
mod select;
mod stamp;
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
pub use origin::Origin;
pub use quantised::{Encoding, Format, Packed, Quantised, Scheme, Tile};
pub use select::{pickle_files, weight_files};

/// A tensor as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The dtype it is stored in.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Index of the file or the piece of memory that holds it, among the checkpoint's.
    pub shard: usize,
    /// Offset of its first byte in the file or memory.
    pub start: usize,
    /// Offset after its last byte.
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

/// Bytes at a fixed address: a mapped file, or memory that the boxed value keeps alive.
pub type Bytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// Why a folder with a marker is refused.
const UNFINISHED: &str =
    "holds an unfinished merge, and is no model yet: repeat the command that began it";

/// The bytes of a shard.
enum Storage {
    /// A file, and its state when it was opened.
    File(mapping::Mapped, stamp::Stamp),
    Memory(Bytes),
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::File(map, _) => map.as_ref(),
            Self::Memory(bytes) => (**bytes).as_ref(),
        }
    }
}

/// A checkpoint, opened: its headers are checked, and its data is mapped or in memory.
#[derive(Default)]
pub struct Checkpoint {
    path: PathBuf,
    /// The file of every shard; empty for a checkpoint in memory.
    files: Vec<PathBuf>,
    /// The bytes of every shard.
    storages: Vec<Storage>,
    tensors: BTreeMap<String, Arc<TensorInfo>>,
    quantised: Option<Quantised>,
    /// How quantised tensors are stored, by their names.
    packed: BTreeMap<String, Packed>,
    /// Stored tensors that are not shown as such: the parts of quantised ones.
    parts: BTreeMap<String, Arc<TensorInfo>>,
    tied: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Open a model's folder, or one safetensors file.
    ///
    /// The files read are those that transformers' `from_pretrained` would load from the folder;
    /// [`Checkpoint::notes`] names the weight files that are passed over.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that is missing or cannot be read; [`Error::File`] or
    /// [`Error::Tensor`] for one that is truncated or malformed, or of another format.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(Error::io(path))?;
        if kind.is_dir() {
            if select::names(path)?.contains(output::MARKER) {
                return Err(Error::file(path, UNFINISHED));
            }
            let select::Selection { files, index, notes } = select::select(path)?;
            let checkpoint = Self::from_files(path, files, index.as_ref(), notes)?;
            return checkpoint.shown(path);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if foreign::is_adapter(&name) {
            let config = path.with_file_name(foreign::ADAPTER_CONFIG);
            return Err(Error::file(path, foreign::adapter(&config)));
        }
        Self::from_files(path, vec![path.to_path_buf()], None, Vec::new())
    }

    /// Open the weights of an adapter, a single file, which [`open`](Self::open) refuses: they are no
    /// model.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_adapter(path: &Path) -> Result<Self> {
        std::fs::metadata(path).map_err(Error::io(path))?;
        Self::from_files(path, vec![path.to_path_buf()], None, Vec::new())
    }

    /// Open what [`open`](Self::open) or [`open_adapter`](Self::open_adapter) opened before.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_again(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if foreign::is_adapter(&name) { Self::open_adapter(path) } else { Self::open(path) }
    }

    fn from_files(
        path: &Path,
        files: Vec<PathBuf>,
        index: Option<&Index>,
        notes: Vec<String>,
    ) -> Result<Self> {
        let mut storages = Vec::with_capacity(files.len());
        let mut tensors = BTreeMap::new();
        let mut twice = Vec::new();
        for (shard, file) in files.iter().enumerate() {
            let mapped = if file == path { mapping::map_named(file) } else { mapping::map(file) };
            let (map, stamp) = mapped?;
            for tensor in header::read(file, map.as_ref(), shard)? {
                if index.is_some_and(|index| index.places_elsewhere(&tensor.name, file)) {
                    twice.push(tensor.name);
                    continue;
                }
                if let Some(twin) = tensors.insert(tensor.name.clone(), Arc::new(tensor)) {
                    return Err(Error::tensor(file, &twin.name, "is in two files"));
                }
            }
            if tensors.len() > index::MOST_TENSORS {
                let reason = format!("the files hold more than {} tensors", index::MOST_TENSORS);
                return Err(Error::file(file, reason));
            }
            storages.push(Storage::File(map, stamp));
        }
        let path = path.to_path_buf();
        let mut checkpoint = Self { path, files, storages, tensors, notes, ..Self::default() };
        if let Some(index) = index {
            checkpoint.check_index(index)?;
            checkpoint.notes.extend(told_twice(&index.path, twice));
        }
        Ok(checkpoint)
    }

    /// The same with its quantised tensors shown as what they stand for, as the folder's config says.
    fn shown(self, folder: &Path) -> Result<Self> {
        if !select::names(folder)?.contains(select::CONFIG_FILE) {
            return Ok(self);
        }
        match quantised::show(&self, &folder.join(select::CONFIG_FILE))? {
            None => Ok(self),
            Some(quantised::Shown { quantised, tensors, packed, parts }) => {
                Ok(Self { tensors, quantised, packed, parts, ..self })
            }
        }
    }

    /// A checkpoint of tensors in memory, which are not copied. Messages call it `name`.
    ///
    /// Views of the same memory count as one tensor, under the first of their names, as in the files
    /// that transformers saves; [`Checkpoint::tied`] has the other names.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that is given twice, or whose number of bytes does not fit its
    /// dtype and shape.
    pub fn from_memory(name: impl AsRef<Path>, tensors: Vec<MemoryTensor>) -> Result<Self> {
        memory::checkpoint(name.as_ref(), tensors)
    }

    /// Refuse an index that does not list exactly the tensors of its shards.
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

    /// The folder or file that was opened; the name of a checkpoint in memory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The place on the Hub that it was downloaded from; `None` if it does not lie in a Hub cache.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        origin::origin(&self.path)
    }

    /// Whether the tensors lie in memory rather than in files.
    #[must_use]
    pub fn in_memory(&self) -> bool {
        self.files.is_empty()
    }

    /// The files that hold the weights; empty for a checkpoint in memory.
    #[must_use]
    pub fn shard_paths(&self) -> Vec<&Path> {
        self.files.iter().map(PathBuf::as_path).collect()
    }

    /// Tensors in memory that are views of another tensor's memory: their names, each with the other
    /// tensor's name.
    #[must_use]
    pub fn tied(&self) -> &BTreeMap<String, String> {
        &self.tied
    }

    /// Notes for the user on the choice of files, one sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Signs that the model was badly saved, one sentence each: empty tensors, or zeros throughout.
    ///
    /// Data is read until an entry is found that is not zero, which is usually in the first page.
    #[must_use]
    pub fn suspicions(&self) -> Vec<String> {
        suspicion::of(self)
    }

    /// Whether the checkpoint holds floats and all of them are zero, so that merging it is pointless.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        suspicion::is_zero_throughout(self)
    }

    /// The file that holds a tensor; the name of a checkpoint in memory.
    fn file_of(&self, tensor: &TensorInfo) -> &Path {
        self.files.get(tensor.shard).unwrap_or(&self.path)
    }

    /// The quantisation that the config names, if tensors are quantised.
    #[must_use]
    pub fn quantised(&self) -> Option<&Quantised> {
        self.quantised.as_ref()
    }

    /// How the quantised tensor of this name is stored; `None` if it is not quantised.
    #[must_use]
    pub fn packed(&self, name: &str) -> Option<&Packed> {
        self.packed.get(name)
    }

    /// Every tensor as it is stored, by name, the parts of quantised ones included.
    #[must_use]
    pub fn stored(&self) -> BTreeMap<&str, &Arc<TensorInfo>> {
        let whole = self.tensors.iter().filter(|(name, _)| !self.packed.contains_key(*name));
        whole.chain(&self.parts).map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }

    /// The stored tensor of this name; `None` for one that is put together from others.
    #[must_use]
    pub fn get_stored(&self, name: &str) -> Option<&Arc<TensorInfo>> {
        self.parts
            .get(name)
            .or_else(|| self.tensors.get(name).filter(|_| !self.packed.contains_key(name)))
    }

    /// All tensors, by name. Quantised ones have the name, dtype and shape of what they stand for.
    pub fn tensors(&self) -> impl Iterator<Item = &Arc<TensorInfo>> {
        self.tensors.values()
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<TensorInfo>> {
        self.tensors.get(name)
    }

    /// A tensor's data as stored: row-major, little-endian, at any alignment. Those of a quantised one
    /// are its codes.
    ///
    /// # Panics
    /// If the tensor is of another checkpoint and its range lies outside this one's data.
    #[must_use]
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.storages[tensor.shard].bytes()[tensor.start..tensor.end]
    }

    /// Refuse the checkpoint if one of its files is no longer what it was when it was opened.
    ///
    /// # Errors
    /// [`Error::File`] for a file that was written to, truncated, replaced or removed, [`Error::Io`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().zip(&self.storages).try_for_each(|(path, storage)| match storage {
            Storage::File(map, stamp) => stamp::check(path, stamp, map),
            Storage::Memory(_) => Ok(()),
        })
    }

    /// The state of every file when it was opened, as text; empty for a checkpoint in memory.
    #[must_use]
    pub fn stamps(&self) -> Vec<String> {
        let stamp = |storage: &Storage| match storage {
            Storage::File(_, stamp) => Some(stamp.text()),
            Storage::Memory(_) => None,
        };
        self.storages.iter().filter_map(stamp).collect()
    }

    /// A short digest of the weights: names, dtypes, shapes and sampled bytes.
    ///
    /// The distribution of tensors over files does not matter. Training changes nearly every entry,
    /// so that samples tell models apart; a change to entries that are not sampled goes unseen.
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

/// The note on tensors that more than one file holds.
fn told_twice(index: &Path, mut names: Vec<String>) -> Option<String> {
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| {
        format!(
            "{}: more than one file holds {}; each is read from the file that the index names",
            index.display(),
            enumerate(names.iter().map(String::as_str))
        )
    })
}
