//! Symmetries: units that can change places without a change in what the model computes, such as the
//! neurons of a block's MLP, and the tensors of a model with its units in another order.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::prefix::under_the_names_of;
use super::source::{Run, Source};
use super::view::{Checkpoints, View};
use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// Units that can change places, all of them with one another: neurons, or the groups of attention heads
/// that share keys and values. A unit may have members that can change places within it: the heads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symmetry {
    /// Number of units.
    pub units: usize,
    /// Number of members of every unit; 0 if units have none.
    pub members: usize,
    /// All parts of tensors that have to move with them.
    pub portions: Vec<Portion>,
}

/// Rows or columns of a tensor that belong to units or to their members, as many to each and in their
/// order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Portion {
    /// The name of the output tensor.
    pub tensor: String,
    /// 0 for rows, 1 for the columns of a matrix.
    pub axis: usize,
    /// The first row or column.
    pub first: usize,
    /// Number of rows or columns.
    pub count: usize,
    /// What they belong to.
    pub level: Level,
}

/// What a portion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The units.
    Units,
    /// The members of all units, those of the first unit first.
    Members,
}

/// A permutation of the units of a model, and of their members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Order {
    /// For every place the unit of the model that takes it.
    pub units: Vec<usize>,
    /// For every place the member that takes it, numbered over all units.
    pub members: Vec<usize>,
}

impl Symmetry {
    /// The order in which nothing moves.
    #[must_use]
    pub fn unmoved(&self) -> Order {
        Order {
            units: (0..self.units).collect(),
            members: (0..self.units * self.members).collect(),
        }
    }

    /// Number of units or members.
    #[must_use]
    pub(crate) fn count(&self, level: Level) -> usize {
        match level {
            Level::Units => self.units,
            Level::Members => self.units * self.members,
        }
    }
}

/// The rows and columns of a tensor in another order, as runs: the first row or column of each in the
/// stored tensor, and their number. Without runs, the order is the stored one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reordered {
    /// Runs of rows, or of a vector's entries.
    pub rows: Vec<[usize; 2]>,
    /// Runs of a matrix's columns.
    pub columns: Vec<[usize; 2]>,
}

impl Reordered {
    /// A source in this order.
    ///
    /// # Errors
    /// Why the runs are no order of the source's rows and columns.
    pub(super) fn of(&self, source: Source) -> std::result::Result<Source, String> {
        let shape = source.shape();
        let mut source = source;
        if !self.rows.is_empty() {
            check(&self.rows, shape.first().copied(), "rows")?;
            let runs = self.rows.iter().map(|&[first, count]| Run { of: 0, first, count });
            source = Source::Rows { of: vec![source], runs: runs.collect() };
        }
        if !self.columns.is_empty() {
            check(&self.columns, shape.get(1).copied().filter(|_| shape.len() == 2), "columns")?;
            source = Source::Columns { of: Box::new(source), runs: self.columns.clone() };
        }
        Ok(source)
    }
}

/// Refuse runs that do not name each of `length` rows or columns once.
fn check(
    runs: &[[usize; 2]],
    length: Option<usize>,
    what: &str,
) -> std::result::Result<(), String> {
    let length = length.ok_or_else(|| format!("has no {what} that can be reordered"))?;
    let mut sorted = runs.to_vec();
    sorted.sort_unstable();
    let end = sorted.iter().try_fold(0_usize, |end, [first, count]| {
        (*first == end).then(|| end.checked_add(*count)).flatten()
    });
    if end == Some(length) {
        return Ok(());
    }
    Err(format!("its {length} {what} are to be taken in an order that does not name each once"))
}

/// Two models whose units are compared: one whose order counts, and another.
pub(crate) struct Pair {
    template: View,
    model: View,
    checkpoints: Checkpoints,
}

impl Pair {
    /// The two models, the second under the names of the first.
    #[must_use]
    pub(crate) fn of(template: &View, model: &View) -> Self {
        let (model, _) = under_the_names_of(template, model.clone());
        let checkpoints = Checkpoints::new(Vec::new(), [template, &model]);
        Self { template: template.clone(), model, checkpoints }
    }

    /// The checkpoints that sources refer to.
    #[must_use]
    pub(crate) fn checkpoints(&self) -> Vec<Arc<Checkpoint>> {
        self.checkpoints.all().to_vec()
    }

    /// The sources of the tensors of a symmetry in both models, in the order of its portions; `None` if
    /// a tensor is missing in one of them, has another shape, or is not computed with.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) for an adapter that does not fit a tensor.
    pub(crate) fn sources(&self, symmetry: &Symmetry) -> Result<Option<Vec<[Source; 2]>>> {
        let mut found = Vec::with_capacity(symmetry.portions.len());
        let names: BTreeSet<&str> =
            symmetry.portions.iter().map(|portion| portion.tensor.as_str()).collect();
        let known = |view: &View| names.iter().all(|name| view.own(name).is_some());
        if !known(&self.template) || !known(&self.model) {
            return Ok(None);
        }
        for portion in &symmetry.portions {
            let Some(ours) = self.source(&self.template, &portion.tensor)? else { return Ok(None) };
            let Some(theirs) = self.source(&self.model, &portion.tensor)? else { return Ok(None) };
            if ours.shape() != theirs.shape() || !portion.fits(&ours.shape(), symmetry) {
                return Ok(None);
            }
            found.push([ours, theirs]);
        }
        Ok(Some(found))
    }

    fn source(&self, view: &View, name: &str) -> Result<Option<Source>> {
        let tensor = view.own(name).filter(|tensor| tensor.dtype.float().is_some());
        tensor.map(|tensor| self.checkpoints.source(view, tensor)).transpose()
    }
}

impl Portion {
    /// Whether it lies within a tensor of this shape, and each unit has as many rows or columns.
    fn fits(&self, shape: &[usize], symmetry: &Symmetry) -> bool {
        let count = symmetry.count(self.level);
        let end = self.first.checked_add(self.count);
        let matrix = self.axis == 0 || shape.len() == 2;
        let within =
            shape.get(self.axis).is_some_and(|&length| end.is_some_and(|end| end <= length));
        matrix && within && count > 0 && self.count.is_multiple_of(count)
    }
}
