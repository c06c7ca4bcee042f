//! The competition of parameters (PCB-Merging, Du et al. 2024): a score for every entry of every task vector,
//! and their mean by these scores.
//!
//! ```text
//! s_ij = exp(K (n_ij² − 1)) · tanh(δ_ij Σ_k δ_kj)     K models
//! n_ij = (|δ_ij| − low_i) / (high_i − low_i)          |δ_ij| cut to the bounds; 0 where they are equal
//! ```
//!
//! The first factor weighs an entry within its model, the second against the other models. Scores are
//! computed in float64 and rounded once. (The authors' `exp(K n_ij²)` is larger by the same factor for all.)

use super::elect::LANES;
use super::elementary::{exp, tanh};
use crate::dtype::Real;
use crate::processor::widest;

/// The least sum of scales that divides, that of the authors' code.
const SMALLEST_DIVISOR: f64 = 1e-12;

/// What is known of one model's entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Smaller magnitudes count as this one.
    pub low: f64,
    /// Larger magnitudes count as this one.
    pub high: f64,
    /// Scores up to this one count as 0.
    pub threshold: f64,
    /// The largest score.
    pub top: f64,
}

widest! {
    /// Replace the entries of all rows by their scores, or by 0 where they are not positive. `deltas` holds
    /// one row per element of `bounds`, of which thresholds and largest scores are not read.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn positive_scores<T: Real>(deltas: &mut [T], bounds: &[Bounds]) {
        let length = deltas.len() / bounds.len().max(1);
        assert_eq!(deltas.len(), bounds.len() * length);
        let whole = length - length % LANES;
        for start in (0..whole).step_by(LANES) {
            score::<LANES, T>(deltas, bounds, length, start);
        }
        for start in whole..length {
            score::<1, T>(deltas, bounds, length, start);
        }
    }
}

#[inline(always)]
fn score<const N: usize, T: Real>(
    deltas: &mut [T],
    bounds: &[Bounds],
    length: usize,
    start: usize,
) {
    let sums = sums::<N, T>(deltas, length, start, bounds.len());
    for (row, bounds_of_row) in bounds.iter().enumerate() {
        let deltas = &mut deltas[row * length + start..][..N];
        for lane in 0..N {
            deltas[lane] = positive_score(deltas[lane], sums[lane], bounds_of_row, bounds.len());
        }
    }
}

widest! {
    /// Replace `δ_ij` by `t_ij δ̂_ij / Σ_k t_kj`, its part in the mean, with `δ̂_ij` for `δ_ij` cut to the
    /// bounds of its magnitude and `t_ij = (s_ij − threshold_i) / (top_i − threshold_i)`: 0 where that is
    /// negative or `s_ij` is not positive, 1 where the divisor is 0. A sum of the `t_kj` below 1e-12 counts
    /// as 1e-12. Where the sum of the `δ_ij` is NaN, all parts are NaN.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn parts_of_mean<T: Real>(deltas: &mut [T], bounds: &[Bounds]) {
        let length = deltas.len() / bounds.len().max(1);
        assert_eq!(deltas.len(), bounds.len() * length);
        let whole = length - length % LANES;
        for start in (0..whole).step_by(LANES) {
            part::<LANES, T>(deltas, bounds, length, start);
        }
        for start in whole..length {
            part::<1, T>(deltas, bounds, length, start);
        }
    }
}

#[inline(always)]
fn part<const N: usize, T: Real>(deltas: &mut [T], bounds: &[Bounds], length: usize, start: usize) {
    let sums = sums::<N, T>(deltas, length, start, bounds.len());
    let mut totals = [0.0; N];
    for (row, bounds_of_row) in bounds.iter().enumerate() {
        let deltas = &mut deltas[row * length + start..][..N];
        for lane in 0..N {
            let delta = deltas[lane];
            let score = positive_score(delta, sums[lane], bounds_of_row, bounds.len());
            let scale = scale(score.to_f64(), bounds_of_row);
            totals[lane] += scale;
            deltas[lane] = T::from_f64(scale * cut(delta.to_f64(), bounds_of_row));
        }
    }
    let divisors =
        totals.map(|total| if total < SMALLEST_DIVISOR { SMALLEST_DIVISOR } else { total });
    for row in 0..bounds.len() {
        let deltas = &mut deltas[row * length + start..][..N];
        for lane in 0..N {
            let part = deltas[lane].to_f64() / divisors[lane];
            deltas[lane] = T::from_f64(if sums[lane].is_nan() { f64::NAN } else { part });
        }
    }
}

/// The sums over the rows of the `N` entries from `start` on.
#[inline(always)]
fn sums<const N: usize, T: Real>(
    deltas: &[T],
    length: usize,
    start: usize,
    rows: usize,
) -> [f64; N] {
    let mut sums = [0.0; N];
    for row in 0..rows {
        let deltas = &deltas[row * length + start..][..N];
        for lane in 0..N {
            sums[lane] += deltas[lane].to_f64();
        }
    }
    sums
}

