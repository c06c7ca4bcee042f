//! Reductions over tensors that the caller holds in memory, for calibration. They run on the rayon
//! pool of the caller.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::dtype::{Float, Real};
use crate::error::{Error, Result};
use crate::kernel::{distance, sensitivity};
use crate::program::block::BLOCK;

/// Blocks that a thread takes at a time.
const BLOCKS: usize = 16;

/// A tensor in memory: little-endian entries of a dtype, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Buffer<'b> {
    bytes: &'b [u8],
    dtype: Float,
}

impl<'b> Buffer<'b> {
    /// A view of `bytes` as entries of `dtype`.
    ///
    /// # Errors
    /// [`Error::Setting`] under `name` if the length is not a whole number of entries.
    pub fn new(name: &str, bytes: &'b [u8], dtype: Float) -> Result<Self> {
        if bytes.len().is_multiple_of(dtype.size()) {
            return Ok(Self { bytes, dtype });
        }
        let length = bytes.len();
        Err(Error::setting(
            name,
            format!("{length} bytes are not a whole number of {dtype:?} entries"),
        ))
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn read<T: Real>(&self, start: usize, out: &mut [T]) {
        T::widen(self.dtype, self.stored(start, out.len()), out);
    }

    fn stored(&self, start: usize, length: usize) -> &'b [u8] {
        let size = self.dtype.size();
        &self.bytes[start * size..(start + length) * size]
    }

    fn row(&self, row: usize, columns: usize) -> Self {
        let size = self.dtype.size() * columns;
        Self { bytes: &self.bytes[row * size..(row + 1) * size], dtype: self.dtype }
    }

    /// Its entries in runs, each the first and how many; copied unless it is one run.
    fn gathered(&self, mut runs: impl Iterator<Item = (usize, usize)>) -> Gathered<'b> {
        let first = runs.next().map_or(&[][..], |(start, count)| self.stored(start, count));
        let mut bytes = Cow::Borrowed(first);
        for (start, count) in runs {
            bytes.to_mut().extend(self.stored(start, count));
        }
        Gathered { bytes, dtype: self.dtype }
    }

    /// Refuse a number of entries other than `expected`.
    pub(super) fn check_length(&self, name: &str, expected: usize) -> Result<()> {
        if self.len() == expected {
            return Ok(());
        }
        let reason = format!("has {} entries where {expected} are expected", self.len());
        Err(Error::setting(name, reason))
    }
}

/// Entries of a buffer, one behind the other.
struct Gathered<'b> {
    bytes: Cow<'b, [u8]>,
    dtype: Float,
}

impl Gathered<'_> {
    fn buffer(&self) -> Buffer<'_> {
        Buffer { bytes: &self.bytes, dtype: self.dtype }
    }
}

/// `Σ_j |θ_j · g_j|` over one parameter tensor (Sens-Merging, Eq. 1 and 3).
///
/// Products are float32 (float64 if a buffer is float64) and sums float64 of a fixed shape, so that
/// the result does not depend on the number of threads.
///
/// # Errors
/// [`Error::Setting`] if the lengths differ.
pub fn sum_abs_product(theta: Buffer, gradient: Buffer) -> Result<f64> {
    gradient.check_length("gradient", theta.len())?;
    if theta.dtype == Float::F64 || gradient.dtype == Float::F64 {
        Ok(sum_blocks(theta, gradient, &Kernel::<f64>::SUM_ABS_PRODUCT))
    } else {
        Ok(sum_blocks(theta, gradient, &Kernel::<f32>::SUM_ABS_PRODUCT))
    }
}

/// `Σ_j g_j²` over the gradient of one parameter tensor: the trace of the empirical Fisher information.
///
/// Squares and sums are float64 of a fixed shape, so that the result does not depend on the number of
/// threads.
#[must_use]
pub fn sum_squares(gradient: Buffer) -> f64 {
    if gradient.dtype == Float::F64 {
        sum_blocks(gradient, gradient, &Kernel::<f64>::SUM_SQUARES)
    } else {
        sum_blocks(gradient, gradient, &Kernel::<f32>::SUM_SQUARES)
    }
}

