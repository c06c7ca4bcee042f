//! Which files of an output folder are ours: what an earlier output listed, and nothing else.
//!
//! Every output has a list of its files, itself included. While one replaces another, the list names
//! the files of both: a merge that is killed leaves nothing that the next one takes for a stranger's.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::OUTPUT_FILE;
use crate::checkpoint::index::{INDEX_FILE, is_bare};
use crate::checkpoint::mapping;
use crate::checkpoint::select::{SINGLE_FILE, names};
use crate::error::{Error, Result};

#[derive(Serialize, Deserialize)]
struct Listing {
    sensmerge: String,
    files: BTreeSet<String>,
    /// What the caller was told.
    #[serde(default)]
    notes: Vec<String>,
}

/// The list of `files`, and what the caller is told, as text.
pub(super) fn listing(files: &BTreeSet<String>, notes: &[String]) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let listing = Listing { sensmerge: version, files: files.clone(), notes: notes.to_vec() };
    format!("{:#}\n", serde_json::json!(listing)).into_bytes()
}

/// The files of a folder that earlier outputs listed.
///
/// # Errors
/// [`Error::File`] for a list that is malformed, or that names anything but files of the folder.
pub(super) fn listed(folder: &Path) -> Result<BTreeSet<String>> {
    if !names(folder)?.contains(OUTPUT_FILE) {
        return Ok(BTreeSet::new());
    }
    let path = folder.join(OUTPUT_FILE);
    let refuse = |reason: String| {
        let advice = "delete it and the files of the older output, or name another folder";
        Error::file(&path, format!("is no list of an output's files: {reason}; {advice}"))
    };
    let text = mapping::read(&path)?;
    let listing: Listing =
        serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
    match listing.files.iter().find(|name| !is_bare(name)) {
        Some(name) => Err(refuse(format!("it names '{name}', which is no file name"))),
        None => Ok(listing.files),
    }
}

/// Weights in a folder that are not ours, and that a reader would take for the model or mix with it.
pub(super) fn strangers(folder: &Path) -> Result<Vec<String>> {
    let ours = listed(folder)?;
    let there = names(folder)?;
    Ok(there.into_iter().filter(|name| is_model(name) && !ours.contains(name)).collect())
}

/// Whether transformers reads a file of this name as a model.
fn is_model(name: &str) -> bool {
    let shard = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    name == SINGLE_FILE || name == INDEX_FILE || shard.is_some_and(|rest| rest.contains("-of-"))
}
