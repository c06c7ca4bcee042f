//! Sources: the origins of an input's entries.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Encoding, TensorInfo};
use crate::dtype::{Dtype, Float};

/// An input of an output tensor. Sources may be nested.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// A tensor in a file or in the caller's memory.
    Stored(Stored),
    /// A quantised tensor: codes, each times the scale of its tile.
    Scaled(Scaled),
    /// The same number in every entry, as for an output head that a model lacks.
    Constant {
        /// The number.
        value: f64,
        /// The shape.
        shape: Vec<usize>,
    },
    /// Rows of other sources, whose shapes differ at most in the first axis.
    Rows {
        /// The other sources.
        of: Vec<Source>,
        /// Runs of their rows, in the order of the result.
        runs: Vec<Run>,
    },
    /// The columns of a matrix in another order, as for the neurons of another model.
    Columns {
        /// The matrix.
        of: Box<Source>,
        /// Runs of its columns, in the order of the result: the first of each, and their number.
        runs: Vec<[usize; 2]>,
    },
    /// The mean of sources of the same shape, entry by entry, as for a token that several models have
    /// and others lack.
    Mean {
        /// The sources; at least one.
        of: Vec<Source>,
    },
    /// The mean of all rows of a source, as a single row, as for rows that belong to no token.
    MeanRow {
        /// The source.
        of: Box<Source>,
    },
    /// Another source and a low-rank change to it, as of a LoRA adapter.
    LowRank(Box<LowRank>),
}

/// `W + s·B·A`, where `W` is a matrix of outputs × inputs.
///
/// With a magnitude `m` (DoRA), the weights of every output `o` are then given the norm `m_o`:
/// `m_o · (W + s·B·A)_o / ‖(W + s·B·A)_o‖₂`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRank {
    /// `W`.
    pub of: Source,
    /// `A`, of rank × inputs.
    pub a: Stored,
    /// `B`, of outputs × rank.
    pub b: Stored,
    /// `s`.
    pub scale: f64,
    /// Whether `W`, and with it the result, is stored as inputs × outputs.
    pub transposed: bool,
    /// `m`, one number an output.
    pub magnitude: Option<Stored>,
}

impl LowRank {
    /// Why the shapes of its parts do not fit one another; `None` if they do.
    pub(crate) fn mismatch(&self) -> Option<String> {
        let shape = self.of.shape();
        let [rows, columns] = shape[..] else {
            return Some(format!("changes a tensor of shape {shape:?}, which is no matrix"));
        };
        let (outputs, inputs) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let rank = self.a.shape.first().copied().unwrap_or(0);
        let (a, b) = (&self.a.shape, &self.b.shape);
        if *a != [rank, inputs] || *b != [outputs, rank] || rank == 0 {
            return Some(format!(
                "the product of B, of shape {b:?}, and A, of shape {a:?}, does not fit a matrix of \
                 {outputs} outputs and {inputs} inputs"
            ));
        }
        let entries = |stored: &Stored| stored.shape.iter().product::<usize>();
        self.magnitude
            .as_ref()
            .filter(|magnitude| entries(magnitude) != outputs)
            .map(|magnitude| format!("has {} magnitudes for {outputs} outputs", entries(magnitude)))
    }
}

/// A tensor of one of the manifest's models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// Index of the model in the manifest.
    pub model: usize,
    /// The tensor's name in that model.
    pub name: String,
    /// The dtype it is stored in.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Index of the file among the model's; for a tensor in memory, index of its buffer.
    pub file: usize,
    /// Offsets of its first byte and after its last one, in the file or buffer.
    pub bytes: [usize; 2],
}

/// A quantised tensor of one of the manifest's models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaled {
    /// The codes.
    pub values: Stored,
    /// The scales.
    pub scales: Stored,
    /// How the entries are computed from them.
    pub encoding: Encoding,
    /// The shape of the tensor that they stand for.
    pub shape: Vec<usize>,
}

