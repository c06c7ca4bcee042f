//! The files of an output folder that earlier merges wrote: those that an output's list names, and no
//! others.
//!
//! Every output has a list of its files, the list itself included. While one output replaces another,
//! the list names the files of both, so that after a killed merge the next one still recognises them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Described, Input, OUTPUT_FILE};
use crate::checkpoint::index::{INDEX_FILE, is_bare};
use crate::checkpoint::mapping;
use crate::checkpoint::origin::Origin;
use crate::checkpoint::select::{SINGLE_FILE, names};
use crate::error::{Error, Result};

/// The largest list, in bytes.
const LARGEST: u64 = 4_000_000;

#[derive(Serialize, Deserialize)]
struct Listing {
    sensmerge: String,
    files: BTreeSet<String>,
    /// A digest of all that decides the weights' bytes: plan, inputs' files and layout.
    #[serde(default)]
    job: Option<String>,
    /// Hashes of the files, but for the list itself.
    #[serde(default)]
    sha256: BTreeMap<String, String>,
    /// The files that were merged.
    #[serde(default)]
    inputs: Vec<Input>,
    /// The inputs that came from the Hub.
    #[serde(default)]
    origins: Vec<Origin>,
    /// Notes for the user.
    #[serde(default)]
    notes: Vec<String>,
}

/// The text of a list of `files`, with the hashes that are known.
pub(super) fn listing(
    files: &BTreeSet<String>,
    sha256: BTreeMap<String, String>,
    job: Option<&str>,
    described: &Described,
) -> Vec<u8> {
    let listing = Listing {
        sensmerge: env!("CARGO_PKG_VERSION").to_owned(),
        files: files.clone(),
        job: job.map(str::to_owned),
        sha256,
        inputs: described.inputs.clone(),
        origins: described.origins.clone(),
        notes: described.notes.clone(),
    };
    format!("{:#}\n", serde_json::json!(listing)).into_bytes()
}

/// The files of a folder that earlier outputs listed.
///
/// # Errors
/// [`Error::File`] for a list that is malformed or holds a name that is not a bare file name;
/// [`Error::Io`].
pub(super) fn listed(folder: &Path) -> Result<BTreeSet<String>> {
    Ok(read(folder)?.map(|listing| listing.files).unwrap_or_default())
}

/// The digest of the job that wrote a complete output.
///
/// # Errors
/// As for [`listed`].
pub(super) fn job(folder: &Path) -> Result<Option<String>> {
    Ok(read(folder)?.and_then(|listing| listing.job))
}

/// The list of a folder, if it has one.
fn read(folder: &Path) -> Result<Option<Listing>> {
    if !names(folder)?.contains(OUTPUT_FILE) {
        return Ok(None);
    }
    let path = folder.join(OUTPUT_FILE);
    let refuse = |reason: String| {
        let advice = "delete it and the files of the older output, or name another folder";
        Error::file(&path, format!("is not a list of an output's files: {reason}; {advice}"))
    };
    let text = mapping::read(&path, LARGEST)?;
    let listing: Listing =
        serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
    match listing.files.iter().find(|name| !is_bare(name)) {
        Some(name) => Err(refuse(format!("it names '{name}', which is not a file name"))),
        None => Ok(Some(listing)),
    }
}

/// Weight files that no earlier output listed and that transformers would read as the model or as
/// part of it.
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
