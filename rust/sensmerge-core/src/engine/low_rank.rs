//! Entries of a matrix with a low-rank change, computed as they are read.
//!
//! ```text
//! for every row i that some of the entries are in:
//!     sum ← Σ_r B_ir A_rj                         (r in order; A and B from their files' bytes)
//!     out_j ← W_ij + s · sum_j
//!     with a magnitude: out_j ← out_j · m_i / ‖W_i + s·(B·A)_i‖₂
//! ```
//!
//! A row may be cut anywhere: every entry is computed alike, whatever is read beside it. Nothing is
//! kept but the factors of magnitudes, one number an output, which need a sweep over the matrix and
//! are computed once (`Inputs::shared`).

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::entries::Entries;
use super::inputs::Inputs;
use crate::dtype::{Float, Real};
use crate::error::{Error, Result};
use crate::kernel::derivative::dot;
use crate::kernel::low_rank::{add_dots, add_rows, add_squares, multiply_each};
use crate::kernel::weighted_sum::{multiply, scale_and_add};
use crate::manifest::{self, Source, Stored};
use crate::program::block::BLOCK;

/// Coefficients of a row that are held at a time.
const COEFFICIENTS: usize = 256;

/// Parts that the rows are divided into to sum the squares of columns.
const PARTS: usize = 64;

/// A matrix with a low-rank change.
pub(super) struct LowRank<'i> {
    of: Entries<'i>,
    a: Matrix<'i>,
    b: Matrix<'i>,
    rank: usize,
    rows: usize,
    columns: usize,
    scale: f64,
    transposed: bool,
    magnitude: Option<Magnitude<'i>>,
}

/// A stored matrix.
struct Matrix<'i> {
    bytes: &'i [u8],
    dtype: Float,
    columns: usize,
}

/// The norms that outputs are given.
struct Magnitude<'i> {
    norms: Matrix<'i>,
    /// For every output the factor that gives it its norm, once it is known.
    factors: Arc<OnceLock<Vec<f64>>>,
}

impl<'i> LowRank<'i> {
    /// Look up the bytes of its parts.
    ///
    /// # Errors
    /// As [`Entries::of`]; [`Error::Setting`] for shapes that do not fit one another.
    pub(super) fn of(change: &manifest::LowRank, inputs: &'i Inputs) -> Result<Self> {
        if let Some(reason) = change.mismatch() {
            return Err(Error::setting("manifest", format!("'{}': {reason}", change.a.name)));
        }
        let shape = change.of.shape();
        let (rows, columns) = (shape[0], shape[1]);
        let magnitude = change.magnitude.as_ref().map(|norms| -> Result<Magnitude> {
            // Its parts by name, since sources have no order.
            let key = format!("{change:?}");
            Ok(Magnitude { norms: Matrix::of(norms, inputs)?, factors: inputs.shared(key) })
        });
        Ok(Self {
            of: Entries::of(&change.of, inputs)?,
            a: Matrix::of(&change.a, inputs)?,
            b: Matrix::of(&change.b, inputs)?,
            rank: change.a.shape[0],
            rows,
            columns,
            scale: change.scale,
            transposed: change.transposed,
            magnitude: magnitude.transpose()?,
        })
    }

