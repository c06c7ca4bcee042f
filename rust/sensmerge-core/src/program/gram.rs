//! Combinations whose weights depend on the angles between tensors: SLERP, `NuSLERP` and Model Stock.
//!
//! ```text
//! in one sweep: the scalar products of all pairs of models (the Gram matrix), for the whole tensor,
//!     for every row or for every column
//! from each Gram matrix, which holds norms and angles, the method computes a weight per model
//! in the last sweep: the weighted sum
//! ```

use super::block::{Block, Parts};
use super::sweep::{Chunk, reduce_by_halves, reduce_tensors};
use super::{Blocks, Combine, CombineOn, Join, Reduction, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::derivative::dot;
use crate::kernel::weighted_sum::{add_product, weighted_sum};

/// The division of a tensor into vectors, each with weights of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Groups {
    /// The whole tensor is one vector.
    Tensor,
    /// Every row (the entries along the last axis) is a vector.
    Rows,
    /// Every column (the entries along the first axis) is a vector.
    Columns,
}

impl Groups {
    /// The division of a tensor of this shape: with fewer than two axes it is one vector.
    fn of(self, shape: &[usize]) -> Self {
        match (self, shape.len()) {
            (Self::Tensor, _) | (_, 0 | 1) => Self::Tensor,
            (groups, _) => groups,
        }
    }
}

/// The scalar products of the models' vectors.
pub(crate) struct Gram<'g> {
    models: usize,
    /// One for each of [`pairs`], in that order: the upper triangle of the Gram matrix.
    products: &'g [f64],
}

impl Gram<'_> {
    /// `⟨x_one, x_other⟩`.
    ///
    /// # Panics
    /// If `one` is larger than `other`, or `other` is not the index of a model.
    #[must_use]
    pub(crate) fn dot(&self, one: usize, other: usize) -> f64 {
        assert!(one <= other && other < self.models);
        // Number of pairs whose first model comes before `one`.
        let before: usize = (0..one).map(|model| self.models - model).sum();
        self.products[before + other - one]
    }

    /// `‖Σ_i c_i x_i‖₂` for one number per model.
    ///
    /// # Panics
    /// If there are fewer numbers than models.
    #[must_use]
    pub(crate) fn length(&self, numbers: &[f64]) -> f64 {
        let term = |(one, other): (usize, usize)| {
            let twice = if one == other { 1.0 } else { 2.0 };
            twice * numbers[one] * numbers[other] * self.dot(one, other)
        };
        pairs(self.models).map(term).sum::<f64>().max(0.0).sqrt()
    }

    /// `‖x_model‖₂`.
    #[must_use]
    pub(crate) fn norm(&self, model: usize) -> f64 {
        self.dot(model, model).sqrt()
    }
}

/// Every pair of models, the first not after the second; a model also pairs with itself.
fn pairs(models: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..models).flat_map(move |one| (one..models).map(move |other| (one, other)))
}

/// A weighted sum whose weights are computed from the Gram matrix.
pub(crate) struct WeightedByGram {
    /// The method's name.
    pub(crate) name: &'static str,
    /// The division into vectors.
    pub(crate) groups: Groups,
    /// Computes the weight of every model from the Gram matrix of one vector.
    pub(crate) weigh: fn(&Gram, &Subject) -> Vec<f64>,
    /// Refuses numbers with which no weights can be computed.
    pub(crate) check: Option<fn(&Subject) -> Result<()>>,
}

impl std::fmt::Debug for WeightedByGram {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { name, groups, .. } = self;
        formatter
            .debug_struct("WeightedByGram")
            .field("name", name)
            .field("groups", groups)
            .finish()
    }
}

impl Combine for WeightedByGram {
    fn blocks(&self) -> Blocks {
        if self.groups == Groups::Tensor { Blocks::Flat } else { Blocks::Rows }
    }

    fn sweeps(&self) -> u64 {
        1
    }

    fn reductions(&self) -> String {
        format!("products of {:?}", self.groups)
    }

    fn check(&self, subject: &Subject) -> Result<()> {
        self.check.map_or(Ok(()), |check| check(subject))
    }
}