/// Columns of two matrices that are compared: the first in each, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The first column of the first matrix.
    pub a: usize,
    /// The first column of the second matrix.
    pub b: usize,
    /// Number of columns.
    pub count: usize,
}

/// `‖a_r − b_r‖₂` for every row `r` of two row-major matrices of `rows` rows, over the columns that
/// `columns` lists, in their order (Sens-Merging, Eq. 4).
///
/// Differences are float32 (float64 if a buffer is float64), squares and sums float64 of a fixed
/// shape: the same for the same columns, wherever they stand.
///
/// # Errors
/// [`Error::Setting`] if a length is not a multiple of `rows`, or a column does not exist.
pub fn row_distances(a: Buffer, b: Buffer, rows: usize, columns: &[Columns]) -> Result<Vec<f64>> {
    for matrix in [a, b] {
        if rows == 0 || !matrix.len().is_multiple_of(rows) {
            let reason = format!("{rows} rows do not divide {} entries", matrix.len());
            return Err(Error::setting("rows", reason));
        }
    }
    let (of_a, of_b) = (a.len() / rows, b.len() / rows);
    let there = |first: usize, count: usize, all: usize| {
        first.checked_add(count).is_some_and(|end| end <= all)
    };
    if let Some(run) =
        columns.iter().find(|run| !there(run.a, run.count, of_a) || !there(run.b, run.count, of_b))
    {
        let reason = format!("{run:?} are not among {of_a} and {of_b} columns");
        return Err(Error::setting("columns", reason));
    }
    let double = a.dtype == Float::F64 || b.dtype == Float::F64;
    let distance = |index: usize| {
        let a = a.row(index, of_a).gathered(columns.iter().map(|run| (run.a, run.count)));
        let b = b.row(index, of_b).gathered(columns.iter().map(|run| (run.b, run.count)));
        let (a, b) = (a.buffer(), b.buffer());
        let squared = if double {
            sum_blocks(a, b, &Kernel::<f64>::SQUARED_DISTANCE)
        } else {
            sum_blocks(a, b, &Kernel::<f32>::SQUARED_DISTANCE)
        };
        squared.sqrt()
    };
    Ok((0..rows).into_par_iter().map(distance).collect())
}

/// A kernel that sums over pairs of entries, in two forms: over floats of the computing type, and over
/// stored entries of one dtype.
struct Kernel<T> {
    wide: fn(&[T], &[T]) -> f64,
    stored: fn(Float, &[u8], &[u8]) -> f64,
}

impl<T: Real> Kernel<T> {
    const SUM_ABS_PRODUCT: Self = Self {
        wide: sensitivity::sum_abs_product,
        stored: sensitivity::sum_abs_product_stored::<T>,
    };
    const SUM_SQUARES: Self = Self {
        wide: |gradient, _| sensitivity::sum_squares(gradient),
        stored: |dtype, gradient, _| sensitivity::sum_squares_stored::<T>(dtype, gradient),
    };
    const SQUARED_DISTANCE: Self =
        Self { wide: distance::squared_distance, stored: distance::squared_distance_stored::<T> };
}

/// Apply a kernel to blocks of both buffers and add the results in index order.
fn sum_blocks<T: Real>(a: Buffer, b: Buffer, kernel: &Kernel<T>) -> f64 {
    let of_block = |block: usize| {
        let start = block * BLOCK;
        let length = BLOCK.min(a.len() - start);
        if a.dtype == b.dtype {
            return (kernel.stored)(a.dtype, a.stored(start, length), b.stored(start, length));
        }
        let (mut left, mut right) = ([T::ZERO; BLOCK], [T::ZERO; BLOCK]);
        let (left, right) = (&mut left[..length], &mut right[..length]);
        a.read(start, left);
        b.read(start, right);
        (kernel.wide)(left, right)
    };
    let blocks = a.len().div_ceil(BLOCK);
    let sums: Vec<f64> = (0..blocks).into_par_iter().with_min_len(BLOCKS).map(of_block).collect();
    sums.iter().sum()
}
