//! The entries of a quantised tensor: codes, each times the scale of its tile.

use std::ops::Range;

use super::inputs::Inputs;
use crate::checkpoint::Encoding;
use crate::dtype::{Code, Dtype, Real};
use crate::error::{Error, Result};
use crate::kernel::scale::multiply_runs;
use crate::manifest;
use crate::processor;

/// Scales that are looked up at a time.
const SCALES: usize = 64;

/// A quantised tensor with its bytes looked up.
///
/// Stored matrices have `rows` and `columns`; their rows start at whole bytes. The entry of row r and
/// column c is `code(r, c) · scale(⌊r / tile rows⌋, ⌊c / tile columns⌋)`.
pub(super) struct Scaled<'i> {
    values: &'i [u8],
    scales: &'i [u8],
    scale_dtype: Dtype,
    code: Code,
    rows: usize,
    columns: usize,
    /// Bytes of a row of codes.
    row_bytes: usize,
    tile: [usize; 2],
    /// Rows and columns of a matrix of scales.
    grid: [usize; 2],
    /// Whether the tensor is made of the matrices' columns.
    transposed: bool,
}

impl<'i> Scaled<'i> {
    /// Look up the bytes.
    ///
    /// # Errors
    /// [`Error::Tensor`] for parts that the manifest describes otherwise, or that do not fit together.
    pub(super) fn of(source: &manifest::Scaled, inputs: &'i Inputs) -> Result<Self> {
        let manifest::Scaled { values, scales, encoding, shape } = source;
        let Encoding { code, tile, transposed } = *encoding;
        let mut matrices = shape.clone();
        let axes = matrices.len();
        if transposed && axes >= 2 {
            matrices.swap(axes - 2, axes - 1);
        }
        let [rows, columns] = match *matrices {
            [.., rows, columns] => [rows, columns],
            [columns] => [1, columns],
            [] => [1, 1],
        };
        let found = Self {
            values: inputs.bytes(values)?,
            scales: inputs.bytes(scales)?,
            scale_dtype: scales.dtype,
            code,
            rows,
            columns,
            row_bytes: match code {
                Code::Int4 => columns.div_ceil(8) * 4,
                code => columns.div_ceil(code.per_byte()),
            },
            tile,
            grid: [rows.div_ceil(tile[0].max(1)), columns.div_ceil(tile[1].max(1))],
            transposed,
        };
        let count: usize = matrices.iter().rev().skip(2).product();
        let values_fit = found.values.len() == count * rows * found.row_bytes;
        let scale_bytes = scales.dtype.bits() / 8;
        let scales_fit = found.scales.len() == count * found.grid[0] * found.grid[1] * scale_bytes;
        let known = found.exponents() || scales.dtype.float().is_some();
        if values_fit && scales_fit && known && !tile.contains(&0) {
            return Ok(found);
        }
        let path = inputs.checkpoint(values)?.path();
        let reason = format!("codes and scales do not make a tensor of shape {shape:?}");
        Err(Error::tensor(path, &values.name, reason))
    }

    /// Read entries.
    pub(super) fn read<T: Real>(&self, entries: Range<usize>, out: &mut [T]) {
        if self.transposed {
            return self.read_transposed(entries, out);
        }
        let mut start = entries.start;
        let mut out = out;
        while start < entries.end {
            let (row, column) = (start / self.columns, start % self.columns);
            let length = (self.columns - column).min(entries.end - start);
            let (now, later) = std::mem::take(&mut out).split_at_mut(length);
            let bytes = &self.values[row * self.row_bytes..(row + 1) * self.row_bytes];
            self.code.decode(bytes, column, now);
            self.scale(row, column, now);
            out = later;
            start += length;
        }
    }

    /// Multiply entries of a row, the first of which is in `column`, by their scales.
    fn scale<T: Real>(&self, row: usize, column: usize, values: &mut [T]) {
        let run = self.tile[1];
        let (mut column, mut values) = (column, values);
        let mut scales = [T::ZERO; SCALES];
        while !values.is_empty() {
            let first = run - column % run;
            let length = values.len().min(first + (SCALES - 1) * run);
            let (now, later) = std::mem::take(&mut values).split_at_mut(length);
            let count = 1 + now.len().saturating_sub(first).div_ceil(run);
            self.scales_of(row, column / run, &mut scales[..count]);
            multiply_runs(now, first, run, &scales[..count]);
            column += now.len();
            values = later;
        }
    }

    /// The scales of a row, from that of the tile at index `first` on.
    fn scales_of<T: Real>(&self, row: usize, first: usize, out: &mut [T]) {
        let (matrix, row) = (row / self.rows, row % self.rows);
        let start = (matrix * self.grid[0] + row / self.tile[0]) * self.grid[1] + first;
        if let Some(dtype) = self.scale_dtype.float() {
            let size = dtype.size();
            T::widen(dtype, &self.scales[start * size..(start + out.len()) * size], out);
        } else {
            for (out, &exponent) in out.iter_mut().zip(&self.scales[start..]) {
                *out = power_of_two(exponent);
            }
        }
    }

    /// Entries of stored columns: one at a time, since each is in a row of its own.
    fn read_transposed<T: Real>(&self, entries: Range<usize>, out: &mut [T]) {
        for (entry, out) in entries.zip(out) {
            let (matrix, within) =
                (entry / (self.rows * self.columns), entry % (self.rows * self.columns));
            let (column, row) = (within / self.rows, matrix * self.rows + within % self.rows);
            let mut scale = [T::ZERO];
            let bytes = &self.values[row * self.row_bytes..];
            self.code.decode(bytes, column, std::slice::from_mut(out));
            self.scales_of(row, column / self.tile[1], &mut scale);
            *out = *out * scale[0];
        }
    }

    /// Prefetch entries.
    pub(super) fn prefetch(&self, entries: Range<usize>) {
        if !self.transposed && self.columns > 0 {
            let byte = |entry: usize| {
                let (row, column) = (entry / self.columns, entry % self.columns);
                row * self.row_bytes + column / self.code.per_byte()
            };
            let end = byte(entries.end).min(self.values.len());
            processor::prefetch(&self.values[byte(entries.start).min(end)..end]);
        }
    }

    fn exponents(&self) -> bool {
        matches!(self.scale_dtype, Dtype::U8 | Dtype::F8E8M0)
    }
}

/// `2^(exponent − 127)`; NaN for 255.
fn power_of_two<T: Real>(exponent: u8) -> T {
    let bits = match exponent {
        0 => 1 << 22,
        255 => 0x7fc0_0000,
        exponent => u32::from(exponent) << 23,
    };
    T::read_f32(f32::from_bits(bits).to_le_bytes())
}