/// Consecutive rows of one source. Written as three numbers, since a vocabulary in another order has a
/// run for every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[usize; 3]", into = "[usize; 3]")]
pub struct Run {
    /// Index of the source in [`Source::Rows`].
    pub of: usize,
    /// Index of the first row.
    pub first: usize,
    /// Number of rows.
    pub count: usize,
}

impl Stored {
    /// A tensor as it is stored in the manifest's model of index `model`.
    #[must_use]
    pub(crate) fn of(model: usize, tensor: &TensorInfo) -> Self {
        Self {
            model,
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            file: tensor.shard,
            bytes: [tensor.start, tensor.end],
        }
    }
}

impl From<[usize; 3]> for Run {
    fn from([of, first, count]: [usize; 3]) -> Self {
        Self { of, first, count }
    }
}

impl From<Run> for [usize; 3] {
    fn from(run: Run) -> Self {
        [run.of, run.first, run.count]
    }
}

impl Source {
    /// A tensor of a checkpoint, stored as it is or quantised; `model` is the checkpoint's index among
    /// the manifest's.
    #[must_use]
    pub(crate) fn of(model: usize, checkpoint: &Checkpoint, tensor: &TensorInfo) -> Self {
        match checkpoint.packed(&tensor.name) {
            None => Self::Stored(Stored::of(model, tensor)),
            Some(packed) => Self::Scaled(Scaled {
                values: Stored::of(model, &packed.values),
                scales: Stored::of(model, &packed.scales),
                encoding: packed.encoding,
                shape: tensor.shape.clone(),
            }),
        }
    }

    /// Its shape; empty for rows, or the mean, of no source.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Stored(stored) => stored.shape.clone(),
            Self::Scaled(scaled) => scaled.shape.clone(),
            Self::Constant { shape, .. } => shape.clone(),
            Self::Rows { of, runs } => {
                let mut shape = of.first().map(Self::shape).unwrap_or_default();
                if let Some(rows) = shape.first_mut() {
                    *rows = runs.iter().map(|run| run.count).sum();
                }
                shape
            }
            Self::Columns { of, runs } => {
                let mut shape = of.shape();
                if let Some(columns) = shape.last_mut() {
                    *columns = runs.iter().map(|[_, count]| count).sum();
                }
                shape
            }
            Self::Mean { of } => of.first().map(Self::shape).unwrap_or_default(),
            Self::MeanRow { of } => {
                let mut shape = of.shape();
                if let Some(rows) = shape.first_mut() {
                    *rows = 1;
                }
                shape
            }
            Self::LowRank(change) => change.of.shape(),
        }
    }

    /// The stored tensors that it reads.
    #[must_use]
    pub fn stored(&self) -> Vec<&Stored> {
        match self {
            Self::Stored(stored) => vec![stored],
            Self::Scaled(Scaled { values, scales, .. }) => vec![values, scales],
            Self::Constant { .. } => Vec::new(),
            Self::Rows { of, .. } | Self::Mean { of } => of.iter().flat_map(Self::stored).collect(),
            Self::Columns { of, .. } | Self::MeanRow { of } => of.stored(),
            Self::LowRank(change) => {
                let mut stored = change.of.stored();
                stored.extend([&change.a, &change.b].into_iter().chain(&change.magnitude));
                stored
            }
        }
    }

    /// Whether it is a tensor with a low-rank change, in whatever order.
    #[must_use]
    pub(super) fn is_adapted(&self) -> bool {
        match self {
            Self::LowRank(_) => true,
            Self::Columns { of, .. } => of.is_adapted(),
            Self::Rows { of, .. } => of.len() == 1 && of[0].is_adapted(),
            _ => false,
        }
    }

    /// The widest dtype of the stored tensors that it reads; `None` if it reads none.
    #[must_use]
    pub fn dtype(&self) -> Option<Float> {
        let dtypes = self.stored().into_iter().filter_map(|stored| stored.dtype.float());
        dtypes.max_by_key(|dtype| dtype.size())
    }
}

/// The identity of a model's file, by which another process can tell whether the file has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Digest of its header: names, dtypes, shapes and offsets of its tensors.
    pub header: String,
}
