//! How much each column of a matrix changed, in length and in direction (WIDEN, Yu et al. 2024).
//!
//! For a column `w` of the base and `δ` of a task vector, with `n = ⟨w, w⟩`, `p = ⟨w, δ⟩` and `q = ⟨δ, δ⟩`:
//!
//! ```text
//! |‖w + δ‖ − ‖w‖|    = |2p + q| / (‖w + δ‖ + ‖w‖)              with ‖w + δ‖² = n + 2p + q
//! 1 − cos(w + δ, w)  = (nq − p²) / (ab (ab + n + p))           with a = ‖w‖, b = ‖w + δ‖
//! ```
//!
//! so that small changes of long columns lose no digits.

use super::Subject;
use super::block::{Block, Parts};
use super::sweep::{Chunk, Reduction};
use crate::dtype::Real;
use crate::kernel::columns::add_products;
use crate::kernel::derivative::dot;
use crate::kernel::sum::l1;

/// Last parts of the names of input embeddings, whose rows belong to one token each.
const EMBEDDINGS: [&str; 5] = [
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
];

/// The vectors that a tensor consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vectors {
    /// The columns of a matrix, or of each matrix of a stack: one for every input of a linear layer.
    Columns {
        /// Number of rows of a matrix.
        rows: usize,
        /// Number of its columns.
        columns: usize,
    },
    /// The rows of an input embedding: one for every token.
    Rows {
        /// Length of a row.
        columns: usize,
    },
    /// Every entry by itself, where a tensor has less than two axes or no entries.
    Entries,
}

impl Vectors {
    pub(super) fn of(subject: &Subject) -> Self {
        match subject.shape {
            _ if subject.elements() == 0 => Self::Entries,
            [.., rows, columns] => {
                if EMBEDDINGS.iter().any(|name| subject.name.ends_with(name)) {
                    Self::Rows { columns: *columns }
                } else {
                    Self::Columns { rows: *rows, columns: *columns }
                }
            }
            _ => Self::Entries,
        }
    }

    /// Number of entries of a unit: a matrix, a row, or the whole tensor.
    fn unit(self, subject: &Subject) -> usize {
        match self {
            Self::Columns { rows, columns } => rows * columns,
            Self::Rows { columns } => columns,
            Self::Entries => subject.elements().max(1),
        }
    }

    /// Number of vectors that are ranked among each other.
    pub(super) fn ranked(self, subject: &Subject) -> usize {
        match self {
            Self::Columns { columns, .. } => columns,
            Self::Rows { columns } => subject.elements() / columns,
            Self::Entries => 1,
        }
    }

    /// The index of the vector that an entry belongs to.
    pub(super) fn vector(self, entry: usize) -> usize {
        match self {
            Self::Columns { rows, columns } => entry / (rows * columns) * columns + entry % columns,
            Self::Rows { columns } => entry / columns,
            Self::Entries => entry,
        }
    }
}

/// The reduction to the scalar products of every vector: of the base with itself, and of every task vector
/// with the base and with itself. Where entries are taken by themselves, the L1 norms of the task vectors.
pub(super) struct Products<'s> {
    pub(super) subjects: &'s [Subject<'s>],
}

/// Products of consecutive units. A unit has, for every kind of product, one number for each of its vectors.
pub(super) struct Found {
    first: usize,
    width: usize,
    pub(super) products: Vec<f64>,
}

impl Products<'_> {
    fn width(&self, tensor: usize) -> usize {
        let subject = &self.subjects[tensor];
        let kinds = 1 + 2 * subject.models;
        match Vectors::of(subject) {
            Vectors::Columns { columns, .. } => kinds * columns,
            Vectors::Rows { .. } => kinds,
            Vectors::Entries => subject.models,
        }
    }
}

impl<T: Real> Reduction<T> for Products<'_> {
    type Partial = Found;

    fn identity(&self, chunk: Option<&Chunk>) -> Found {
        let Some(chunk) = chunk else {
            return Found { first: 0, width: 1, products: Vec::new() };
        };
        let subject = &self.subjects[chunk.tensor];
        let unit = Vectors::of(subject).unit(subject);
        let (first, last) = (chunk.entries.start / unit, (chunk.entries.end - 1) / unit);
        let width = self.width(chunk.tensor);
        Found { first, width, products: vec![0.0; (last - first + 1) * width] }
    }

    fn block(&self, tensor: usize, block: &mut Block<T>, found: &mut Found) {
        let subject = &self.subjects[tensor];
        let (start, length) = (block.entries().start, block.len());
        let vectors = Vectors::of(subject);
        let unit = start / vectors.unit(subject) - found.first;
        let sums = &mut found.products[unit * found.width..][..found.width];
        let Parts { base, rows, .. } = block.parts();
        let base = &*base;
        let mut products = vec![(base, base)];
        for row in rows.chunks_exact(length) {
            products.extend([(base, row), (row, row)]);
        }
        match vectors {
            Vectors::Columns { columns, .. } => {
                // A block is a part of one row.
                let first = start % columns;
                for ((a, b), sums) in products.into_iter().zip(sums.chunks_exact_mut(columns)) {
                    add_products(a, b, &mut sums[first..first + length]);
                }
            }
            Vectors::Rows { .. } => {
                for ((a, b), sum) in products.into_iter().zip(sums) {
                    *sum += dot(a, b);
                }
            }
            Vectors::Entries => {
                for (row, sum) in rows.chunks_exact(length).zip(sums) {
                    *sum += l1(row);
                }
            }
        }
    }

    fn merge(&self, found: &mut Found, next: Found) {
        let shared = found.first * found.width + found.products.len() - next.first * next.width;
        let (both, rest) = next.products.split_at(shared);
        let last = found.products.len() - shared;
        found.products[last..].iter_mut().zip(both).for_each(|(sum, next)| *sum += next);
        found.products.extend_from_slice(rest);
    }
}

