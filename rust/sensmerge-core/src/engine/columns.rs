//! The columns of a matrix in another order, gathered while the matrix is read.

use std::ops::Range;

use super::entries::Entries;
use super::inputs::Inputs;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::manifest::Source;
use crate::program::block::BLOCK;

/// Bytes of the widest stored entry.
const WIDEST: usize = 8;

/// A matrix and the order of its columns.
pub(super) struct Columns<'i> {
    of: Entries<'i>,
    /// For every column of the result, that of the matrix.
    places: Vec<u32>,
    /// Number of columns of the matrix.
    row_length: usize,
}

impl<'i> Columns<'i> {
    /// Look up the bytes of the matrix.
    ///
    /// # Errors
    /// As [`Entries::of`]; [`Error::Setting`] for columns that do not exist.
    pub(super) fn of(of: &Source, runs: &[[usize; 2]], inputs: &'i Inputs) -> Result<Self> {
        let shape = of.shape();
        let columns = shape.get(1).copied().filter(|_| shape.len() == 2).unwrap_or(0);
        let there = |[first, count]: &[usize; 2]| {
            first.checked_add(*count).is_some_and(|end| end <= columns)
        };
        if !runs.iter().all(there) || u32::try_from(columns).is_err() {
            let reason = format!("takes columns {runs:?} of a tensor of shape {shape:?}");
            return Err(Error::setting("manifest", reason));
        }
        let places = runs.iter().flat_map(|&[first, count]| first..first + count);
        let places = places.map(|place| place as u32).collect();
        Ok(Self { of: Entries::of(of, inputs)?, places, row_length: columns })
    }

    /// The matrix in its own order.
    pub(super) fn unordered(&self) -> &Entries<'i> {
        &self.of
    }

    /// Read entries, as [`Entries::read`] does.
    pub(super) fn read<T: Real>(&self, entries: Range<usize>, out: &mut [T]) {
        let width = self.places.len();
        let (mut start, mut out) = (entries.start, out);
        while start < entries.end {
            let (row, first) = (start / width, start % width);
            let length = (width - first).min(entries.end - start).min(BLOCK);
            let (now, later) = std::mem::take(&mut out).split_at_mut(length);
            self.read_part(row * self.row_length, &self.places[first..first + length], now);
            out = later;
            start += length;
        }
    }

    /// Read some columns, at most a block, of the row whose first entry is `row`.
    fn read_part<T: Real>(&self, row: usize, places: &[u32], out: &mut [T]) {
        if let Entries::Stored { bytes, dtype } = &self.of {
            let mut gathered = [0_u8; BLOCK * WIDEST];
            let size = dtype.size();
            let gathered = &mut gathered[..places.len() * size];
            let bytes = &bytes[row * size..(row + self.row_length) * size];
            match size {
                2 => gather::<2>(bytes, places, gathered),
                4 => gather::<4>(bytes, places, gathered),
                _ => gather::<WIDEST>(bytes, places, gathered),
            }
            return T::widen(*dtype, gathered, out);
        }
        // Other sources are read as far as the places reach: no more than a row.
        let first = places.iter().min().map_or(0, |&place| place as usize);
        let end = places.iter().max().map_or(0, |&place| place as usize + 1);
        let mut span = vec![T::ZERO; end - first];
        for (place, part) in span.chunks_mut(BLOCK).enumerate() {
            let start = row + first + place * BLOCK;
            self.of.read(start..start + part.len(), part);
        }
        for (slot, &place) in out.iter_mut().zip(places) {
            *slot = span[place as usize - first];
        }
    }
}

/// Copy the entries at `places`, each of `SIZE` bytes.
fn gather<const SIZE: usize>(bytes: &[u8], places: &[u32], out: &mut [u8]) {
    let (entries, _) = bytes.as_chunks::<SIZE>();
    let (slots, _) = out.as_chunks_mut::<SIZE>();
    for (slot, &place) in slots.iter_mut().zip(places) {
        *slot = entries[place as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, MemoryTensor};
    use crate::dtype::Dtype;
    use crate::manifest::{Run, Stored};
    use proptest::prelude::*;
    use std::sync::Arc;

    const ROWS: usize = 3;

    /// A matrix that tells every place apart, in float32 or float64, stored or as rows of a stored one.
    fn matrix(columns: usize, double: bool, rows: bool) -> (Inputs, Source, Vec<f64>) {
        let values: Vec<f64> = (0..ROWS * columns).map(|place| place as f64).collect();
        let bytes: Vec<u8> = if double {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        } else {
            values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect()
        };
        let dtype = if double { Dtype::F64 } else { Dtype::F32 };
        let shape = vec![ROWS, columns];
        let tensor = MemoryTensor { name: "w".into(), dtype, shape, bytes: Box::new(bytes) };
        let checkpoint = Arc::new(Checkpoint::from_memory("model", vec![tensor]).expect("fits"));
        let source = Source::Stored(Stored::of(0, checkpoint.get("w").expect("is there")));
        let runs = vec![Run { of: 0, first: 0, count: ROWS }];
        let source = if rows { Source::Rows { of: vec![source], runs } } else { source };
        (Inputs::new(vec![checkpoint]), source, values)
    }

    proptest! {
        #[test]
        fn columns_are_those_of_the_matrix(
            order in prop_oneof![1..40_usize, Just(1500)]
                .prop_flat_map(|columns| Just((0..columns).collect::<Vec<_>>()).prop_shuffle()),
            double in any::<bool>(),
            rows in any::<bool>(),
            window in (0.0..1.0_f64, 0.0..1.0_f64),
        ) {
            let columns = order.len();
            let (inputs, of, values) = matrix(columns, double, rows);
            let expected: Vec<f64> = (0..ROWS)
                .flat_map(|row| order.iter().map(move |column| row * columns + column))
                .map(|place| values[place])
                .collect();
            let runs = order.iter().map(|&column| [column, 1]).collect();
            let source = Source::Columns { of: Box::new(of), runs };
            prop_assert_eq!(source.shape(), vec![ROWS, columns]);
            let entries = Entries::of(&source, &inputs).expect("fits");
            let place = |share: f64| (share * (expected.len() + 1) as f64) as usize;
            let (a, b) = (place(window.0), place(window.1));
            let (start, end) = (a.min(b), a.max(b).min(expected.len()));
            let range = start.min(end)..end;
            let mut found = vec![9.0_f64; range.len()];
            entries.prefetch(range.clone());
            entries.read(range.clone(), &mut found);
            prop_assert_eq!(&found, &expected[range]);
        }
    }

    #[test]
    fn columns_that_there_are_not_are_refused() {
        let (inputs, of, _) = matrix(4, false, false);
        for run in [[3, 2], [usize::MAX, 2]] {
            let source = Source::Columns { of: Box::new(of.clone()), runs: vec![run] };
            assert!(Entries::of(&source, &inputs).is_err());
        }
    }
}
