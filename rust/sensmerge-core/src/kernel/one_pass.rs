//! Merges in one pass, from stored bytes to stored bytes.
//!
//! ```text
//! for every entry:
//!     widen the base's
//!     for every model: widen its entry, subtract the base's, drop or trim and rescale
//!     sum them by their weights, or elect a sign and sum those that have it; divide
//!     multiply by λ, add the base, round once
//! ```
//!
//! The arithmetic is that of the kernels that do one of these things each, in the same order, so that the
//! bytes are the same. The number of models is a constant of every loop: only then is it vectorised over
//! entries, with all that belongs to an entry in registers.

use std::array::from_fn;

use super::disjoint::agrees;
use super::elect::sign;
use super::stored::{Bf16, F16, F32, Stored};
use crate::dtype::{Float, Real};
use crate::processor::widest;

/// Models, at most.
pub const MOST_MODELS: usize = 4;

/// What is merged.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// The dtype of inputs and output; not float64.
    pub dtype: Float,
    /// The models' tensors, as they are stored.
    pub models: &'a [&'a [u8]],
    /// The base's, if task vectors are merged: it is subtracted from every model, and added to the
    /// combination.
    pub base: Option<&'a [u8]>,
    /// What is done with the task vectors.
    pub sparsity: Sparsity<'a>,
    /// The weights of the models.
    pub weights: &'a [f32],
    /// How they are combined.
    pub combination: Combination<'a>,
    /// The factor of the combination where it is added to the base.
    pub lambda: f32,
}

/// What is done with task vectors before they are combined.
#[derive(Clone, Copy, Debug)]
pub enum Sparsity<'a> {
    /// Nothing.
    Dense,
    /// Entries that masks do not keep are set to 0, the others multiplied by the model's factor.
    Masked {
        /// The factors.
        scales: &'a [f32],
    },
    /// Entries of a magnitude below the model's are set to 0, the others multiplied by the model's factor.
    Trimmed {
        /// The bits of the magnitudes.
        least: &'a [i32],
        /// The factors.
        scales: &'a [f32],
    },
}

/// The combination of the models' task vectors.
#[derive(Clone, Copy, Debug)]
pub enum Combination<'a> {
    /// `Σ_i w_i δ̂_i`, divided by a number.
    Sum {
        /// The number.
        divisor: Option<f32>,
    },
    /// The sum of the `w_i δ̂_i` whose vote `v_i δ̂_i` has the sign of the sum of all votes, divided by the sum
    /// of their shares; by 1 where that is 0.
    Elected {
        /// The factors `v_i` of the votes.
        votes: &'a [f32],
        /// The shares.
        shares: &'a [f32],
        /// The sign where votes sum to 0.
        draw: f32,
    },
}

/// Merge the entries from `first` on into `out`. `masks` has a row of as many bytes for every model, if there
/// are masks; a byte of 0 stands for an entry that is not kept.
///
/// # Returns
/// Whether `out` is right: all results are finite, and no entry that a mask sets to 0 is NaN. Otherwise `out`
/// holds anything.
///
/// # Panics
/// If a length does not match, for another number of models than 1 to [`MOST_MODELS`], for float64, and for
/// sparse or elected parameters without a base.
#[must_use]
pub fn merge(merge: &Merge, masks: &[u8], first: usize, out: &mut [u8]) -> bool {
    match merge.dtype {
        Float::F16 => of_dtype::<F16>(merge, masks, first, out),
        Float::Bf16 => of_dtype::<Bf16>(merge, masks, first, out),
        Float::F32 => of_dtype::<F32>(merge, masks, first, out),
        Float::F64 => panic!("float64 is not merged in float32"),
    }
}

fn of_dtype<S: Stored>(merge: &Merge, masks: &[u8], first: usize, out: &mut [u8]) -> bool {
    match merge.models.len() {
        1 => of_models::<S, 1>(merge, masks, first, out),
        2 => of_models::<S, 2>(merge, masks, first, out),
        3 => of_models::<S, 3>(merge, masks, first, out),
        4 => of_models::<S, 4>(merge, masks, first, out),
        count => panic!("{count} models are not merged in one pass"),
    }
}

