//! Sums of task vectors with weights by column, by how much the column's length and direction changed (WIDEN, Yu
//! et al. 2024).
//!
//! ```text
//! in one sweep: the scalar products of every column of the base and of the task vectors (`columns`)
//! within every model, rank the n columns by the changes of their lengths, and by those of their directions
//! significance of a column: its rank / n; its score: the softmax of the significances over the models,
//!     but a fixed number where the significance is above a multiple of the model's mean
//! in the last sweep: Σ w_i s_i δ_i, with the mean s_i of the two scores
//! ```
//!
//! In a tensor of less than two axes the significance of an entry is its magnitude.

use std::ops::Range;

use super::block::{Block, Parts};
use super::columns::{Products, Vectors, ranks};
use super::sweep::reduce_by_halves;
use super::{Blocks, Combine, CombineOn, Join, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::derivative::dot;
use crate::kernel::low_rank::multiply_each;
use crate::kernel::softmax::calibrated_softmax;
use crate::kernel::weighted_sum::add_product;

/// `Σ w_i s_i δ_i` with scores `s_i` from significances.
#[derive(Debug)]
pub(crate) struct BySignificance {
    /// The parameter that holds the multiple of the mean significance.
    pub(crate) ratio: &'static str,
    /// The parameter that holds the score above it.
    pub(crate) calibrated: &'static str,
}

impl Combine for BySignificance {
    fn blocks(&self) -> Blocks {
        Blocks::Rows
    }

    fn sweeps(&self) -> u64 {
        1
    }

    fn reductions(&self) -> String {
        "significances".into()
    }
}

impl<T: Real> CombineOn<T> for BySignificance {
    fn reduce(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Vec<f64>>> {
        let subjects = sweep.subjects();
        let found = reduce_by_halves(sweep, &Products { subjects })?;
        let whole = |(found, subject): (super::columns::Found, &Subject)| {
            if Vectors::of(subject) == Vectors::Entries {
                // The mean significances of the models.
                let entries = subject.elements() as f64;
                return found.products.into_iter().map(|norm| norm / entries).collect();
            }
            ranks(subject, &found.products)
        };
        Ok(found.into_iter().zip(subjects).map(whole).collect())
    }

    fn bind(&self, subject: &Subject, found: &[f64]) -> Box<dyn Join<T>> {
        let vectors = Vectors::of(subject);
        let (ratio, calibrated) = (subject.number(self.ratio), subject.number(self.calibrated));
        let scores = if vectors == Vectors::Entries {
            Scores::OfEntries {
                thresholds: found.iter().map(|mean| T::from_f64(ratio * mean)).collect(),
                calibrated: T::from_f64(calibrated),
            }
        } else {
            let scores = scores(subject, vectors.ranked(subject), found, ratio, calibrated);
            let scores: Vec<T> = scores.into_iter().map(T::from_f64).collect();
            Scores::OfVectors { vectors, count: scores.len() / subject.models, scores }
        };
        let weights = subject.numbers("weight").iter().copied().map(T::from_f64).collect();
        Box::new(Scored { weights, scores })
    }
}

/// The scores of all vectors, `[models, vectors]`, from their ranks, `[models, 2, vectors]`.
fn scores(
    subject: &Subject,
    ranked: usize,
    ranks: &[f64],
    ratio: f64,
    calibrated: f64,
) -> Vec<f64> {
    let (models, n) = (subject.models, ranked as f64);
    let count = ranks.len() / (2 * models);
    // The mean of the ranks 0 to n − 1, times the ratio.
    let thresholds = vec![ratio * ((n - 1.0) / 2.0) / n; models];
    let mut found = vec![0.0; models * count];
    let mut of_kind = vec![0.0; models * count];
    for kind in 0..2 {
        let of_model = |model: usize| &ranks[(2 * model + kind) * count..][..count];
        let significances: Vec<f64> = (0..models).flat_map(of_model).map(|rank| rank / n).collect();
        calibrated_softmax(&significances, &thresholds, calibrated, count, &mut of_kind);
        found.iter_mut().zip(&of_kind).for_each(|(score, of_kind)| *score += 0.5 * of_kind);
    }
    found
}

/// Scores of one tensor.
enum Scores<T> {
    /// By vector, `[models, count]`.
    OfVectors { vectors: Vectors, count: usize, scores: Vec<T> },
    /// By entry, from the entries themselves and what is significant in each model.
    OfEntries { thresholds: Vec<T>, calibrated: T },
}

impl<T: Real> Scores<T> {
    /// The scores of the entries of a block by themselves; empty where they are by vector.
    fn of_block(&self, rows: &[T], length: usize) -> Vec<T> {
        let Self::OfEntries { thresholds, calibrated } = self else { return Vec::new() };
        let mut scores = vec![T::ZERO; rows.len()];
        calibrated_softmax(rows, thresholds, *calibrated, length, &mut scores);
        scores
    }

    /// Write a model's scores of some entries, all of one row, multiplied by a factor.
    fn write(&self, model: usize, entries: &Range<usize>, own: &[T], factor: T, out: &mut [T]) {
        let length = out.len();
        let scores = match self {
            Self::OfEntries { .. } => &own[model * length..][..length],
            Self::OfVectors { vectors, count, scores } => {
                let first = model * count + vectors.vector(entries.start);
                if let Vectors::Rows { .. } = vectors {
                    return out.fill(factor * scores[first]);
                }
                &scores[first..][..length]
            }
        };
        out.iter_mut().zip(scores).for_each(|(out, &score)| *out = factor * score);
    }
}

struct Scored<T> {
    weights: Vec<T>,
    scores: Scores<T>,
}

impl<T: Real> Join<T> for Scored<T> {
    fn join(&self, block: &mut Block<T>) {
        let (entries, length) = (block.entries(), block.len());
        let Parts { rows, signs, out, .. } = block.parts();
        let own = self.scores.of_block(rows, length);
        out.fill(T::ZERO);
        for ((model, row), &weight) in rows.chunks_exact(length).enumerate().zip(&self.weights) {
            self.scores.write(model, &entries, &own, weight, signs);
            add_product(row, signs, out);
        }
    }

    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        let (entries, length) = (block.entries(), block.len());
        let own = self.scores.of_block(block.parts().rows, length);
        let of_model = |model| {
            let Parts { rows, signs, .. } = block.parts();
            self.scores.write(model, &entries, &own, T::ONE, signs);
            let row = &mut rows[model * length..][..length];
            multiply_each(row, signs);
            dot(gradient, row)
        };
        Some((0..self.weights.len()).map(of_model).collect())
    }
}
