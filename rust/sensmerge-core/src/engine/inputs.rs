//! The models of a manifest, opened.

use std::path::PathBuf;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::manifest::{File, Manifest, Model, Stored};

/// The checkpoints that a manifest's tensors are read from. They may serve other merges too.
#[derive(Clone, Debug)]
pub struct Inputs {
    pub(super) checkpoints: Vec<Arc<Checkpoint>>,
}

impl Inputs {
    /// Open every file that a manifest names.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is not the one that the manifest was made from,
    /// [`Error::Setting`] for a model that lay in memory, and what opening a file refuses.
    pub fn open(manifest: &Manifest) -> Result<Self> {
        let opened = manifest.models.iter().map(|model| open(model).map(Arc::new));
        Ok(Self { checkpoints: opened.collect::<Result<_>>()? })
    }

    /// Checkpoints that are open already, or lie in memory: those that the manifest was built from,
    /// the base first.
    ///
    /// # Errors
    /// [`Error::Setting`] for other than as many checkpoints as the manifest names.
    pub fn of(manifest: &Manifest, checkpoints: Vec<Arc<Checkpoint>>) -> Result<Self> {
        let (given, named) = (checkpoints.len(), manifest.models.len());
        if given != named {
            let reason = format!("{given} checkpoints are given for the {named} of the manifest");
            return Err(Error::setting("models", reason));
        }
        Ok(Self { checkpoints })
    }

    /// The checkpoint of a stored tensor.
    ///
    /// # Errors
    /// [`Error::Setting`] for a model that there is not.
    pub(super) fn checkpoint(&self, stored: &Stored) -> Result<&Checkpoint> {
        let found = self.checkpoints.get(stored.model);
        found.map(Arc::as_ref).ok_or_else(|| {
            let reason = format!("tensor '{}' is of a model that there is not", stored.name);
            Error::setting("manifest", reason)
        })
    }

    /// The data of a stored tensor.
    ///
    /// # Errors
    /// [`Error::Tensor`] where the checkpoint does not hold it as the manifest says.
    pub(super) fn bytes(&self, stored: &Stored) -> Result<&[u8]> {
        let checkpoint = self.checkpoint(stored)?;
        let found = checkpoint.get(&stored.name).filter(|found| {
            found.dtype == stored.dtype
                && found.shape == stored.shape
                && found.shard == stored.file
                && [found.start, found.end] == stored.bytes
        });
        match found {
            Some(found) => Ok(checkpoint.bytes(found)),
            None => Err(Error::tensor(
                checkpoint.path(),
                &stored.name,
                "is not as the manifest describes it; plan the merge anew",
            )),
        }
    }
}

fn open(model: &Model) -> Result<Checkpoint> {
    let changed = |path: &PathBuf| {
        Error::file(path, "is not the file that the manifest was made from; plan the merge anew")
    };
    if model.files.is_empty() {
        let reason = "lay in memory when the manifest was made, and cannot be opened again";
        return Err(Error::setting(model.path.display().to_string(), reason));
    }
    let files = model.files.iter().map(|file| file.path.clone()).collect();
    let checkpoint = Checkpoint::from_files(&model.path, files)?;
    for (file, (path, bytes, header)) in model.files.iter().zip(checkpoint.identities()) {
        if *file != (File { path, bytes, header }) {
            return Err(changed(&file.path));
        }
    }
    let same = |fingerprint: &String| *fingerprint == checkpoint.fingerprint();
    if model.fingerprint.as_ref().is_none_or(same) {
        Ok(checkpoint)
    } else {
        Err(changed(&model.path))
    }
}