fn of_models<S: Stored, const K: usize>(
    merge: &Merge,
    masks: &[u8],
    first: usize,
    out: &mut [u8],
) -> bool {
    let out = S::entries_mut(out);
    let length = out.len();
    let rows = Rows::<S, K> {
        models: from_fn(|model| &S::entries(merge.models[model])[first..first + length]),
        base: merge.base.map(|base| &S::entries(base)[first..first + length]),
        lambda: merge.lambda,
    };
    match merge.sparsity {
        Sparsity::Dense => combined(merge, rows, Dense, out),
        Sparsity::Masked { scales } => {
            let keep = from_fn(|model| &masks[model * length..(model + 1) * length]);
            combined(merge, rows, Masked { keep, scales: constants(scales) }, out)
        }
        Sparsity::Trimmed { least, scales } => {
            let trimmed = Trimmed { least: constants(least), scales: constants(scales) };
            combined(merge, rows, trimmed, out)
        }
    }
}

fn combined<S: Stored, P: Sparsify<K>, const K: usize>(
    merge: &Merge,
    rows: Rows<S, K>,
    sparsify: P,
    out: &mut [S::Entry],
) -> bool {
    let weights = constants(merge.weights);
    match merge.combination {
        Combination::Sum { divisor } => {
            let sum = Sum { weights, divisor };
            match rows.base {
                Some(base) => task_vectors(rows, base, sparsify, sum, out),
                None => parameters(rows, sum, out),
            }
        }
        Combination::Elected { votes, shares, draw } => {
            let (votes, shares) = (constants(votes), constants(shares));
            let elected = Elected { votes, weights, shares, draw };
            let base = rows.base.expect("task vectors have a base");
            task_vectors(rows, base, sparsify, elected, out)
        }
    }
}

fn constants<T: Copy, const K: usize>(values: &[T]) -> [T; K] {
    values.try_into().expect("there is a value for every model")
}

/// The stored entries of all models, cut to the same range.
struct Rows<'r, S: Stored, const K: usize> {
    models: [&'r [S::Entry]; K],
    base: Option<&'r [S::Entry]>,
    lambda: f32,
}

/// Changes entries of task vectors.
trait Sparsify<const K: usize>: Copy {
    /// Whether it may set NaN to 0.
    const HIDES: bool;

    /// The changed entry of a model.
    fn apply(&self, model: usize, entry: usize, delta: f32) -> f32;
}

#[derive(Clone, Copy)]
struct Dense;

impl<const K: usize> Sparsify<K> for Dense {
    const HIDES: bool = false;

    #[inline(always)]
    fn apply(&self, _: usize, _: usize, delta: f32) -> f32 {
        delta
    }
}

#[derive(Clone, Copy)]
struct Masked<'m, const K: usize> {
    keep: [&'m [u8]; K],
    scales: [f32; K],
}

impl<const K: usize> Sparsify<K> for Masked<'_, K> {
    const HIDES: bool = true;

    #[inline(always)]
    fn apply(&self, model: usize, entry: usize, delta: f32) -> f32 {
        (delta * self.scales[model]).only_if(self.keep[model][entry] != 0)
    }
}

#[derive(Clone, Copy)]
struct Trimmed<const K: usize> {
    least: [i32; K],
    scales: [f32; K],
}

impl<const K: usize> Sparsify<K> for Trimmed<K> {
    // Its magnitude is above that of infinity.
    const HIDES: bool = false;

    #[inline(always)]
    fn apply(&self, model: usize, _: usize, delta: f32) -> f32 {
        delta.only_if(delta.magnitude() >= self.least[model]) * self.scales[model]
    }
}

// Loops over models have their number as bounds. With iterators in `combine`, the loop over entries is no longer
// vectorised and takes twelve times the instructions.

/// Combines the entries of all models.
trait Combine<const K: usize>: Copy {
    fn combine(&self, deltas: [f32; K]) -> f32;
}

#[derive(Clone, Copy)]
struct Sum<const K: usize> {
    weights: [f32; K],
    divisor: Option<f32>,
}

impl<const K: usize> Combine<K> for Sum<K> {
    #[expect(clippy::needless_range_loop, reason = "see above")]
    #[inline(always)]
    fn combine(&self, deltas: [f32; K]) -> f32 {
        let mut sum = self.weights[0] * deltas[0];
        for model in 1..K {
            sum += self.weights[model] * deltas[model];
        }
        self.divisor.map_or(sum, |divisor| sum / divisor)
    }
}

#[derive(Clone, Copy)]
struct Elected<const K: usize> {
    votes: [f32; K],
    weights: [f32; K],
    shares: [f32; K],
    draw: f32,
}

