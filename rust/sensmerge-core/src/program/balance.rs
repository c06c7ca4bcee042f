//! The mean of the task vectors by scores for which their entries compete (PCB-Merging, Du et al. 2024).
//!
//! ```text
//! in one sweep: the magnitudes that the smallest and the largest entries of every model are cut to
//! in one sweep: the scores of all entries (`kernel::balance`); of every model, the score from which on an
//!     entry is among the largest, and the largest
//! in the last sweep: the mean of the entries, weighted by how far their scores are above the former
//! ```

use super::block::{Block, Parts};
use super::cut::{Cut, Kept, Target};
use super::derived::Derived;
use super::threshold::cuts_by_tensor;
use super::{Combine, CombineOn, Join, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::balance::{Bounds, parts_of_mean, positive_scores};
use crate::kernel::derivative::dot;
use crate::kernel::weighted_sum::weighted_sum;

/// The fraction of entries that are cut at each end of the magnitudes.
const CUT: f64 = 1e-4;

/// Numbers of [`Bounds`].
const BOUNDS: usize = 4;

/// The mean of the task vectors by the scores of their entries, each part times the model's weight.
#[derive(Debug)]
pub(crate) struct Balanced {
    /// The parameter that holds the fraction of entries that count.
    pub(crate) density: &'static str,
}

impl Combine for Balanced {
    fn sweeps(&self) -> u64 {
        2
    }

    fn reductions(&self) -> String {
        "bounds of competing entries".into()
    }

    fn reduced_parameters(&self) -> Vec<&'static str> {
        vec![self.density]
    }
}

impl<T: Real> CombineOn<T> for Balanced {
    fn reduce(&self, sweep: &dyn Sweep<T>) -> Result<Vec<Vec<f64>>> {
        let subjects = sweep.subjects();
        // Of every model two numbers, found by their ranks in ascending order.
        let targets = |ranks: &dyn Fn(&Subject, usize) -> [u64; 2]| -> Vec<Vec<Target>> {
            let of_model = |subject: &Subject, row: usize| {
                ranks(subject, row).map(|rank| Target { row, kept: Kept::UpToRank(rank) })
            };
            let of_tensor = |subject: &Subject| {
                (0..subject.models).flat_map(|row| of_model(subject, row)).collect()
            };
            subjects.iter().map(of_tensor).collect()
        };
        let ends = targets(&|subject, _| {
            let last = last_rank(subject);
            let cut = (CUT * subject.elements() as f64).floor() as u64;
            [cut.min(last), last - cut.min(last)]
        });
        let magnitudes = numbers(cuts_by_tensor(sweep, &ends)?);
        let of_model =
            |found: &[f64]| Bounds { low: found[0], high: found[1], ..Bounds::default() };
        let bounds: Vec<Vec<Bounds>> =
            magnitudes.iter().map(|found| found.chunks_exact(2).map(of_model).collect()).collect();
        let derive = |tensor: usize, block: &mut Block<T>| {
            positive_scores(block.parts().rows, &bounds[tensor]);
        };
        let thresholds = targets(&|subject, row| {
            let share = 1.0 - subject.numbers(self.density)[row];
            let last = last_rank(subject);
            [((share * subject.elements() as f64).floor() as u64).min(last), last]
        });
        let scores = numbers(cuts_by_tensor(&Derived::of_models(sweep, &derive), &thresholds)?);
        let whole = |(magnitudes, scores): (&Vec<f64>, Vec<f64>)| {
            let of_models = magnitudes.chunks_exact(2).zip(scores.chunks_exact(2));
            of_models.flat_map(|(ends, scores)| [ends, scores].concat()).collect()
        };
        Ok(magnitudes.iter().zip(scores).map(whole).collect())
    }

    fn bind(&self, subject: &Subject, found: &[f64]) -> Box<dyn Join<T>> {
        let of_model = |found: &[f64]| Bounds {
            low: found[0],
            high: found[1],
            threshold: found[2],
            top: found[3],
        };
        Box::new(Competing {
            weights: subject.numbers("weight").iter().copied().map(T::from_f64).collect(),
            bounds: found.chunks_exact(BOUNDS).map(of_model).collect(),
        })
    }
}

/// The rank of the largest of a tensor's entries, 0 being that of the smallest.
fn last_rank(subject: &Subject) -> u64 {
    (subject.elements() as u64).saturating_sub(1)
}

/// The numbers at which cuts were made; 0 in tensors without entries.
fn numbers<T: Real>(cuts: Vec<Vec<Cut<T>>>) -> Vec<Vec<f64>> {
    let number = |cut: Cut<T>| match cut {
        Cut::Exactly { magnitude, .. } | Cut::AtLeast(magnitude) => {
            T::of_magnitude(magnitude).to_f64()
        }
        Cut::All | Cut::Nothing => 0.0,
    };
    cuts.into_iter().map(|cuts| cuts.into_iter().map(number).collect()).collect()
}

struct Competing<T> {
    weights: Vec<T>,
    bounds: Vec<Bounds>,
}

impl<T: Real> Join<T> for Competing<T> {
    fn join(&self, block: &mut Block<T>) {
        let Parts { rows, out, .. } = block.parts();
        parts_of_mean(rows, &self.bounds);
        weighted_sum(rows, &self.weights, out);
    }

    fn derivatives(&self, block: &mut Block<T>, gradient: &[T]) -> Option<Vec<f64>> {
        parts_of_mean(block.parts().rows, &self.bounds);
        Some((0..block.models()).map(|model| dot(gradient, block.row(model))).collect())
    }
}
