//! A guess of the magnitude of a given rank, from a sample of entries spread evenly over a task vector.

use std::ops::Range;

use super::Subject;
use super::block::BLOCK;
use super::sweep::Reader;
use crate::dtype::Real;
use crate::kernel::bracket::Bracket;

/// Consecutive entries of a run: half a cache line of 16-bit numbers.
const RUN: usize = 16;

/// The magnitudes of every model's task vector in `runs` runs of [`RUN`] entries, spread evenly over a
/// tensor; of all entries if the tensor has no more. One list per model.
pub(super) fn sample<T: Real>(
    subject: &Subject,
    runs: usize,
    reader: &mut dyn Reader<T>,
) -> Vec<Vec<T::Magnitude>> {
    let elements = subject.elements();
    let mut samples = vec![Vec::with_capacity(elements.min(runs * RUN)); subject.models];
    let mut take = |entries: Range<usize>| {
        let block = reader.read(entries);
        for (model, sample) in samples.iter_mut().enumerate() {
            sample.extend(block.row(model).iter().map(|delta| delta.magnitude()));
        }
    };
    if elements <= runs * RUN {
        (0..elements).step_by(BLOCK).for_each(|start| take(start..elements.min(start + BLOCK)));
    } else {
        let last = (elements - RUN) as u128;
        let start = |run| (last * run as u128 / runs as u128) as usize;
        (0..runs).map(start).for_each(|start| take(start..start + RUN));
    }
    samples
}

/// A bracket for the magnitude below which the fraction `share` of all entries lies: from the quantile
/// `share - margin` of the sample to the quantile `share + margin`.
pub(super) fn bracket<T: Real>(
    sample: &mut [T::Magnitude],
    share: f64,
    margin: f64,
) -> Bracket<T::Magnitude> {
    let size = sample.len() as f64;
    let low = ((share - margin) * size).floor();
    let high = ((share + margin) * size).ceil();
    Bracket {
        low: if low < 0.0 || sample.is_empty() {
            T::Magnitude::default()
        } else {
            *sample.select_nth_unstable(low as usize).1
        },
        high: if high >= size {
            T::LARGEST_MAGNITUDE
        } else {
            *sample.select_nth_unstable(high as usize).1
        },
    }
}