impl<const K: usize> Combine<K> for Elected<K> {
    #[inline(always)]
    fn combine(&self, deltas: [f32; K]) -> f32 {
        let votes = self.votes.iter().zip(deltas).map(|(vote, delta)| vote * delta);
        let votes = votes.fold(0.0, |sum, vote| sum + vote);
        let sign = sign(votes, self.draw);
        let (mut sum, mut total) = (0.0, 0.0);
        for (model, delta) in deltas.into_iter().enumerate() {
            let agrees = agrees(self.votes[model] * delta, sign);
            sum += (self.weights[model] * delta).only_if(agrees);
            total += self.shares[model].only_if(agrees);
        }
        sum / if total == 0.0 { 1.0 } else { total }
    }
}

widest! {
    fn task_vectors<S: Stored, P: Sparsify<K>, C: Combine<K>; K>(
        rows: Rows<S, K>,
        base: &[S::Entry],
        sparsify: P,
        combine: C,
        out: &mut [S::Entry],
    ) -> bool {
        let length = out.len();
        let (models, base) = (rows.models.map(|row| &row[..length]), &base[..length]);
        let (mut largest, mut largest_input) = (0, 0);
        for entry in 0..length {
            let base = S::widen(base[entry]);
            let mut deltas = [0.0; K];
            for model in 0..K {
                let delta = S::widen(models[model][entry]) - base;
                if P::HIDES {
                    largest_input = delta.magnitude().max(largest_input);
                }
                deltas[model] = sparsify.apply(model, entry, delta);
            }
            let merged = base + rows.lambda * combine.combine(deltas);
            largest = merged.magnitude().max(largest);
            out[entry] = S::narrow(merged);
        }
        // Only NaN is above infinity.
        largest < S::BEYOND && largest_input <= f32::INFINITY.magnitude()
    }
}

