//! Rows of a vocabulary, chosen token by token from the models of a part.

use serde::{Deserialize, Serialize};

use super::source::{Run, Source};
use crate::error::{Error, Result};

/// Rows to take in place of those of a tensor. They may be those of the same tensor in other models,
/// which a part numbers in their order, its base first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// The whole tensor of one model.
    Model(usize),
    /// As many rows of zeros.
    Zeros(usize),
    /// Rows of other selections.
    Rows {
        /// The other selections.
        of: Vec<Selection>,
        /// Runs of their rows, in the order of the result.
        runs: Vec<Run>,
    },
    /// The mean of selections of as many rows, row by row.
    Mean(Vec<Selection>),
    /// The mean of all rows, as a single row.
    MeanRow(Box<Selection>),
}

impl Selection {
    /// The source of the rows of a tensor.
    ///
    /// `tensor` gives the tensor of a model; `row` is the shape of a row.
    ///
    /// # Errors
    /// [`Error::Setting`] for rows that a model does not have or that are of different shapes, and the
    /// errors of `tensor`.
    pub(super) fn source(
        &self,
        row: &[usize],
        tensor: &dyn Fn(usize) -> Result<Source>,
    ) -> Result<Source> {
        let each = |of: &[Self]| -> Result<Vec<Source>> {
            of.iter().map(|one| one.source(row, tensor)).collect()
        };
        match self {
            Self::Model(number) => tensor(*number),
            Self::Zeros(rows) => {
                Ok(Source::Constant { value: 0.0, shape: [&[*rows], row].concat() })
            }
            Self::Rows { of, runs } => {
                let of = each(of)?;
                let shapes: Vec<Vec<usize>> = of.iter().map(Source::shape).collect();
                let there = |run: &Run| {
                    shapes.get(run.of).is_some_and(|shape| {
                        let end = run.first.checked_add(run.count);
                        shape.get(1..) == Some(row) && end.is_some_and(|end| end <= shape[0])
                    })
                };
                match runs.iter().find(|run| !there(run)) {
                    None => Ok(Source::Rows { of, runs: runs.clone() }),
                    Some(Run { of, first, count }) => {
                        let shape = shapes.get(*of).map_or(&[][..], Vec::as_slice);
                        let reason = format!(
                            "{count} rows from {first} on are to be taken of a tensor of shape {shape:?}"
                        );
                        Err(Error::setting("rows", reason))
                    }
                }
            }
            Self::Mean(of) => {
                let of = each(of)?;
                let shapes: Vec<Vec<usize>> = of.iter().map(Source::shape).collect();
                if shapes.is_empty() || shapes.windows(2).any(|pair| pair[0] != pair[1]) {
                    let reason = format!("the mean is asked of tensors of shapes {shapes:?}");
                    return Err(Error::setting("rows", reason));
                }
                Ok(Source::Mean { of })
            }
            Self::MeanRow(of) => Ok(Source::MeanRow { of: Box::new(of.source(row, tensor)?) }),
        }
    }
}