/// For every model, the ranks of its vectors by the change of their length, and those by the change of their
/// direction: 0 is the smallest, and of equal changes that of the lower index is the smaller. Vectors are
/// ranked in groups of [`Vectors::ranked`]. Returned in this order: `[models, 2, vectors]`.
pub(super) fn ranks(subject: &Subject, products: &[f64]) -> Vec<f64> {
    let vectors = Vectors::of(subject);
    let (models, ranked) = (subject.models, vectors.ranked(subject));
    let kinds = 1 + 2 * models;
    let count = products.len() / kinds;
    let product = |kind: usize, vector: usize| match vectors {
        Vectors::Columns { columns, .. } => {
            products[(vector / columns * kinds + kind) * columns + vector % columns]
        }
        Vectors::Rows { .. } | Vectors::Entries => products[vector * kinds + kind],
    };
    let mut found = Vec::with_capacity(models * 2 * count);
    for model in 0..models {
        let changes: Vec<[f64; 2]> = (0..count)
            .map(|vector| {
                let with_base = product(1 + 2 * model, vector);
                change(product(0, vector), with_base, product(2 + 2 * model, vector))
            })
            .collect();
        for kind in 0..2 {
            for group in changes.chunks(ranked) {
                found.extend(ranks_of(group, |change| change[kind]));
            }
        }
    }
    found
}

/// The changes of the length and of the direction of a vector. Where one of the two vectors is 0, its
/// direction counts as being at a right angle to the other's; where both are, nothing changed.
fn change(base: f64, with_base: f64, delta: f64) -> [f64; 2] {
    let after = (base + 2.0 * with_base + delta).max(0.0);
    let (a, b) = (base.sqrt(), after.sqrt());
    if a + b == 0.0 {
        return [0.0, 0.0];
    }
    let length = (2.0 * with_base + delta).abs() / (a + b);
    let both = a * b;
    let cosine = base + with_base;
    let direction = if both == 0.0 {
        1.0
    } else if cosine > 0.0 {
        (base * delta - with_base * with_base).max(0.0) / (both * (both + cosine))
    } else {
        1.0 - cosine / both
    };
    [length, direction]
}

fn ranks_of(changes: &[[f64; 2]], number: impl Fn(&[f64; 2]) -> f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by(|&one, &other| number(&changes[one]).total_cmp(&number(&changes[other])));
    let mut ranks = vec![0.0; changes.len()];
    for (rank, place) in order.into_iter().enumerate() {
        ranks[place] = rank as f64;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn changes_are_those_of_the_vectors(
            pairs in prop::collection::vec((-3.0..3.0_f64, -3.0..3.0_f64), 1..20),
        ) {
            let sum = |term: fn(f64, f64) -> f64| pairs.iter().map(|&(w, d)| term(w, d)).sum::<f64>();
            let [length, direction] =
                change(sum(|w, _| w * w), sum(|w, d| w * d), sum(|_, d| d * d));
            let norm = |x: f64| x.sqrt();
            let (a, b) = (norm(sum(|w, _| w * w)), norm(sum(|w, d| (w + d) * (w + d))));
            prop_assert!((length - (b - a).abs()).abs() < 1e-9);
            let cosine = sum(|w, d| w * (w + d)) / (a * b);
            prop_assert!((direction - (1.0 - cosine)).abs() < 1e-6, "{direction} {cosine}");
        }
    }

    #[test]
    fn small_changes_and_vectors_of_zeros() {
        // A column of length 1 that turns by 1e-9: 1 − cos is 5e-19, which no difference from 1 shows.
        let [length, direction] = change(1.0, 0.0, 1e-18);
        assert!((length - 5e-19).abs() < 1e-24 && (direction - 5e-19).abs() < 1e-24);
        assert_eq!(change(0.0, 0.0, 0.0), [0.0, 0.0]);
        assert_eq!(change(0.0, 0.0, 4.0), [2.0, 1.0]);
        assert_eq!(change(4.0, -4.0, 4.0), [2.0, 1.0]);
        // Turned around.
        assert_eq!(change(4.0, -8.0, 16.0), [0.0, 2.0]);
    }

    #[test]
    fn of_equal_changes_the_first_is_the_smallest() {
        let changes = [[2.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.5, 0.0]];
        assert_eq!(ranks_of(&changes, |change| change[0]), [2.0, 1.0, 3.0, 0.0]);
    }
}