    /// The matrix without the change.
    pub(super) fn unchanged(&self) -> &Entries<'i> {
        &self.of
    }

    /// Find the factors of magnitudes. To be called before entries are read, where all threads are
    /// free: a sweep over the matrix is divided among them.
    pub(super) fn prepare<T: Real>(&self) {
        self.of.prepare::<T>();
        if let Some(magnitude) = &self.magnitude
            && magnitude.factors.get().is_none()
        {
            // Not within `get_or_init`: a thread that waits there could be needed for the sweep.
            let _ = magnitude.factors.set(self.factors::<T>(magnitude));
        }
    }

    /// Read entries, as [`Entries::read`] does.
    pub(super) fn read<T: Real>(&self, entries: Range<usize>, out: &mut [T]) {
        let factors = self.magnitude.as_ref().map(|magnitude| {
            magnitude.factors.get_or_init(|| self.factors::<T>(magnitude)).as_slice()
        });
        let mut out = out;
        for (row, columns) in pieces(entries, self.columns) {
            let (now, later) = std::mem::take(&mut out).split_at_mut(columns.len());
            out = later;
            self.read_part(row, columns.clone(), now);
            match factors {
                None => {}
                Some(factors) if self.transposed => {
                    let mut wide = [T::ONE; BLOCK];
                    let wide = &mut wide[..columns.len()];
                    for (wide, &factor) in wide.iter_mut().zip(&factors[columns]) {
                        *wide = T::from_f64(factor);
                    }
                    multiply_each(now, wide);
                }
                Some(factors) => multiply(now, T::from_f64(factors[row])),
            }
        }
    }

    /// `W + s·B·A` for some columns of a row, at most a block.
    fn read_part<T: Real>(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        out.fill(T::ZERO);
        let mut coefficients = [T::ZERO; COEFFICIENTS];
        for first in (0..self.rank).step_by(COEFFICIENTS) {
            let group = &mut coefficients[..COEFFICIENTS.min(self.rank - first)];
            if self.transposed {
                self.a.read_column(row, first, group);
                let (dtype, matrix) = (self.b.dtype, self.b.rows(columns.clone()));
                add_dots(dtype, matrix, self.rank, first, group, out);
            } else {
                self.b.read(row, first, group);
                let (dtype, matrix) = (self.a.dtype, self.a.rows(first..first + group.len()));
                add_rows(dtype, matrix, self.columns, columns.start, group, out);
            }
        }
        let mut plain = [T::ZERO; BLOCK];
        let plain = &mut plain[..out.len()];
        let start = row * self.columns;
        self.of.read(start + columns.start..start + columns.end, plain);
        scale_and_add(plain, T::from_f64(self.scale), out);
    }

    /// `m_o / ‖(W + s·B·A)_o‖₂` for every output `o`; squares and sums are float64.
    fn factors<T: Real>(&self, magnitude: &Magnitude) -> Vec<f64> {
        let squares = if self.transposed {
            self.squares_of_columns::<T>()
        } else {
            (0..self.rows).into_par_iter().map(|row| self.squares_of_row::<T>(row)).collect()
        };
        let mut norms = vec![0.0; squares.len()];
        f64::widen(magnitude.norms.dtype, magnitude.norms.bytes, &mut norms);
        norms.iter().zip(squares).map(|(norm, squares)| norm / squares.sqrt()).collect()
    }

    fn squares_of_row<T: Real>(&self, row: usize) -> f64 {
        let mut part = [T::ZERO; BLOCK];
        let starts = (0..self.columns).step_by(BLOCK);
        let of_part = |start: usize| {
            let part = &mut part[..BLOCK.min(self.columns - start)];
            self.read_part(row, start..start + part.len(), part);
            dot(part, part)
        };
        starts.map(of_part).sum()
    }

    fn squares_of_columns<T: Real>(&self) -> Vec<f64> {
        let size = self.rows.div_ceil(PARTS).max(1);
        let parts: Vec<Vec<f64>> = (0..self.rows.div_ceil(size))
            .into_par_iter()
            .map(|place| {
                let rows = place * size..self.rows.min((place + 1) * size);
                let mut sums = vec![0.0; self.columns];
                let mut part = [T::ZERO; BLOCK];
                let range = rows.start * self.columns..rows.end * self.columns;
                for (row, columns) in pieces(range, self.columns) {
                    let part = &mut part[..columns.len()];
                    self.read_part(row, columns.clone(), part);
                    add_squares(part, &mut sums[columns]);
                }
                sums
            })
            .collect();
        let mut totals = vec![0.0; self.columns];
        for sums in parts {
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        totals
    }
}

impl<'i> Matrix<'i> {
    fn of(stored: &Stored, inputs: &'i Inputs) -> Result<Self> {
        let source = Source::Stored(stored.clone());
        match Entries::of(&source, inputs)? {
            Entries::Stored { bytes, dtype } => {
                let columns = stored.shape.get(1).copied().unwrap_or(1);
                Ok(Self { bytes, dtype, columns })
            }
            _ => Err(Error::setting("manifest", "a stored tensor is not stored")),
        }
    }

    /// The bytes of some rows.
    fn rows(&self, rows: Range<usize>) -> &'i [u8] {
        let size = self.columns * self.dtype.size();
        &self.bytes[rows.start * size..rows.end * size]
    }

    /// Entries of a row from column `first` on.
    fn read<T: Real>(&self, row: usize, first: usize, out: &mut [T]) {
        let (start, size) = (row * self.columns + first, self.dtype.size());
        T::widen(self.dtype, &self.bytes[start * size..(start + out.len()) * size], out);
    }

    /// Entries of a column from row `first` on.
    fn read_column<T: Real>(&self, column: usize, first: usize, out: &mut [T]) {
        for (row, out) in out.iter_mut().enumerate() {
            self.read(first + row, column, std::slice::from_mut(out));
        }
    }
}

