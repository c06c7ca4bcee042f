//! Inputs for the kernels' tests: awkward values, awkward lengths.

use proptest::prelude::*;

/// Lengths around vector widths and block sizes, and none at all.
pub(crate) fn length() -> impl Strategy<Value = usize> {
    prop_oneof![0..70_usize, Just(127), Just(128), Just(129), Just(4095), Just(4096), Just(4097)]
}

/// Floats of every kind: NaN, infinities, subnormals, both zeros, and equal ones.
pub(crate) fn any() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -4.0_f32..4.0,
        2 => prop::sample::select(vec![-1.0, -0.5, 0.5, 1.0]),
        1 => prop::sample::select(vec![0.0, -0.0, f32::MIN_POSITIVE / 2.0, -f32::from_bits(1)]),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX]),
    ]
}

/// Floats that sums cannot turn into NaN.
pub(crate) fn finite() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -4.0_f32..4.0,
        2 => prop::sample::select(vec![-1.0, -0.5, 0.5, 1.0]),
        1 => prop::sample::select(vec![0.0, -0.0, f32::MIN_POSITIVE / 2.0, -f32::from_bits(1)]),
    ]
}

/// A vector of `values` of any [`length`].
pub(crate) fn vector(values: impl Strategy<Value = f32>) -> impl Strategy<Value = Vec<f32>> {
    // Drawn once for a short pattern that is repeated: long vectors are slow to draw.
    (length(), prop::collection::vec(values, 97))
        .prop_map(|(length, pattern)| pattern.into_iter().cycle().take(length).collect())
}

/// Rows of equal length, with a weight for each.
pub(crate) fn rows(
    values: impl Strategy<Value = f32>,
) -> impl Strategy<Value = (usize, Vec<f32>, Vec<f32>)> {
    let weights = prop::collection::vec(prop_oneof![-2.0_f32..2.0, Just(0.0), Just(1.0)], 1..5);
    (length(), weights, prop::collection::vec(values, 499)).prop_map(
        |(length, weights, pattern)| {
            let rows = pattern.into_iter().cycle().take(length * weights.len()).collect();
            (length, rows, weights)
        },
    )
}

/// Equality of bits, NaN equal to any NaN.
pub(crate) fn same(a: &[f32], b: &[f32]) -> bool {
    let equal = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    a.len() == b.len() && a.iter().zip(b).all(equal)
}
