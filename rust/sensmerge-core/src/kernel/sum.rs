//! Sums of a fixed shape, which give the same bits on every SIMD level.
//!
//! ```text
//! 16 lanes of float64, all 0
//! for every entry j, in order: add its term to lane j % 16
//! fold the lanes in halves: add lanes 8..16 to 0..8, then 4..8 to 0..4, 2..4 to 0..2, 1 to 0
//! ```
//!
//! Floating-point addition is not associative, so that the compiler may vectorise this shape but not
//! change it. A tensor's sum is the sum of its blocks' sums, in index order; blocks are cut in the
//! same places whatever the number of threads and the size of chunks.

use super::entries;
use crate::dtype::{Float, Real};
use crate::processor::widest;

const LANES: usize = 16;

/// `Σ_j |x_j|`.
#[must_use]
pub fn l1<T: Real>(values: &[T]) -> f64 {
    sum(values, values, |value, _| value.abs().to_f64())
}

widest! {
    /// [`l1`] of all entries, and of those that are kept. `keep` is 0 for the others.
    ///
    /// # Panics
    /// If the lengths differ.
    #[must_use]
    pub fn l1_of_kept<T: Real>(values: &[T], keep: &[u8]) -> [f64; 2] {
        assert_eq!(values.len(), keep.len());
        let (mut all, mut kept) = ([0.0; LANES], [0.0; LANES]);
        let (whole, rest) = values.as_chunks::<LANES>();
        let (whole_keep, rest_keep) = keep.as_chunks::<LANES>();
        for (values, keep) in whole.iter().zip(whole_keep) {
            for lane in 0..LANES {
                all[lane] += values[lane].abs().to_f64();
                kept[lane] += values[lane].abs().only_if(keep[lane] != 0).to_f64();
            }
        }
        for (lane, (value, &keep)) in rest.iter().zip(rest_keep).enumerate() {
            all[lane] += value.abs().to_f64();
            kept[lane] += value.abs().only_if(keep != 0).to_f64();
        }
        [fold(&mut all), fold(&mut kept)]
    }
}

/// [`l1_of_kept`] of the entries that are finite, which is slower.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn l1_of_finite<T: Real>(values: &[T], keep: &[u8]) -> [f64; 2] {
    assert_eq!(values.len(), keep.len());
    let (mut all, mut kept) = ([0.0; LANES], [0.0; LANES]);
    for (entry, (value, &keep)) in values.iter().zip(keep).enumerate() {
        let magnitude = value.abs();
        if magnitude < T::INFINITY {
            all[entry % LANES] += magnitude.to_f64();
            kept[entry % LANES] += magnitude.only_if(keep != 0).to_f64();
        }
    }
    [fold(&mut all), fold(&mut kept)]
}

/// [`sum`] over stored entries, widened one by one, which takes half the time of widening them into a
/// buffer first.
///
/// # Panics
/// If the lengths differ or are not a whole number of entries.
pub(super) fn sum_stored<T: Real>(
    dtype: Float,
    a: &[u8],
    b: &[u8],
    term: impl Fn(T, T) -> f64,
) -> f64 {
    match dtype {
        Float::F16 => sum(entries(a), entries(b), |a, b| term(T::read_f16(a), T::read_f16(b))),
        Float::Bf16 => sum(entries(a), entries(b), |a, b| term(T::read_bf16(a), T::read_bf16(b))),
        Float::F32 => sum(entries(a), entries(b), |a, b| term(T::read_f32(a), T::read_f32(b))),
        Float::F64 => sum(entries(a), entries(b), |a, b| term(T::read_f64(a), T::read_f64(b))),
    }
}

widest! {
    /// `Σ_j term(a_j, b_j)`, in the shape of the module's documentation.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(super) fn sum<E: Copy, F: Fn(E, E) -> f64>(a: &[E], b: &[E], term: F) -> f64 {
        assert_eq!(a.len(), b.len());
        let mut lanes = [0.0; LANES];
        let (whole_a, rest_a) = a.as_chunks::<LANES>();
        let (whole_b, rest_b) = b.as_chunks::<LANES>();
        for (a, b) in whole_a.iter().zip(whole_b) {
            for lane in 0..LANES {
                lanes[lane] += term(a[lane], b[lane]);
            }
        }
        for ((lane, &a), &b) in lanes.iter_mut().zip(rest_a).zip(rest_b) {
            *lane += term(a, b);
        }
        fold(&mut lanes)
    }
}

#[inline(always)]
fn fold(lanes: &mut [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, finite, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn near_the_plain_sum(values in vector(finite())) {
            let expected: f64 = values.iter().map(|&value| f64::from(value.abs())).sum();
            prop_assert!((l1(&values) - expected).abs() <= 1e-12 * expected);
        }

        #[test]
        fn of_the_documented_shape(values in vector(finite())) {
            let mut lanes = [0.0_f64; 16];
            for (j, &value) in values.iter().enumerate() {
                lanes[j % 16] += f64::from(value.abs());
            }
            let fold = |lanes: Vec<f64>| -> Vec<f64> {
                let (low, high) = lanes.split_at(lanes.len() / 2);
                low.iter().zip(high).map(|(a, b)| a + b).collect()
            };
            let expected = fold(fold(fold(fold(lanes.to_vec()))));
            prop_assert_eq!(l1(&values).to_bits(), expected[0].to_bits());
        }
    }

    proptest! {
        #[test]
        fn of_kept_entries_too(values in vector(finite()), step in 1..5_usize) {
            let keep: Vec<u8> = (0..values.len()).map(|j| u8::from(j % step == 0)).collect();
            let kept = |(&value, &keep): (&f32, &u8)| value.only_if(keep != 0);
            let dropped: Vec<f32> = values.iter().zip(&keep).map(kept).collect();
            prop_assert_eq!(l1_of_kept(&values, &keep), [l1(&values), l1(&dropped)]);
            prop_assert_eq!(l1_of_finite(&values, &keep), l1_of_kept(&values, &keep));
        }

        #[test]
        fn of_finite_entries_alone(values in vector(any()), step in 1..5_usize) {
            let keep: Vec<u8> = (0..values.len()).map(|j| u8::from(j % step == 0)).collect();
            let finite: Vec<f32> =
                values.iter().map(|&value| value.only_if(value.is_finite())).collect();
            prop_assert_eq!(l1_of_finite(&values, &keep), l1_of_kept(&finite, &keep));
        }
    }

    #[test]
    fn nan_is_not_lost() {
        assert!(l1(&[1.0_f32, f32::NAN, 2.0]).is_nan());
        assert_eq!(l1::<f32>(&[]), 0.0);
    }
}
