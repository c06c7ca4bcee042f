//! Combinations whose weights follow from the angles between tensors: SLERP and its kin.
//!
//! The scalar products of all pairs of rows (the Gram matrix) tell lengths and angles. A method makes
//! a weight for every model of them; what remains is a weighted sum.

use super::block::{Block, Parts};
use super::sweep::{Chunk, reduce_tensors};
use super::{Blocks, Combine, CombineOn, Join, Reduction, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::derivative::dot;
use crate::kernel::weighted_sum::{add_product, weighted_sum};

/// Which entries of a tensor make one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// All of them.
    Tensor,
    /// Each row: the entries along the last axis.
    Rows,
    /// Each column: the entries along the first axis. A tensor of one axis is one vector.
    Columns,
}

impl Groups {
    /// What a tensor of this shape is grouped by.
    fn of(self, shape: &[usize]) -> Self {
        match (self, shape.len()) {
            (Self::Tensor, _) | (_, 0 | 1) => Self::Tensor,
            (groups, _) => groups,
        }
    }
}

/// The scalar products of the models' vectors.
pub struct Gram<'g> {
    models: usize,
    /// Of every pair, the second no less than the first.
    products: &'g [f64],
}

impl Gram<'_> {
    /// `⟨x_one, x_other⟩`.
    ///
    /// # Panics
    /// If `one` is larger than `other`, or there are not so many models.
    #[must_use]
    pub fn dot(&self, one: usize, other: usize) -> f64 {
        assert!(one <= other && other < self.models);
        // After the pairs of the models before it.
        let before: usize = (0..one).map(|model| self.models - model).sum();
        self.products[before + other - one]
    }

    /// `‖x_model‖₂`.
    #[must_use]
    pub fn norm(&self, model: usize) -> f64 {
        self.dot(model, model).sqrt()
    }
}

/// Every pair of models, a model with itself included.
fn pairs(models: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..models).flat_map(move |one| (one..models).map(move |other| (one, other)))
}

/// A weighted sum whose weights are made from the Gram matrix.
pub struct WeightedByGram {
    /// The method's name.
    pub name: &'static str,
    /// Which entries make one vector.
    pub groups: Groups,
    /// The weight of every model, from the products of one vector.
    pub weigh: fn(&Gram, &Subject) -> Vec<f64>,
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
}

impl<T: Real> CombineOn<T> for WeightedByGram {
    fn reduce(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Vec<f64>>> {
        let subjects = sweep.subjects();
        let products = reduce_tensors(sweep, &Products { subjects, groups: self.groups })?;
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

/// The sums of `width` products each, in the order of their blocks.
fn total(products: &[f64], width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    for block in products.chunks_exact(width) {
        sums.iter_mut().zip(block).for_each(|(sum, product)| *sum += product);
    }
    sums
}

/// Scalar products of all pairs of models.
struct Products<'s> {
    subjects: &'s [Subject<'s>],
    groups: Groups,
}

/// The products of every pair: for every block of a tensor, for every row, or for every column.
struct Found {
    /// The first entry of the chunk.
    start: usize,
    /// Whether those of several chunks add up, rather than follow each other.
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
                // A chunk holds whole rows, and a block lies in one of them.
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

/// Weights by row of `row_length` entries, one a model each.
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

/// Weights by column, one a model each.
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
