//! Products of a row of coefficients with a stored matrix, for low-rank changes to weights: LoRA adds
//! `s·B·A`, whose row `i` is the product of the row `B_i` with `A`.
//!
//! The matrix is widened entry by entry as it is read, from its file's bytes: nothing is kept between
//! rows. Either its rows are added up ([`add_rows`]), or, where it is stored the other way round, each
//! of its rows is multiplied with the coefficients ([`add_dots`]).

use super::entries;
use crate::dtype::{Float, Real};
use crate::processor::widest;

/// Entries of the sum that are added to at a time. They stay in registers for all rows.
const TILE: usize = 64;

const LANES: usize = 16;

/// `out_j ← out_j + Σ_r c_r X_{r,first+j}`, added in the order of `r`.
///
/// `matrix` holds `X` in `dtype`, little-endian, with one row of `columns` entries per coefficient.
///
/// # Panics
/// If the lengths do not match.
pub fn add_rows<T: Real>(
    dtype: Float,
    matrix: &[u8],
    columns: usize,
    first: usize,
    coefficients: &[T],
    out: &mut [T],
) {
    assert_eq!(matrix.len(), coefficients.len() * columns * dtype.size());
    assert!(first + out.len() <= columns);
    match dtype {
        Float::F16 => rows(entries(matrix), columns, first, coefficients, out, T::read_f16),
        Float::Bf16 => rows(entries(matrix), columns, first, coefficients, out, T::read_bf16),
        Float::F32 => rows(entries(matrix), columns, first, coefficients, out, T::read_f32),
        Float::F64 => rows(entries(matrix), columns, first, coefficients, out, T::read_f64),
    }
}

/// `out_j ← out_j + Σ_r c_r X_{j,first+r}`: 16 sums of every sixteenth product, folded in halves.
///
/// `matrix` holds `X` in `dtype`, little-endian, with one row of `columns` entries per entry of `out`.
///
/// # Panics
/// If the lengths do not match.
pub fn add_dots<T: Real>(
    dtype: Float,
    matrix: &[u8],
    columns: usize,
    first: usize,
    coefficients: &[T],
    out: &mut [T],
) {
    assert_eq!(matrix.len(), out.len() * columns * dtype.size());
    assert!(first + coefficients.len() <= columns);
    match dtype {
        Float::F16 => dots(entries(matrix), columns, first, coefficients, out, T::read_f16),
        Float::Bf16 => dots(entries(matrix), columns, first, coefficients, out, T::read_bf16),
        Float::F32 => dots(entries(matrix), columns, first, coefficients, out, T::read_f32),
        Float::F64 => dots(entries(matrix), columns, first, coefficients, out, T::read_f64),
    }
}

widest! {
    fn rows<E: Copy, T: Real, F: Fn(E) -> T>(
        matrix: &[E],
        columns: usize,
        first: usize,
        coefficients: &[T],
        out: &mut [T],
        read: F,
    ) {
        let (tiles, rest) = out.as_chunks_mut::<TILE>();
        let mut start = first;
        for tile in tiles {
            let mut sums = *tile;
            for (row, &coefficient) in matrix.chunks_exact(columns).zip(coefficients) {
                if let Some(row) = row[start..].first_chunk::<TILE>() {
                    for (sum, &entry) in sums.iter_mut().zip(row) {
                        *sum += coefficient * read(entry);
                    }
                }
            }
            *tile = sums;
            start += TILE;
        }
        for (row, &coefficient) in matrix.chunks_exact(columns).zip(coefficients) {
            for (sum, &entry) in rest.iter_mut().zip(&row[start..]) {
                *sum += coefficient * read(entry);
            }
        }
    }
}

widest! {
    fn dots<E: Copy, T: Real, F: Fn(E) -> T>(
        matrix: &[E],
        columns: usize,
        first: usize,
        coefficients: &[T],
        out: &mut [T],
        read: F,
    ) {
        let (whole, rest) = coefficients.as_chunks::<LANES>();
        for (out, row) in out.iter_mut().zip(matrix.chunks_exact(columns)) {
            let (entries, others) = row[first..first + coefficients.len()].as_chunks::<LANES>();
            let mut lanes = [T::ZERO; LANES];
            for (coefficients, entries) in whole.iter().zip(entries) {
                for lane in 0..LANES {
                    lanes[lane] += coefficients[lane] * read(entries[lane]);
                }
            }
            for ((lane, &coefficient), &entry) in lanes.iter_mut().zip(rest).zip(others) {
                *lane += coefficient * read(entry);
            }
            let mut width = LANES / 2;
            while width > 0 {
                for lane in 0..width {
                    lanes[lane] += lanes[lane + width];
                }
                width /= 2;
            }
            *out += lanes[0];
        }
    }
}

