//! How the entries of an input come about.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dtype::{Dtype, Float};

/// An input of an output tensor. Sources may be made of sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// A tensor as a file, or the caller's memory, holds it.
    Stored(Stored),
    /// The same number everywhere: a head that a model lacks, rows that are new.
    Constant {
        /// The number.
        value: f64,
        /// The shape.
        shape: Vec<usize>,
    },
    /// Rows of other sources, which have the same shape but for the first axis.
    Rows {
        /// Where rows are taken from.
        of: Vec<Source>,
        /// Which rows, in the order of the output.
        runs: Vec<Run>,
    },
}

/// A tensor of one of the manifest's models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// The model's place in the manifest.
    pub model: usize,
    /// The tensor's name in it.
    pub name: String,
    /// The dtype it is stored in.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The file's place among the model's; of a tensor in memory, its own.
    pub file: usize,
    /// Where its bytes start and end in the file.
    pub bytes: [usize; 2],
}

/// Consecutive rows of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The source's place among those that rows are taken from.
    pub of: usize,
    /// The first row.
    pub first: usize,
    /// How many follow each other.
    pub count: usize,
}

impl Source {
    /// The first `count` rows of a source.
    #[must_use]
    pub fn leading_rows(self, count: usize) -> Self {
        Self::Rows { of: vec![self], runs: vec![Run { of: 0, first: 0, count }] }
    }

    /// Its shape. Rows of nothing have none.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Stored(stored) => stored.shape.clone(),
            Self::Constant { shape, .. } => shape.clone(),
            Self::Rows { of, runs } => {
                let mut shape = of.first().map(Self::shape).unwrap_or_default();
                if let Some(rows) = shape.first_mut() {
                    *rows = runs.iter().map(|run| run.count).sum();
                }
                shape
            }
        }
    }

    /// The stored tensors that it reads.
    #[must_use]
    pub fn stored(&self) -> Vec<&Stored> {
        match self {
            Self::Stored(stored) => vec![stored],
            Self::Constant { .. } => Vec::new(),
            Self::Rows { of, .. } => of.iter().flat_map(Self::stored).collect(),
        }
    }

    /// The widest dtype that it reads; `None` where it reads nothing.
    #[must_use]
    pub fn dtype(&self) -> Option<Float> {
        let dtypes = self.stored().into_iter().filter_map(|stored| stored.dtype.float());
        dtypes.max_by_key(|dtype| dtype.size())
    }
}

/// A file of a model, so that another process can tell whether it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Digest of its header: names, dtypes, shapes and places of its tensors.
    pub header: String,
}
