//! The assignment of largest value, by pathfinding's Kuhn-Munkres (Hungarian) algorithm.

use pathfinding::kuhn_munkres::{Weights, kuhn_munkres};

/// Values are rounded to this part of the largest one: the algorithm needs integers, whose sums are
/// exact.
const STEPS: f64 = (1_u64 << 40) as f64;

/// A gain below this part of the values themselves is one of rounding: then nothing moves.
const LEAST_GAIN: f64 = 1e-12;

/// `size` × `size` values as integers.
struct Rounded<F> {
    size: usize,
    value: F,
    scale: f64,
}

impl<F: Fn(usize, usize) -> f64 + Copy> Weights<i64> for Rounded<F> {
    fn rows(&self) -> usize {
        self.size
    }

    fn columns(&self) -> usize {
        self.size
    }

    fn at(&self, row: usize, column: usize) -> i64 {
        ((self.value)(row, column) * self.scale).round() as i64
    }

    fn neg(&self) -> Self {
        Self { size: self.size, value: self.value, scale: -self.scale }
    }
}

/// The permutation that maximises the sum of `value(row, permutation[row])`. The identity where nothing
/// is gained by another one, or a value is not finite.
pub(crate) fn assignment(size: usize, value: impl Fn(usize, usize) -> f64 + Copy) -> Vec<usize> {
    let unmoved: Vec<usize> = (0..size).collect();
    let mut largest = 0.0_f64;
    for row in 0..size {
        for column in 0..size {
            let found = value(row, column);
            if !found.is_finite() {
                return unmoved;
            }
            largest = largest.max(found.abs());
        }
    }
    if size < 2 || largest == 0.0 {
        return unmoved;
    }
    let (_, found) = kuhn_munkres(&Rounded { size, value, scale: STEPS / largest });
    let total = |order: &[usize]| -> f64 {
        order.iter().enumerate().map(|(row, &column)| value(row, column)).sum()
    };
    let sizes: f64 = unmoved.iter().map(|&row| value(row, row).abs()).sum();
    if total(&found) - total(&unmoved) > LEAST_GAIN * sizes { found } else { unmoved }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The largest sum of all permutations of the columns that are left.
    fn best(values: &[Vec<f64>], row: usize, left: &mut Vec<usize>) -> f64 {
        if row == values.len() {
            return 0.0;
        }
        let mut found = f64::NEG_INFINITY;
        for place in 0..left.len() {
            let column = left.remove(place);
            found = found.max(values[row][column] + best(values, row + 1, left));
            left.insert(place, column);
        }
        found
    }

    proptest! {
        #[test]
        fn no_permutation_has_a_larger_sum(
            values in (1..7_usize).prop_flat_map(|size| {
                prop::collection::vec(prop::collection::vec(-4.0..4.0_f64, size), size)
            }),
        ) {
            let size = values.len();
            let found = assignment(size, |row, column| values[row][column]);
            let mut sorted = found.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..size).collect::<Vec<_>>());
            let total: f64 = found.iter().enumerate().map(|(row, &column)| values[row][column]).sum();
            let expected = best(&values, 0, &mut (0..size).collect());
            prop_assert!((total - expected).abs() < 1e-9, "{total} {expected}");
        }
    }

    #[test]
    fn nothing_moves_without_a_gain() {
        assert_eq!(assignment(3, |_, _| 2.0), [0, 1, 2]);
        assert_eq!(assignment(3, |_, _| 0.0), [0, 1, 2]);
        let infinite = |row, column| if row == column { f64::INFINITY } else { 1.0 };
        assert_eq!(assignment(2, infinite), [0, 1]);
        assert_eq!(assignment(2, |row, column| f64::from(u8::from(row != column))), [1, 0]);
    }
}