#[inline(always)]
fn positive_score<T: Real>(delta: T, sum: f64, bounds: &Bounds, models: usize) -> T {
    let delta = delta.to_f64();
    let range = bounds.high - bounds.low;
    let size = cut(delta, bounds).abs() - bounds.low;
    let normal = if range > 0.0 { size / range } else { 0.0 };
    let within = exp(models as f64 * (normal * normal - 1.0));
    let score = T::from_f64(within * tanh(delta * sum));
    score.only_if(score > T::ZERO)
}

/// The number with its magnitude cut to the bounds.
#[inline(always)]
fn cut(delta: f64, bounds: &Bounds) -> f64 {
    let size = delta.abs();
    let size = if size < bounds.low { bounds.low } else { size };
    let size = if size > bounds.high { bounds.high } else { size };
    if delta < 0.0 { -size } else { size }
}

#[inline(always)]
fn scale(score: f64, bounds: &Bounds) -> f64 {
    let range = bounds.top - bounds.threshold;
    let counts = (score > 0.0) & (score >= bounds.threshold);
    let scale = if range > 0.0 { (score - bounds.threshold) / range } else { 1.0 };
    if counts { scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, finite, rows};
    use proptest::prelude::*;

    fn naive(column: &[f64], bounds: &[Bounds]) -> Vec<f64> {
        let sum: f64 = column.iter().sum();
        let of = |(&delta, bounds): (&f64, &Bounds)| {
            let size = delta.abs().clamp(bounds.low, bounds.high) - bounds.low;
            let normal =
                if bounds.high > bounds.low { size / (bounds.high - bounds.low) } else { 0.0 };
            let within = (column.len() as f64 * (normal.powi(2) - 1.0)).exp();
            (within * (delta * sum).tanh()).max(0.0)
        };
        column.iter().zip(bounds).map(of).collect()
    }

    proptest! {
        #[test]
        fn as_the_formula_says((length, rows, weights) in rows(finite()), equal in proptest::bool::ANY) {
            let low = |i: usize| 0.1 * i as f64;
            let bounds: Vec<Bounds> = (0..weights.len())
                .map(|i| Bounds {
                    low: low(i),
                    high: low(i) + if equal { 0.0 } else { 2.5 },
                    threshold: 0.01 * i as f64,
                    top: 0.9,
                })
                .collect();
            let mut scores = rows.clone();
            positive_scores(&mut scores, &bounds);
            let mut parts = rows.clone();
            parts_of_mean(&mut parts, &bounds);
            for j in 0..length {
                let column: Vec<f64> =
                    (0..weights.len()).map(|i| f64::from(rows[i * length + j])).collect();
                let expected = naive(&column, &bounds);
                let scale = |(score, bounds): (&f64, &Bounds)| {
                    let above = (score - bounds.threshold) / (bounds.top - bounds.threshold);
                    if *score > 0.0 { above.max(0.0) } else { 0.0 }
                };
                let scales: Vec<f64> = expected.iter().zip(&bounds).map(scale).collect();
                let total: f64 = scales.iter().sum();
                for i in 0..weights.len() {
                    let found = f64::from(scores[i * length + j]);
                    prop_assert!((found - expected[i]).abs() < 1e-6, "{found} {}", expected[i]);
                    let size = column[i].abs().clamp(bounds[i].low, bounds[i].high);
                    let found = f64::from(parts[i * length + j]);
                    // Where totals are tiny, the rounding of scores decides.
                    if total > 1e-3 {
                        let part = scales[i] * size.copysign(column[i]) / total;
                        prop_assert!((found - part).abs() < 1e-3, "{found} {part}");
                    }
                    // Products of subnormal numbers are rounded coarsely.
                    prop_assert!(found.abs() <= size * 1.000_001 + 1e-36, "{found} {size}");
                }
            }
        }

        #[test]
        fn nan_reaches_the_mean((length, rows, weights) in rows(any())) {
            let bounds = vec![Bounds { low: 0.0, high: 2.0, threshold: 0.0, top: 1.0 }; weights.len()];
            let mut parts = rows.clone();
            parts_of_mean(&mut parts, &bounds);
            for j in 0..length {
                let sum: f64 = (0..weights.len()).map(|i| f64::from(rows[i * length + j])).sum();
                for i in 0..weights.len() {
                    prop_assert_eq!(parts[i * length + j].is_nan(), sum.is_nan());
                }
            }
        }
    }

    #[test]
    fn of_equal_scores_all_count() {
        let bounds = Bounds { low: 0.5, high: 0.5, threshold: 0.2, top: 0.2 };
        assert_eq!(
            [scale(0.2, &bounds), scale(0.1, &bounds), scale(0.3, &bounds)],
            [1.0, 0.0, 1.0]
        );
        let zero = Bounds::default();
        assert_eq!([scale(0.0, &zero), scale(0.1, &zero)], [0.0, 1.0]);
    }
}
