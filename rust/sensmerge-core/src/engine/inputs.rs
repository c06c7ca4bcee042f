//! The models of a manifest, opened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::manifest::{File, Manifest, Model, Stored};

/// The checkpoints that a manifest's tensors are read from. They can be shared with other merges.
#[derive(Clone, Debug)]
pub struct Inputs {
    pub(super) checkpoints: Vec<Arc<Checkpoint>>,
    computed: Arc<Mutex<BTreeMap<String, Computed>>>,
}

/// Numbers that are computed of whole tensors, once they are known.
type Computed = Arc<OnceLock<Vec<f64>>>;

impl Inputs {
    pub(super) fn new(checkpoints: Vec<Arc<Checkpoint>>) -> Self {
        Self { checkpoints, computed: Arc::default() }
    }

    /// The place for numbers that are computed once, by a key that says what they are computed of.
    pub(super) fn shared(&self, key: String) -> Computed {
        let mut computed = self.computed.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(computed.entry(key).or_default())
    }

    /// Open every file that a manifest names.
    ///
    /// # Errors
    /// [`Error::File`] for a file that has changed since the manifest was made, [`Error::Setting`] for
    /// a model that was in memory, and the errors of [`Checkpoint::open`].
    pub fn open(manifest: &Manifest) -> Result<Self> {
        let opened = manifest.models.iter().map(|model| open(model).map(Arc::new));
        Ok(Self::new(opened.collect::<Result<_>>()?))
    }

    /// Take checkpoints that are already open: those that the manifest was built from, in the order of
    /// [`Manifest::models`], with the base first.
    ///
    /// # Errors
    /// [`Error::Setting`] for another number of checkpoints than the manifest names.
    pub fn of(manifest: &Manifest, checkpoints: Vec<Arc<Checkpoint>>) -> Result<Self> {
        let (given, named) = (checkpoints.len(), manifest.models.len());
        if given != named {
            let reason = format!("{given} checkpoints are given for the {named} of the manifest");
            return Err(Error::setting("models", reason));
        }
        Ok(Self::new(checkpoints))
    }

    /// Refuse inputs whose files are no longer what they were when they were opened.
    ///
    /// # Errors
    /// Those of [`Checkpoint::check_unchanged`].
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.checkpoints.iter().try_for_each(|checkpoint| checkpoint.check_unchanged())
    }

    /// The checkpoint of a stored tensor.
    ///
    /// # Errors
    /// [`Error::Setting`] for the index of a model that does not exist.
    pub(super) fn checkpoint(&self, stored: &Stored) -> Result<&Checkpoint> {
        let found = self.checkpoints.get(stored.model);
        found.map(Arc::as_ref).ok_or_else(|| {
            let reason = format!("tensor '{}' is of a model that does not exist", stored.name);
            Error::setting("manifest", reason)
        })
    }

    /// The data of a stored tensor.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the checkpoint holds it with another dtype, shape or place, or not at all.
    pub(super) fn bytes(&self, stored: &Stored) -> Result<&[u8]> {
        let checkpoint = self.checkpoint(stored)?;
        let found = checkpoint.get_stored(&stored.name).filter(|found| {
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
                "differs from the manifest's description; plan the merge anew",
            )),
        }
    }
}

/// Open a model and compare its files, and its fingerprint where the manifest has one.
fn open(model: &Model) -> Result<Checkpoint> {
    if model.files.is_empty() {
        let reason = "was in memory when the manifest was made, and cannot be opened again";
        return Err(Error::setting(model.path.display().to_string(), reason));
    }
    let checkpoint = Checkpoint::open_again(&model.path)?;
    let found = checkpoint.identities().into_iter();
    let found: Vec<File> =
        found.map(|(path, bytes, header)| File { path, bytes, header }).collect();
    let changed = model.files.iter().find(|file| !found.contains(file)).map(|file| &file.path);
    let changed = changed.or_else(|| (found.len() != model.files.len()).then_some(&model.path));
    let changed = changed.or_else(|| {
        let same = |fingerprint: &String| *fingerprint == checkpoint.fingerprint();
        (!model.fingerprint.as_ref().is_none_or(same)).then_some(&model.path)
    });
    match changed {
        None => Ok(checkpoint),
        Some(path) => {
            let reason = "has changed since the manifest was made; plan the merge anew";
            Err(Error::file(path, reason))
        }
    }
}
