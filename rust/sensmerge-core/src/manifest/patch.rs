//! Changes that an adapter makes to the tensors of a model.

use std::sync::Arc;

use super::source::{LowRank, Run, Source, Stored};
use super::view::Checkpoints;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{Error, Result};

/// A change to one tensor, by tensors of an adapter's checkpoint.
#[derive(Clone, Debug)]
pub struct Patch {
    adapter: Arc<Checkpoint>,
    change: Change,
}

/// What takes the place of a tensor `W`; all names are those of the adapter's tensors.
#[derive(Clone, Debug)]
pub enum Change {
    /// `W + s·B·A`, and with a magnitude what [`LowRank::magnitude`] says.
    LowRank {
        /// `A`, of rank × inputs.
        a: String,
        /// `B`, of outputs × rank.
        b: String,
        /// `s`.
        scale: f64,
        /// Whether `W` is stored as inputs × outputs.
        transposed: bool,
        /// The norms of DoRA.
        magnitude: Option<String>,
    },
    /// Another tensor, which may have another number of rows.
    Whole {
        /// Its name.
        tensor: String,
    },
    /// `W` with other rows in the places of some.
    Rows {
        /// The other rows.
        tensor: String,
        /// The place of each in `W`.
        places: Vec<usize>,
    },
}

impl Patch {
    /// A change by tensors of `adapter`.
    #[must_use]
    pub fn new(adapter: Arc<Checkpoint>, change: Change) -> Self {
        Self { adapter, change }
    }

    /// The adapter's checkpoint.
    pub(super) fn adapter(&self) -> &Arc<Checkpoint> {
        &self.adapter
    }

    /// The changed source.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that the adapter lacks, whose shape does not fit, or that is not
    /// computed with.
    pub(super) fn apply(&self, source: Source, checkpoints: &Checkpoints) -> Result<Source> {
        let shape = source.shape();
        match &self.change {
            Change::LowRank { a, b, scale, transposed, magnitude } => {
                let (a, b) = (self.stored(a, checkpoints)?, self.stored(b, checkpoints)?);
                let magnitude = magnitude.as_ref();
                let magnitude = magnitude.map(|name| self.stored(name, checkpoints)).transpose()?;
                let (scale, transposed) = (*scale, *transposed);
                let change = LowRank { of: source, a, b, scale, transposed, magnitude };
                match change.mismatch() {
                    None => Ok(Source::LowRank(Box::new(change))),
                    Some(reason) => Err(self.refusal(&change.a.name, reason)),
                }
            }
            Change::Whole { tensor } => {
                let stored = self.stored(tensor, checkpoints)?;
                if stored.shape.len() == shape.len() && stored.shape.get(1..) == shape.get(1..) {
                    return Ok(Source::Stored(stored));
                }
                let ours = &stored.shape;
                let reason = format!("has shape {ours:?}, and the model's tensor {shape:?}");
                Err(self.refusal(tensor, reason))
            }
            Change::Rows { tensor, places } => {
                let stored = self.stored(tensor, checkpoints)?;
                let (ours, rows) = (&stored.shape, shape.first().copied().unwrap_or(0));
                let fits = ours.get(1..) == shape.get(1..)
                    && ours.first() == Some(&places.len())
                    && places.iter().all(|&place| place < rows);
                if !fits || shape.len() < 2 {
                    let reason = format!(
                        "has shape {ours:?}, which does not fit {} rows of a tensor of shape {shape:?}",
                        places.len()
                    );
                    return Err(self.refusal(tensor, reason));
                }
                let runs = replaced(rows, places);
                Ok(Source::Rows { of: vec![source, Source::Stored(stored)], runs })
            }
        }
    }

    fn stored(&self, name: &str, checkpoints: &Checkpoints) -> Result<Stored> {
        let found: Option<&TensorInfo> = self.adapter.get(name).map(|found| &**found);
        let found = found.ok_or_else(|| self.refusal(name, "is missing".to_owned()))?;
        if found.dtype.float().is_none() {
            let reason =
                format!("is {}; only BF16, F16, F32 and F64 can be merged", found.dtype.name());
            return Err(self.refusal(name, reason));
        }
        Ok(checkpoints.stored_in(&self.adapter, found))
    }

    fn refusal(&self, name: &str, reason: String) -> Error {
        Error::tensor(self.adapter.path(), name, reason)
    }
}

/// Runs of the rows of a tensor, the source 0, with rows of the source 1 in some places.
fn replaced(rows: usize, places: &[usize]) -> Vec<Run> {
    let mut by_place: Vec<(usize, usize)> =
        places.iter().enumerate().map(|(row, &place)| (place, row)).collect();
    by_place.sort_unstable();
    // Of a place that is named twice the last row stays.
    by_place.reverse();
    by_place.dedup_by_key(|(place, _)| *place);
    by_place.reverse();
    let mut runs = Vec::new();
    let mut next = 0;
    for (place, row) in by_place {
        if place > next {
            runs.push(Run { of: 0, first: next, count: place - next });
        }
        runs.push(Run { of: 1, first: row, count: 1 });
        next = place + 1;
    }
    if next < rows {
        runs.push(Run { of: 0, first: next, count: rows - next });
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_the_places_of_others() {
        let rows = |runs: Vec<Run>| -> Vec<(usize, usize)> {
            let each = |run: Run| (run.first..run.first + run.count).map(move |row| (run.of, row));
            runs.into_iter().flat_map(each).collect()
        };
        let found = rows(replaced(6, &[4, 0, 5]));
        assert_eq!(found, [(1, 1), (0, 1), (0, 2), (0, 3), (1, 0), (1, 2)]);
        assert_eq!(rows(replaced(2, &[])), [(0, 0), (0, 1)]);
        assert_eq!(rows(replaced(2, &[1, 1])), [(0, 0), (1, 1)]);
    }
}