widest! {
    fn parameters<S: Stored, C: Combine<K>; K>(
        rows: Rows<S, K>,
        combine: C,
        out: &mut [S::Entry],
    ) -> bool {
        let length = out.len();
        let models = rows.models.map(|row| &row[..length]);
        let mut largest = 0;
        for entry in 0..length {
            let mut values = [0.0; K];
            for model in 0..K {
                values[model] = S::widen(models[model][entry]);
            }
            let merged = combine.combine(values);
            largest = merged.magnitude().max(largest);
            out[entry] = S::narrow(merged);
        }
        largest < S::BEYOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::disjoint::{Agreement, Divisor, disjoint};
    use crate::kernel::elect::elect_sign;
    use crate::kernel::finite::all_finite;
    use crate::kernel::random_drop::drop_and_rescale;
    use crate::kernel::samples::{any, finite, rows};
    use crate::kernel::task_vector::subtract;
    use crate::kernel::trim::trim;
    use crate::kernel::weighted_sum::{divide, multiply, scale_and_add, weighted_sum};
    use proptest::prelude::*;

    fn stored(values: &[f32], dtype: Float) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * dtype.size()];
        f32::narrow(values, dtype, &mut bytes);
        bytes
    }

    fn widened(bytes: &[u8], dtype: Float) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / dtype.size()];
        f32::widen(dtype, bytes, &mut values);
        values
    }

    /// The same by kernels that do one thing each; `None` where a result is not finite or NaN is dropped.
    fn by_steps(merge: &Merge, masks: &[u8], votes: (Agreement, Divisor)) -> Option<Vec<u8>> {
        let base = merge.base.map(|base| widened(base, merge.dtype));
        let length = merge.models[0].len() / merge.dtype.size();
        let mut dropped_nan = false;
        let mut rows = Vec::new();
        for (model, stored) in merge.models.iter().enumerate() {
            let mut row = widened(stored, merge.dtype);
            if let Some(base) = &base {
                subtract(&mut row, base);
            }
            match merge.sparsity {
                Sparsity::Dense => {}
                Sparsity::Masked { scales } => {
                    dropped_nan |= row.iter().any(|value| value.is_nan());
                    let keep = &masks[model * length..(model + 1) * length];
                    drop_and_rescale(&mut row, keep, scales[model]);
                }
                Sparsity::Trimmed { least, scales } => {
                    trim(&mut row, least[model]);
                    multiply(&mut row, scales[model]);
                }
            }
            rows.extend(row);
        }
        let mut out = vec![0.0; length];
        match merge.combination {
            Combination::Sum { divisor } => {
                weighted_sum(&rows, merge.weights, &mut out);
                if let Some(divisor) = divisor {
                    divide(&mut out, divisor);
                }
            }
            Combination::Elected { votes: factors, draw, .. } => {
                let mut signs = vec![0.0; length];
                elect_sign(&rows, factors, draw, &mut signs);
                disjoint(&rows, merge.weights, &signs, votes.0, votes.1, &mut out);
            }
        }
        if let Some(base) = &base {
            scale_and_add(base, merge.lambda, &mut out);
        }
        let bytes = stored(&out, merge.dtype);
        let finite = all_finite(&out) && all_finite(&widened(&bytes, merge.dtype));
        (finite && !dropped_nan).then_some(bytes)
    }

    /// Compare, with settings that the digits of `choice` choose.
    fn check(length: usize, rows: &[f32], weights: &[f32], choice: usize) {
        let pick = |place: u32, of: usize| choice / 7_usize.pow(place) % 7 % of;
        let dtype = [Float::F16, Float::Bf16, Float::F32][pick(0, 3)];
        let models: Vec<Vec<u8>> =
            (0..weights.len()).map(|i| stored(&rows[i * length..][..length], dtype)).collect();
        let models: Vec<&[u8]> = models.iter().map(Vec::as_slice).collect();
        let base: Vec<f32> = rows[..length].iter().rev().map(|value| value * 0.5).collect();
        let base = stored(&base, dtype);
        let masks: Vec<u8> =
            (0..length * weights.len()).map(|j| u8::from((j * 7 + pick(1, 7)) % 3 > 0)).collect();
        let scales: Vec<f32> = (0..weights.len()).map(|i| 1.0 + 0.25 * i as f32).collect();
        let least: Vec<i32> = (0..weights.len()).map(|i| (0.5 * i as f32).magnitude()).collect();
        let agreement = [Agreement::Weighted, Agreement::Unweighted][pick(2, 2)];
        let divisor = [Divisor::One, Divisor::Weights, Divisor::Count][pick(3, 3)];
        let (ones, zeros) = (vec![1.0; weights.len()], vec![0.0; weights.len()]);
        let votes = if agreement == Agreement::Weighted { weights } else { &ones };
        let shares = match divisor {
            Divisor::One => &zeros,
            Divisor::Count => &ones,
            Divisor::Weights | Divisor::AtLeastSmallest => weights,
        };
        let parameters = pick(4, 7) == 0;
        let merged = Merge {
            dtype,
            models: &models,
            base: (!parameters).then_some(&base),
            sparsity: match pick(5, 3) {
                _ if parameters => Sparsity::Dense,
                0 => Sparsity::Dense,
                1 => Sparsity::Masked { scales: &scales },
                _ => Sparsity::Trimmed { least: &least, scales: &scales },
            },
            weights,
            combination: match pick(6, 4) {
                0 => Combination::Sum { divisor: None },
                1 => Combination::Sum { divisor: Some(1.5) },
                _ if parameters => Combination::Sum { divisor: None },
                _ => Combination::Elected { votes, shares, draw: [1.0, -1.0, 0.0][pick(7, 3)] },
            },
            lambda: 0.75,
        };
        let mut out = vec![0; length * dtype.size()];
        // Two calls, as for two blocks of a tensor.
        let cut = length.min(1024);
        let (front, back) = out.split_at_mut(cut * dtype.size());
        let part = |range: std::ops::Range<usize>| -> Vec<u8> {
            masks.chunks(length.max(1)).flat_map(|mask| mask[range.clone()].to_vec()).collect()
        };
        let right =
            merge(&merged, &part(0..cut), 0, front) & merge(&merged, &part(cut..length), cut, back);
        let expected = by_steps(&merged, &masks, (agreement, divisor));
        assert_eq!(right, expected.is_some(), "{merged:?}");
        if let Some(expected) = expected {
            assert!(out == expected, "{:?} {:?} {dtype:?}", merged.sparsity, merged.combination);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_bytes_are_those_of_single_kernels(
            (length, rows, weights) in rows(finite()), choice in 0..7_usize.pow(8),
        ) {
            check(length, &rows, &weights, choice);
        }

        #[test]
        fn what_is_not_finite_is_seen(
            (length, rows, weights) in rows(any()), choice in 0..7_usize.pow(8),
        ) {
            check(length, &rows, &weights, choice);
        }
    }
}
