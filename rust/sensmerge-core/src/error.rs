//! The crate's error type. Every variant but [`Error::Interrupted`] names the file, tensor or key it
//! is about.

use std::path::{Path, PathBuf};

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The cause of an error; front ends map it to exit codes and exception types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller's files or settings cannot be used as they are.
    Input,
    /// The operating system refused or failed.
    Io,
    /// The caller asked to stop.
    Interrupted,
    /// Other processes have to do their part first; the same call may succeed later.
    Waiting,
}

/// An option that would have avoided an error. Front ends show it under their own name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// [`Options::overwrite`](crate::engine::Options::overwrite).
    Overwrite,
    /// [`Options::allow_nan`](crate::engine::Options::allow_nan).
    AllowNan,
    /// Reading pickles in a process of their own. The front end does that: this crate reads none.
    Unpickle,
}

/// Everything that can go wrong between a recipe and a written model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// A file or folder cannot be used: truncated, malformed, of another format, not a regular file.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do about it.
        reason: String,
        /// The option that would have avoided the error.
        hint: Option<Hint>,
    },

    /// A tensor of a checkpoint cannot be used, or a merged tensor cannot be written.
    #[error("{}: tensor '{tensor}': {reason}", path.display())]
    Tensor {
        /// The checkpoint's file or folder, or the output.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong and what to do about it.
        reason: String,
        /// The option that would have avoided the error.
        hint: Option<Hint>,
    },

    /// A setting of the recipe or an argument of the caller cannot be used.
    #[error("{key}: {reason}")]
    Setting {
        /// The recipe's key, such as `models[1].parameters.density`, or the name of the argument or
        /// of the output tensor.
        key: String,
        /// What is wrong and what would be right.
        reason: String,
    },

    /// The function of a method from outside this crate failed, or returned what cannot be used.
    #[error("method '{method}': tensor '{tensor}': {reason}")]
    Method {
        /// The method's name.
        method: String,
        /// The tensor that it merged.
        tensor: String,
        /// What went wrong.
        reason: String,
        /// The function's own error.
        #[source]
        cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    },

    /// The output folder cannot be written to as asked.
    #[error("{}: {reason}", path.display())]
    Output {
        /// The output folder.
        path: PathBuf,
        /// What is wrong and what to do about it.
        reason: String,
        /// The option that would have avoided the error.
        hint: Option<Hint>,
    },

    /// Other processes that write the same output have not done their part yet.
    #[error("{}: {reason}", path.display())]
    Waiting {
        /// The output folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },

    /// The caller cancelled the merge. No output folder is left behind; outputs in the caller's memory
    /// may be partly merged.
    #[error("interrupted")]
    Interrupted,
}

/// Whether nothing of this name exists, or can: it is too long.
fn is_no_such(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename)
}

impl Error {
    /// The cause of the error.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } if is_no_such(source) => Kind::Input,
            Self::Io { .. } => Kind::Io,
            Self::Interrupted => Kind::Interrupted,
            Self::Waiting { .. } => Kind::Waiting,
            Self::File { .. }
            | Self::Tensor { .. }
            | Self::Setting { .. }
            | Self::Method { .. }
            | Self::Output { .. } => Kind::Input,
        }
    }

    /// The option that would have avoided the error, where there is one.
    #[must_use]
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::File { hint, .. } | Self::Tensor { hint, .. } | Self::Output { hint, .. } => {
                *hint
            }
            _ => None,
        }
    }

    /// Add the option that would have avoided the error, to an error of a file, a tensor or an output
    /// folder.
    pub(crate) fn with_hint(mut self, option: Hint) -> Self {
        if let Self::File { hint, .. } | Self::Tensor { hint, .. } | Self::Output { hint, .. } =
            &mut self
        {
            *hint = Some(option);
        }
        self
    }

    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), reason: reason.into(), hint: None }
    }

    pub(crate) fn tensor(
        path: impl AsRef<Path>,
        tensor: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Tensor {
            path: path.as_ref().to_path_buf(),
            tensor: tensor.into(),
            reason: reason.into(),
            hint: None,
        }
    }

    pub(crate) fn setting(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Setting { key: key.into(), reason: reason.into() }
    }

    pub(crate) fn output(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Output { path: path.as_ref().to_path_buf(), reason: reason.into(), hint: None }
    }
}
