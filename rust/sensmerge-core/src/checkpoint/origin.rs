//! The place on the Hub that a model was downloaded from, as the Hub's cache tells it by its folders'
//! names: `models--org--name/snapshots/<commit>`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A state of a repository on the Hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The repository, such as `org/name`.
    pub repository: String,
    /// The commit.
    pub commit: String,
}

/// The origin of a model's folder or of a file in it; `None` for one that is not in a Hub cache.
pub(super) fn origin(path: &Path) -> Option<Origin> {
    of_snapshot(path).or_else(|| of_snapshot(path.parent()?))
}

/// Where the files lie to which those of a folder in a Hub cache are links; `None` for a folder
/// elsewhere.
pub(super) fn blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let repository = snapshots.parent()?;
    let name = repository.file_name()?.to_str()?;
    name.starts_with("models--").then(|| repository.join("blobs"))
}

fn of_snapshot(folder: &Path) -> Option<Origin> {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str().map(str::to_owned));
    let snapshots = folder.parent()?;
    let repository = name(snapshots.parent()?)?;
    let repository = repository.strip_prefix("models--")?.replace("--", "/");
    let commit = name(folder)?;
    let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    let found = name(snapshots)? == "snapshots" && is_commit;
    found.then_some(Origin { repository, commit })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn of_folders_and_files_of_a_cache() {
        let folder = Path::new("/cache/models--org--a-b.c/snapshots").join(COMMIT);
        let expected = Origin { repository: "org/a-b.c".into(), commit: COMMIT.into() };
        assert_eq!(origin(&folder), Some(expected.clone()));
        assert_eq!(origin(&folder.join("model.safetensors")), Some(expected));
    }

    #[test]
    fn of_nothing_else() {
        for path in ["models/base", "/", "", "models--org--a/snapshots/main", "a/snapshots/b"] {
            assert_eq!(origin(Path::new(path)), None, "{path}");
        }
        let other = Path::new("/cache/datasets--org--a/snapshots").join(COMMIT);
        assert_eq!(origin(&other), None);
    }
}
