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
use crate::error::{Error, Result};

/// File name of the weights of a model that is not sharded.
pub(super) const SINGLE_FILE: &str = "model.safetensors";

/// File name of a model's config.
pub(super) const CONFIG_FILE: &str = "config.json";

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
    let chosen = chosen_by_config(folder, &names)?;
    let by_config = chosen.is_some();
    let entry = match chosen {
        Some(chosen) => chosen,
        None if names.contains(SINGLE_FILE) => SINGLE_FILE.to_owned(),
        None if names.contains(INDEX_FILE) => INDEX_FILE.to_owned(),
        None => only_safetensors(folder, &names)?,
    };
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

/// The names of a folder's entries.
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
    let text = mapping::read(&path)?;
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
        return refuse(format!("holds weights only as {names}: {}", foreign::PICKLE));
    }
    if !gguf.is_empty() {
        return refuse(format!("holds weights only as {}: {}", enumerate(gguf), foreign::GGUF));
    }
    refuse("holds no safetensors file".into())
}
