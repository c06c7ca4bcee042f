//! Looking for values that a merge must not spread.

use crate::dtype::Real;
use crate::processor::widest;

/// Entries looked at before stopping is considered: the loop inside has no early exit, so that
/// it vectorises.
const STRIDE: usize = 256;

/// Whether any entry is NaN.
#[must_use]
#[expect(clippy::eq_op, reason = "only NaN differs from itself")]
pub fn has_nan<T: Real>(values: &[T]) -> bool {
    any(values, |value| value != value)
}

/// Whether all entries are finite: neither NaN nor infinite.
#[must_use]
#[expect(clippy::eq_op, reason = "only NaN differs from itself")]
pub fn all_finite<T: Real>(values: &[T]) -> bool {
    // Zero times infinity is NaN too: one multiplication more than looking for NaN alone.
    !any(values, |value| {
        let product = value * T::ZERO;
        product != product
    })
}

/// Whether any entry is infinite.
#[must_use]
pub fn has_infinite<T: Real>(values: &[T]) -> bool {
    any(values, |value| value.abs() == T::INFINITY)
}

widest! {
    fn any<T: Real, F: Fn(T) -> bool>(values: &[T], is: F) -> bool {
        values.chunks(STRIDE).any(|part| part.iter().fold(false, |found, &value| found | is(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any as any_value, vector};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn found_wherever_they_are(values in vector(any_value())) {
            prop_assert_eq!(has_nan(&values), values.iter().any(|value| value.is_nan()));
            prop_assert_eq!(has_infinite(&values), values.iter().any(|value| value.is_infinite()));
            prop_assert_eq!(all_finite(&values), values.iter().all(|value| value.is_finite()));
        }
    }
}
