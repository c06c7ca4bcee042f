//! Scales of quantised tensors: one for every run of a row's entries.
//!
//! A row is cut into runs of `run` entries, the last of which may be shorter; `scales` holds the
//! scale of every run.

use crate::dtype::{Code, Real};
use crate::processor::widest;

widest! {
    /// Multiply the entries of every run by its scale. The first run has only `first` entries.
    ///
    /// # Panics
    /// If there are fewer scales than runs, or `run` is 0.
    pub fn multiply_runs<T: Real>(values: &mut [T], first: usize, run: usize, scales: &[T]) {
        let (head, rest) = values.split_at_mut(first.min(values.len()));
        assert!(scales.len() > rest.len().div_ceil(run));
        for value in head {
            *value = *value * scales[0];
        }
        for (values, &scale) in rest.chunks_mut(run).zip(&scales[1..]) {
            for value in values {
                *value = *value * scale;
            }
        }
    }
}

widest! {
    /// Raise every run's entry of `largest` to the largest finite magnitude among its entries.
    ///
    /// # Panics
    /// If `run` is 0.
    pub fn raise_to_largest<T: Real>(row: &[T], run: usize, largest: &mut [T]) {
        for (values, largest) in row.chunks(run).zip(largest) {
            // Lanes without an order among them, so that the loop vectorises.
            let mut lanes = [T::ZERO; 16];
            for part in values.chunks(16) {
                for (lane, value) in lanes.iter_mut().zip(part) {
                    let magnitude = value.abs();
                    let counts = magnitude < T::INFINITY && magnitude > *lane;
                    *lane = if counts { magnitude } else { *lane };
                }
            }
            for lane in lanes {
                *largest = if lane > *largest { lane } else { *largest };
            }
        }
    }
}

/// Divide the entries of every run by its scale and code them, rounded once. `buffer` holds as many
/// entries as the row.
///
/// # Panics
/// If a length does not match.
pub fn divide_and_encode<T: Real>(
    row: &[T],
    run: usize,
    scales: &[T],
    code: Code,
    buffer: &mut [T],
    out: &mut [u8],
) {
    divide_runs(row, run, scales, buffer);
    code.encode(buffer, out);
}

widest! {
    fn divide_runs<T: Real>(row: &[T], run: usize, scales: &[T], out: &mut [T]) {
        assert_eq!((row.len(), row.len().div_ceil(run)), (out.len(), scales.len()));
        for ((values, out), &scale) in row.chunks(run).zip(out.chunks_mut(run)).zip(scales) {
            for (out, &value) in out.iter_mut().zip(values) {
                *out = value / scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, finite, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_run_has_its_scale(values in vector(finite()), run in 1..40_usize, first in 0..40_usize) {
            let first = first.min(run);
            let scale = |place: usize| 0.5 + place as f32;
            let of = |place: usize| if place < first { 0 } else { 1 + (place - first) / run };
            let scales: Vec<f32> = (0..values.len() + 2).map(scale).collect();
            let mut found = values.clone();
            multiply_runs(&mut found, first, run, &scales);
            let expected: Vec<f32> =
                values.iter().enumerate().map(|(place, value)| value * scale(of(place))).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn the_largest_of_a_run_is_a_finite_magnitude(values in vector(any()), run in 1..40_usize) {
            let runs = values.len().div_ceil(run);
            let mut found = vec![0.0_f32; runs];
            raise_to_largest(&values, run, &mut found);
            let expected: Vec<f32> = values
                .chunks(run)
                .map(|run| run.iter().map(|v| v.abs()).filter(|v| v.is_finite()).fold(0.0, f32::max))
                .collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_run_is_divided_and_coded(values in vector(finite()), run in 1..40_usize) {
            let scales: Vec<f32> =
                (0..values.len().div_ceil(run)).map(|place| 0.25 + place as f32).collect();
            let divided: Vec<f32> =
                values.iter().enumerate().map(|(place, value)| value / scales[place / run]).collect();
            let mut buffer = vec![0.0; values.len()];
            for code in [Code::E4m3, Code::Int4] {
                let length = values.len().div_ceil(code.per_byte());
                let (mut found, mut expected) = (vec![0; length], vec![0; length]);
                divide_and_encode(&values, run, &scales, code, &mut buffer, &mut found);
                code.encode(&divided, &mut expected);
                prop_assert_eq!(found, expected);
            }
        }
    }
}