/// The rows that a range of a matrix's entries touches, each with its columns, at most a block at a
/// time.
fn pieces(entries: Range<usize>, columns: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut start = entries.start;
    std::iter::from_fn(move || {
        if start >= entries.end {
            return None;
        }
        let (row, first) = (start / columns, start % columns);
        let length = (columns - first).min(entries.end - start).min(BLOCK);
        start += length;
        Some((row, first..first + length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, MemoryTensor};
    use crate::dtype::Dtype;
    use proptest::prelude::*;

    /// A matrix in float32 and the factors of a change to it.
    #[derive(Debug)]
    struct Case {
        shape: [usize; 2],
        rank: usize,
        scale: f64,
        transposed: bool,
        values: [Vec<f32>; 4],
    }

    fn cases() -> impl Strategy<Value = Case> {
        let sizes = (1..20_usize, prop_oneof![1..40_usize, Just(1500)], 1..6_usize);
        let values = prop::collection::vec(-1.0_f32..1.0, 211);
        (sizes, -2.0..2.0_f64, any::<bool>(), values).prop_map(
            |((rows, columns, rank), scale, transposed, pattern)| {
                let mut pattern = pattern.into_iter().cycle();
                let mut take = |count: usize| pattern.by_ref().take(count).collect::<Vec<f32>>();
                let (outputs, inputs) = if transposed { (columns, rows) } else { (rows, columns) };
                let values = [
                    take(rows * columns),
                    take(rank * inputs),
                    take(outputs * rank),
                    take(outputs),
                ];
                Case { shape: [rows, columns], rank, scale, transposed, values }
            },
        )
    }

    impl Case {
        fn opened(&self) -> (Inputs, manifest::LowRank) {
            let [rows, columns] = self.shape;
            let (outputs, inputs) = if self.transposed { (columns, rows) } else { (rows, columns) };
            let shapes = [
                vec![rows, columns],
                vec![self.rank, inputs],
                vec![outputs, self.rank],
                vec![outputs],
            ];
            let tensors = self.values.iter().zip(["w", "a", "b", "m"]).zip(&shapes);
            let tensors = tensors.map(|((values, name), shape)| MemoryTensor {
                name: name.into(),
                dtype: Dtype::F32,
                shape: shape.clone(),
                bytes: Box::new(
                    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
                ),
            });
            let checkpoint = Checkpoint::from_memory("model", tensors.collect()).expect("fits");
            let stored = |name: &str| {
                let info = checkpoint.get(name).expect("is there");
                Stored {
                    model: 0,
                    name: name.into(),
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    file: info.shard,
                    bytes: [info.start, info.end],
                }
            };
            let change = manifest::LowRank {
                of: Source::Stored(stored("w")),
                a: stored("a"),
                b: stored("b"),
                scale: self.scale,
                transposed: self.transposed,
                magnitude: Some(stored("m")),
            };
            (Inputs::new(vec![Arc::new(checkpoint)]), change)
        }

        /// The changed matrix in float64, with or without magnitudes.
        fn expected(&self, magnitudes: bool) -> Vec<f64> {
            let [rows, columns] = self.shape;
            let wide = |values: &[f32], place: usize| f64::from(values[place]);
            let [weight, a, b, norms] = &self.values;
            let inputs = if self.transposed { rows } else { columns };
            let mut out = Vec::new();
            for place in 0..rows * columns {
                let (row, column) = (place / columns, place % columns);
                let (output, input) = if self.transposed { (column, row) } else { (row, column) };
                let products = (0..self.rank).map(|rank| {
                    wide(b, output * self.rank + rank) * wide(a, rank * inputs + input)
                });
                out.push(wide(weight, place) + self.scale * products.sum::<f64>());
            }
            if magnitudes {
                let of = |place: usize| {
                    if self.transposed { place % columns } else { place / columns }
                };
                let mut squares = vec![0.0; norms.len()];
                for (place, value) in out.iter().enumerate() {
                    squares[of(place)] += value * value;
                }
                for (place, value) in out.iter_mut().enumerate() {
                    *value *= wide(norms, of(place)) / squares[of(place)].sqrt();
                }
            }
            out
        }
    }

    proptest! {
        #[test]
        fn near_the_float64_product(case in cases(), cuts in (0.0..1.0_f64, 0.0..1.0_f64)) {
            let (inputs, mut change) = case.opened();
            for magnitudes in [true, false] {
                let source = Source::LowRank(Box::new(change.clone()));
                let entries = Entries::of(&source, &inputs).expect("fits");
                entries.prepare::<f32>();
                let expected = case.expected(magnitudes);
                let count = expected.len();
                let place = |share: f64| (share * (count + 1) as f64) as usize;
                let (a, b) = (place(cuts.0).min(place(cuts.1)), place(cuts.0).max(place(cuts.1)));
                let mut whole = vec![9.0_f32; count];
                entries.read(0..count, &mut whole);
                for (found, expected) in whole.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    prop_assert!(error <= 1e-4 * (1.0 + expected.abs()), "{found} {expected}");
                }
                // The same bits wherever a row is cut.
                let mut parts = vec![9.0_f32; count];
                for range in [0..a, a..b.min(count), b.min(count)..count] {
                    entries.prefetch(range.clone());
                    entries.read(range.clone(), &mut parts[range]);
                }
                prop_assert_eq!(&parts, &whole);
                change.magnitude = None;
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let case = Case {
            shape: [2, 3],
            rank: 1,
            scale: 1.0,
            transposed: false,
            values: [vec![0.0; 6], vec![0.0; 3], vec![0.0; 2], vec![1.0; 2]],
        };
        let (inputs, change) = case.opened();
        assert!(LowRank::of(&change, &inputs).is_ok());
        let wrong = manifest::LowRank { transposed: true, ..change.clone() };
        assert!(LowRank::of(&wrong, &inputs).is_err());
        let norms = Some(change.a.clone());
        assert!(LowRank::of(&manifest::LowRank { magnitude: norms, ..change }, &inputs).is_err());
    }
}
