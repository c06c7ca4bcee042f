//! The choice of a model's weight files in a folder: those that transformers' `from_pretrained`
//! loads. Nothing else in this program makes that choice.
//!
//! In this order: the file that `config.json` names as `transformers_weights`; `model.safetensors`;
//! the shards of `model.safetensors.index.json`. A folder with none of them is accepted if it holds
//! exactly one safetensors file. A note names the weight files that are passed over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::foreign::{self, enumerate};
use super::index::{self, INDEX_FILE, Index, is_bare};
use super::mapping;
use crate::error::{Error, Hint, Result};

/// File name of the weights of a model that is not sharded.
pub(super) const SINGLE_FILE: &str = "model.safetensors";

/// File name of the pickled weights of a model that is not sharded.
const PICKLE_FILE: &str = "pytorch_model.bin";

/// File name of the index of pickled shards.
const PICKLE_INDEX: &str = "pytorch_model.bin.index.json";

/// File name of a model's config.
pub(super) const CONFIG_FILE: &str = "config.json";

/// The largest config, in bytes.
pub(super) const LARGEST_CONFIG: u64 = 4_000_000;

/// The suffix of every index's file name.
const INDEX_END: &str = ".safetensors.index.json";

/// The files of a model.
pub(super) struct Selection {
    /// Its weight files.
    pub files: Vec<PathBuf>,
    /// The index that names them, where the model is sharded.
    pub index: Option<Index>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// The files of the model in `folder`.
///
/// # Errors
/// [`Error::File`] for a folder that holds no model, or more than one; [`Error::Io`].
pub(super) fn select(folder: &Path) -> Result<Selection> {
    let names = names(folder)?;
    let (entry, by_config) = entry(folder, &names)?;
    let path = folder.join(&entry);
    let (mut read, index) = if entry.ends_with(INDEX_END) {
        let index = index::read(&path)?;
        (index.files.values().cloned().collect(), Some(index))
    } else {
        (BTreeSet::from([entry.clone()]), None)
    };
    let files = read.iter().map(|name| folder.join(name)).collect();
    read.insert(entry.clone());
    let over = names.iter().map(String::as_str);
    let over = over.filter(|name| foreign::holds_weights(name) && !read.contains(*name));
    let over: Vec<&str> = over.collect();
    let notes = passed_over(folder, &entry, by_config, &over).into_iter().collect();
    Ok(Selection { files, index, notes })
}

/// The files, among those called `names`, that hold the weights of the model in `folder`: the index
/// first, where there is one. The folder may lack weights that are named, as before a download, but
/// must hold the config and the index.
///
/// # Errors
/// As for [`Checkpoint::open`](super::Checkpoint::open).
pub fn weight_files(folder: &Path, names: &BTreeSet<String>) -> Result<Vec<String>> {
    let (entry, _) = entry(folder, names)?;
    if !entry.ends_with(INDEX_END) {
        return Ok(vec![entry]);
    }
    let shards: BTreeSet<String> = index::read(&folder.join(&entry))?.files.into_values().collect();
    Ok([entry].into_iter().chain(shards).collect())
}

/// The files, among those called `names`, that hold the weights of the model in `folder` as pickles:
/// the index first, where there is one. None where there are safetensors files, which are read
/// instead.
///
/// # Errors
/// [`Error::File`] or [`Error::Tensor`] for a malformed index, [`Error::Io`].
pub fn pickle_files(folder: &Path, names: &BTreeSet<String>) -> Result<Vec<String>> {
    if names.iter().any(|name| name.ends_with(".safetensors") || name.ends_with(INDEX_END)) {
        return Ok(Vec::new());
    }
    if names.contains(PICKLE_FILE) {
        return Ok(vec![PICKLE_FILE.to_owned()]);
    }
    if !names.contains(PICKLE_INDEX) {
        return Ok(Vec::new());
    }
    let shards = index::read(&folder.join(PICKLE_INDEX))?.files.into_values();
    let shards: BTreeSet<String> = shards.collect();
    Ok([PICKLE_INDEX.to_owned()].into_iter().chain(shards).collect())
}

/// The file that says where the weights are: the only weight file, or the index; and whether the
/// config names it.
fn entry(folder: &Path, names: &BTreeSet<String>) -> Result<(String, bool)> {
    if let Some(chosen) = chosen_by_config(folder, names)? {
        return Ok((chosen, true));
    }
    let known = [SINGLE_FILE, INDEX_FILE].into_iter().find(|name| names.contains(*name));
    match known {
        Some(known) => Ok((known.to_owned(), false)),
        None => Ok((only_safetensors(folder, names)?, false)),
    }
}

/// The names of a folder's entries.
///
/// Not by `std::fs::read_dir`, which panics where the system cannot close a folder.
#[cfg(unix)]
pub(super) fn names(folder: &Path) -> Result<BTreeSet<String>> {
    use rustix::fs::{Dir, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = rustix::fs::open(folder, flags, Mode::empty()).and_then(Dir::new);
    let failed = |error: rustix::io::Errno| Error::io(folder)(error.into());
    let name = |entry: rustix::io::Result<rustix::fs::DirEntry>| {
        Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())
    };
    let names = entries.map_err(failed)?.map(name);
    let real = |name: &Result<String>| !matches!(name.as_deref(), Ok("." | ".."));
    names.filter(real).collect()
}

/// The names of a folder's entries.
#[cfg(not(unix))]
pub(super) fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        Ok(entry.map_err(Error::io(folder))?.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

/// The file that a config names as its weights.
fn chosen_by_config(folder: &Path, names: &BTreeSet<String>) -> Result<Option<String>> {
    const KEY: &str = "transformers_weights";
    let path = folder.join(CONFIG_FILE);
    if !names.contains(CONFIG_FILE) {
        return Ok(None);
    }
    let text = mapping::read(&path, LARGEST_CONFIG)?;
    // Python writes numbers into JSON (NaN, Infinity) that serde refuses: the config is parsed only
    // if it can hold the key.
    if !text.windows(KEY.len()).any(|window| window == KEY.as_bytes()) {
        return Ok(None);
    }
    let config: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| Error::file(&path, format!("cannot be read as JSON: {error}")))?;
    match &config[KEY] {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(name)
            if is_bare(name) && (name.ends_with(".safetensors") || name.ends_with(INDEX_END)) =>
        {
            Ok(Some(name.clone()))
        }
        other => Err(Error::file(
            path,
            format!("{KEY} is {other}, which is not the name of a safetensors file in this folder"),
        )),
    }
}

/// The note on weight files that are not read.
fn passed_over(folder: &Path, entry: &str, by_config: bool, over: &[&str]) -> Option<String> {
    if over.is_empty() {
        return None;
    }
    let why = match entry {
        _ if by_config => "which config.json names",
        SINGLE_FILE | INDEX_FILE => "as transformers does",
        _ => "its only safetensors file",
    };
    Some(format!(
        "{}: is read from {entry}, {why}; passed over: {}",
        folder.display(),
        enumerate(over.iter().copied())
    ))
}

/// The only safetensors file of a folder without `model.safetensors` and without its index.
fn only_safetensors(folder: &Path, names: &BTreeSet<String>) -> Result<String> {
    let refuse = |reason: String| Err(Error::file(folder, reason));
    let ending = |end: &str| -> Vec<&str> {
        names.iter().map(String::as_str).filter(|name| name.ends_with(end)).collect()
    };
    let found = ending(".safetensors");
    if names.contains(foreign::ADAPTER_CONFIG) || found.iter().any(|name| foreign::is_adapter(name))
    {
        return refuse(foreign::adapter(&folder.join(foreign::ADAPTER_CONFIG)));
    }
    match found.as_slice() {
        [only] if only.starts_with("consolidated") => {
            return refuse(format!(
                "holds weights only as {only}, in the layout of its authors' own code, which \
                 transformers does not load; convert it with their script for transformers, or name \
                 the file itself to merge it as it is"
            ));
        }
        [only] => return Ok((*only).to_owned()),
        [] => {}
        several => {
            return refuse(format!(
                "holds several safetensors files ({}) and neither {SINGLE_FILE} nor {INDEX_FILE} \
                 to say which are the model; name one of them, or add the index",
                enumerate(several.iter().copied())
            ));
        }
    }
    let pickles = [".bin", ".pt", ".pth"].into_iter().flat_map(ending).collect::<Vec<_>>();
    let gguf = ending(".gguf");
    if !pickles.is_empty() {
        let names = enumerate(pickles);
        let error = refuse(format!("holds weights only as {names}: {}", foreign::PICKLE));
        return error.map_err(|error| error.with_hint(Hint::Unpickle));
    }
    if !gguf.is_empty() {
        return refuse(format!("holds weights only as {}: {}", enumerate(gguf), foreign::GGUF));
    }
    refuse("holds no safetensors file".into())
}