impl<T: Real> CombineOn<T> for WeightedByGram {
    fn reduce(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Vec<f64>>> {
        let subjects = sweep.subjects();
        let reduction = Products { subjects, groups: self.groups };
        // Every chunk has a part of the products of all columns.
        let products = if self.groups == Groups::Columns {
            reduce_by_halves(sweep, &reduction)?
        } else {
            reduce_tensors(sweep, &reduction)?
        };
        let whole = |(products, subject): (Found, &Subject)| match self.groups.of(subject.shape) {
            Groups::Tensor => total(&products.products, pairs(subject.models).count()),
            Groups::Rows | Groups::Columns => products.products,
        };
        Ok(products.into_iter().zip(subjects).map(whole).collect())
    }

    fn bind(&self, subject: &Subject, found: &[f64]) -> Box<dyn Join<T>> {
        let models = subject.models;
        let grams = found.chunks_exact(pairs(models).count());
        let weights: Vec<T> = grams
            .flat_map(|products| (self.weigh)(&Gram { models, products }, subject))
            .map(T::from_f64)
            .collect();
        match self.groups.of(subject.shape) {
            Groups::Tensor => Box::new(ByRow { row_length: subject.elements().max(1), weights }),
            Groups::Rows => Box::new(ByRow { row_length: subject.row_length().max(1), weights }),
            Groups::Columns => Box::new(ByColumn { models, weights }),
        }
    }
}

/// `products` has `width` numbers per block: their sums over the blocks, in order.
fn total(products: &[f64], width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    for block in products.chunks_exact(width) {
        sums.iter_mut().zip(block).for_each(|(sum, product)| *sum += product);
    }
    sums
}

/// The reduction to the scalar products of all pairs of models.
struct Products<'s> {
    subjects: &'s [Subject<'s>],
    groups: Groups,
}

/// Products found in some chunks of a tensor: one per pair for every block ([`Groups::Tensor`]), row
/// or column.
struct Found {
    /// Index of the chunk's first entry.
    start: usize,
    /// Whether products of several chunks are added (columns) rather than appended (blocks, rows).
    adds_up: bool,
    products: Vec<f64>,
}

impl<T: Real> Reduction<T> for Products<'_> {
    type Partial = Found;

    fn identity(&self, chunk: Option<&Chunk>) -> Found {
        let start = chunk.map_or(0, |chunk| chunk.entries.start);
        let groups = chunk.map(|chunk| self.groups.of(self.subjects[chunk.tensor].shape));
        Found { start, adds_up: groups == Some(Groups::Columns), products: Vec::new() }
    }

    fn block(&self, tensor: usize, block: &mut Block<T>, partial: &mut Found) {
        let subject = &self.subjects[tensor];
        let products = &mut partial.products;
        match self.groups.of(subject.shape) {
            Groups::Tensor => {
                products.extend(
                    pairs(subject.models).map(|(one, other)| dot(block.row(one), block.row(other))),
                );
            }
            Groups::Rows => {
                // A chunk holds whole rows, and a block is part of one row.
                let width = pairs(subject.models).count();
                let row = (block.entries().start - partial.start) / subject.row_length();
                products.resize(products.len().max((row + 1) * width), 0.0);
                for (sum, (one, other)) in
                    products[row * width..].iter_mut().zip(pairs(subject.models))
                {
                    *sum += dot(block.row(one), block.row(other));
                }
            }
            Groups::Columns => {
                let width = pairs(subject.models).count();
                let columns = subject.elements() / subject.shape[0];
                products.resize(columns * width, 0.0);
                let first = block.entries().start % columns;
                for (place, (one, other)) in pairs(subject.models).enumerate() {
                    let terms = block.row(one).iter().zip(block.row(other));
                    for (column, (a, b)) in terms.enumerate() {
                        products[(first + column) * width + place] += a.to_f64() * b.to_f64();
                    }
                }
            }
        }
    }

    fn merge(&self, partial: &mut Found, next: Found) {
        if next.adds_up && !partial.products.is_empty() {
            let sums = partial.products.iter_mut().zip(next.products);
            sums.for_each(|(sum, next)| *sum += next);
        } else {
            partial.products.extend(next.products);
        }
    }
}

/// A weighted sum with weights by row: `weights` is `[rows, models]`.
struct ByRow<T> {
    row_length: usize,
    weights: Vec<T>,
}

impl<T: Real> Join<T> for ByRow<T> {
    fn join(&self, block: &mut Block<T>) {
        let models = block.models();
        let row = block.entries().start / self.row_length;
        let weights = &self.weights[row * models..(row + 1) * models];
        let Parts { rows, out, .. } = block.parts();
        weighted_sum(rows, weights, out);
    }
}

/// A weighted sum with weights by column: `weights` is `[columns, models]`.
struct ByColumn<T> {
    models: usize,
    weights: Vec<T>,
}

impl<T: Real> Join<T> for ByColumn<T> {
    fn join(&self, block: &mut Block<T>) {
        let columns = self.weights.len() / self.models;
        let first = block.entries().start % columns;
        let length = block.len();
        let Parts { rows, signs, out, .. } = block.parts();
        out.fill(T::ZERO);
        for (model, row) in rows.chunks_exact(length).enumerate() {
            let of_model = self.weights[first * self.models..].iter().skip(model);
            let weights = of_model.step_by(self.models);
            signs.iter_mut().zip(weights).for_each(|(slot, &weight)| *slot = weight);
            add_product(row, signs, out);
        }
    }
}
