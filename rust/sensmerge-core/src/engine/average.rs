//! Means of sources: of several, entry by entry, and of the rows of one.

use rayon::prelude::*;

use super::entries::Entries;
use crate::dtype::Real;

/// Entries that are read at a time.
const PART: usize = 256;

/// Rows whose sum is a partial result.
const ROWS: usize = 1024;

/// Read the mean of sources from the entry `start` on: their sum in their order, in the computing type,
/// divided once.
pub(super) fn read_mean<T: Real>(of: &[Entries], start: usize, out: &mut [T]) {
    let count = T::from_f64(of.len() as f64);
    let mut buffer = [T::ZERO; PART];
    for (place, out) in out.chunks_mut(PART).enumerate() {
        let first = start + place * PART;
        let buffer = &mut buffer[..out.len()];
        out.fill(T::ZERO);
        for source in of {
            source.read(first..first + out.len(), buffer);
            for (sum, &entry) in out.iter_mut().zip(&*buffer) {
                *sum += entry;
            }
        }
        for sum in out {
            *sum = *sum / count;
        }
    }
}

/// The mean of the `rows` rows of a source, each of `length` entries: sums of [`ROWS`] rows in float64,
/// added in order, whatever the number of threads. Zeros for no rows.
pub(super) fn mean_row(of: &Entries, rows: usize, length: usize) -> Vec<f64> {
    let sum_of = |block: usize| {
        let mut sum = vec![0.0; length];
        let mut row = vec![0.0; length];
        for index in block * ROWS..rows.min((block + 1) * ROWS) {
            of.read::<f64>(index * length..(index + 1) * length, &mut row);
            for (sum, entry) in sum.iter_mut().zip(&row) {
                *sum += entry;
            }
        }
        sum
    };
    let sums: Vec<Vec<f64>> = (0..rows.div_ceil(ROWS)).into_par_iter().map(sum_of).collect();
    let mut mean = vec![0.0; length];
    for sum in sums {
        for (total, part) in mean.iter_mut().zip(sum) {
            *total += part;
        }
    }
    let count = rows.max(1) as f64;
    for total in &mut mean {
        *total /= count;
    }
    mean
}
