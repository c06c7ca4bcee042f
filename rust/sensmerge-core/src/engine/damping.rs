//! The factors of activation-informed merging, entry by entry.

use std::ops::Range;

use super::Job;
use super::tensor::Tensor;
use crate::dtype::Real;
use crate::error::{Error, Result};

/// By how much a tensor's merged task vector is damped: `1 − s (1 − ω)`, by input channel.
pub(super) struct Factors<T> {
    /// A factor for every channel of every matrix.
    of: Vec<T>,
    /// Number of channels of a matrix.
    channels: usize,
    /// Number of entries of a matrix.
    matrix: usize,
    /// Number of entries from one channel of a matrix to the next.
    stride: usize,
}

impl<T: Real> Factors<T> {
    /// The factors of a tensor; `None` if it is not damped.
    ///
    /// # Errors
    /// [`Error::Tensor`] for activations that are not in 0 to 1.
    pub(super) fn of(job: &Job, tensor: &Tensor) -> Result<Option<Self>> {
        let Some(damping) = &tensor.merge.damping else { return Ok(None) };
        let activations = tensor.activations();
        if let Some(wrong) = activations.iter().find(|s| !(0.0..=1.0).contains(*s)) {
            let stored = damping.activations.stored();
            let name = stored.first().map_or(&tensor.output.name, |stored| &stored.name);
            let path = match stored.first() {
                Some(stored) => job.inputs.checkpoint(stored)?.path(),
                None => job.output,
            };
            let reason = format!("holds {wrong}, and activations are 0 to 1; calibrate again");
            return Err(Error::tensor(path, name, reason));
        }
        let (shape, most) = (&tensor.output.shape, 1.0 - damping.omega);
        let columns = shape.last().copied().unwrap_or(1);
        let rows = if shape.len() < 2 { 1 } else { shape[shape.len() - 2] };
        Ok(Some(Self {
            of: activations.into_iter().map(|s| T::from_f64(1.0 - s * most)).collect(),
            channels: if damping.transposed { rows } else { columns },
            matrix: rows * columns,
            stride: if damping.transposed { columns } else { 1 },
        }))
    }

    /// Write the factor of each of a range of the tensor's entries.
    pub(super) fn fill(&self, entries: &Range<usize>, mut out: &mut [T]) {
        let mut entry = entries.start;
        while !out.is_empty() {
            let (matrix, within) = (entry / self.matrix, entry % self.matrix);
            let factors = &self.of[matrix * self.channels..][..self.channels];
            let length = if self.stride == 1 {
                let channel = within % self.channels;
                let length = (self.channels - channel).min(out.len());
                out[..length].copy_from_slice(&factors[channel..channel + length]);
                length
            } else {
                let length = (self.stride - within % self.stride).min(out.len());
                out[..length].fill(factors[within / self.stride]);
                length
            };
            entry += length;
            out = &mut out[length..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two matrices of 3 × 4, whose factors say which matrix and channel they are of.
    #[test]
    fn factors_are_those_of_the_channels() {
        for (transposed, channels, stride) in [(false, 4, 1), (true, 3, 4)] {
            let of = (0..2 * channels).map(|place| place as f32).collect();
            let factors = Factors { of, channels, matrix: 12, stride };
            let naive: Vec<f32> = (0..24)
                .map(|entry: usize| {
                    let (matrix, row, column) = (entry / 12, entry % 12 / 4, entry % 4);
                    (matrix * channels + if transposed { row } else { column }) as f32
                })
                .collect();
            for start in 0..24 {
                for end in start..=24 {
                    let mut found = vec![-1.0; end - start];
                    factors.fill(&(start..end), &mut found);
                    assert_eq!(found, naive[start..end], "{start}..{end}");
                }
            }
        }
    }
}