widest! {
    /// `x_j ← x_j · f_j`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn multiply_each<T: Real>(values: &mut [T], factors: &[T]) {
        assert_eq!(values.len(), factors.len());
        for (value, &factor) in values.iter_mut().zip(factors) {
            *value = *value * factor;
        }
    }
}

widest! {
    /// `s_j ← s_j + x_j²`, in float64.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_squares<T: Real>(values: &[T], sums: &mut [f64]) {
        assert_eq!(values.len(), sums.len());
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += value.to_f64() * value.to_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{finite, same, vector};
    use proptest::prelude::*;

    const FLOATS: [Float; 4] = [Float::F16, Float::Bf16, Float::F32, Float::F64];

    /// Bytes of a dtype, and the floats that they are.
    fn stored(values: &[f32], dtype: Float) -> (Vec<u8>, Vec<f32>) {
        let (mut bytes, mut wide) = (vec![0; values.len() * dtype.size()], vec![0.0; values.len()]);
        f32::narrow(values, dtype, &mut bytes);
        f32::widen(dtype, &bytes, &mut wide);
        (bytes, wide)
    }

    fn cases() -> impl Strategy<Value = (Float, usize, usize, usize, usize, Vec<f32>)> {
        let sizes = (0..40_usize, 0..200_usize, 0..5_usize, 0..5_usize);
        let values = prop::collection::vec(finite(), 97);
        (prop::sample::select(FLOATS.to_vec()), sizes, values).prop_map(
            |(dtype, (rank, length, before, after), pattern)| {
                let count = (rank + length + 10) * (rank + length + 10);
                let values = pattern.into_iter().cycle().take(count).collect();
                (dtype, rank, length, before, after, values)
            },
        )
    }

    proptest! {
        #[test]
        fn rows_are_added_in_their_order(
            (dtype, rank, length, before, after, values) in cases()
        ) {
            let columns = before + length + after;
            prop_assume!(columns > 0);
            let (bytes, wide) = stored(&values[..rank * columns], dtype);
            let coefficients = &values[values.len() - rank..];
            let mut out = values[..length].to_vec();
            let mut expected = out.clone();
            for r in 0..rank {
                for j in 0..length {
                    expected[j] += coefficients[r] * wide[r * columns + before + j];
                }
            }
            add_rows(dtype, &bytes, columns, before, coefficients, &mut out);
            prop_assert!(same(&out, &expected));
        }

        #[test]
        fn dots_are_of_the_documented_shape(
            (dtype, rank, length, before, after, values) in cases()
        ) {
            let columns = before + rank + after;
            prop_assume!(columns > 0);
            let (bytes, wide) = stored(&values[..length * columns], dtype);
            let coefficients = &values[values.len() - rank..];
            let mut out = values[..length].to_vec();
            let mut expected = out.clone();
            for (j, out) in expected.iter_mut().enumerate() {
                let mut lanes = [0.0_f32; 16];
                for r in 0..rank {
                    lanes[r % 16] += coefficients[r] * wide[j * columns + before + r];
                }
                let mut lanes = lanes.to_vec();
                while lanes.len() > 1 {
                    let (low, high) = lanes.split_at(lanes.len() / 2);
                    lanes = low.iter().zip(high).map(|(a, b)| a + b).collect();
                }
                *out += lanes[0];
            }
            add_dots(dtype, &bytes, columns, before, coefficients, &mut out);
            prop_assert!(same(&out, &expected));
        }

        #[test]
        fn each_by_its_own(values in vector(finite())) {
            let factors: Vec<f32> = values.iter().rev().copied().collect();
            let mut products = values.clone();
            multiply_each(&mut products, &factors);
            let mut sums: Vec<f64> = factors.iter().map(|&factor| factor.into()).collect();
            add_squares(&values, &mut sums);
            for j in 0..values.len() {
                prop_assert!(same(&[products[j]], &[values[j] * factors[j]]));
                let square = f64::from(values[j]) * f64::from(values[j]);
                prop_assert_eq!(sums[j].to_bits(), (f64::from(factors[j]) + square).to_bits());
            }
        }
    }
}
