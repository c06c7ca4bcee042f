//! The marker's content: whose merge is unfinished, and which of its weight files are finished.
//!
//! One JSON object a line. The first line says whose the folder is; every other line is written once a
//! weight file is whole, hashed and, if asked for, flushed. A line that was cut by a crash counts as not
//! written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The first line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// The program's version.
    pub sensmerge: String,
    /// A digest of the plan, the inputs' files and the layout; `None` where inputs are in memory, so that
    /// nobody can go on.
    pub job: Option<String>,
    /// Whether the folder held other files when the merge began.
    pub replaces: bool,
}

/// A weight file that is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
    /// The notes of the merge until then.
    pub notes: Vec<String>,
}

/// What a marker says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// `None` for a marker that says nothing, such as that of an older version.
    pub owner: Option<Owner>,
    /// By file name.
    pub finished: BTreeMap<String, Finished>,
}

impl Record {
    /// Whether the marker is that of this job.
    pub(super) fn is_of(&self, job: Option<&str>) -> bool {
        job.is_some() && self.owner.as_ref().is_some_and(|owner| owner.job.as_deref() == job)
    }

    /// Whether the folder held nothing when the merge began that says so.
    pub(super) fn is_alone(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.job.is_some() && !owner.replaces)
    }
}

/// Read a marker. `path` is named in errors.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn read(mut marker: &File, path: &Path) -> Result<Record> {
    let mut text = Vec::new();
    marker
        .seek(SeekFrom::Start(0))
        .and_then(|_| marker.read_to_end(&mut text))
        .map_err(Error::io(path))?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let owner = lines.next().and_then(|line| serde_json::from_str(line).ok());
    let finished = lines.filter_map(|line| serde_json::from_str::<Finished>(line).ok());
    let finished = finished.map(|one| (one.file.clone(), one)).collect();
    Ok(Record { owner, finished })
}

/// Begin a marker anew.
///
/// # Errors
/// Those of writing.
pub(super) fn begin(mut marker: &File, record: &Record) -> std::io::Result<()> {
    let mut text = line(&record.owner);
    record.finished.values().for_each(|one| text.push_str(&line(one)));
    marker.set_len(0)?;
    marker.seek(SeekFrom::Start(0))?;
    marker.write_all(text.as_bytes())
}

/// Add a weight file that is whole.
///
/// # Errors
/// Those of writing.
pub(super) fn add(mut marker: &File, finished: &Finished) -> std::io::Result<()> {
    marker.seek(SeekFrom::End(0))?;
    marker.write_all(line(finished).as_bytes())
}

fn line(value: &impl Serialize) -> String {
    format!("{}\n", serde_json::json!(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_cut_counts_as_not_written() {
        let file = tempfile::tempfile().expect("a temporary file");
        let owner = Owner { sensmerge: "1".into(), job: Some("a".into()), replaces: false };
        let finished = |name: &str| Finished {
            file: name.into(),
            bytes: 3,
            sha256: "00".into(),
            notes: vec!["a note".into()],
        };
        let mut record = Record { owner: Some(owner), ..Record::default() };
        begin(&file, &record).expect("is written");
        for name in ["one", "two"] {
            add(&file, &finished(name)).expect("is written");
            record.finished.insert(name.into(), finished(name));
        }
        let path = Path::new("marker");
        assert_eq!(read(&file, path).expect("is read"), record);
        assert!(record.is_of(Some("a")) && !record.is_of(Some("b")) && !record.is_of(None));

        let length = file.metadata().expect("is there").len();
        file.set_len(length - 2).expect("is cut");
        record.finished.remove("two");
        assert_eq!(read(&file, path).expect("is read"), record);
        file.set_len(5).expect("is cut");
        assert_eq!(read(&file, path).expect("is read"), Record::default());
    }
}
