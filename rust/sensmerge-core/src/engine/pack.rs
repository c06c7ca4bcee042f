//! Quantises merged rows, a row of tiles at a time:
//!
//! ```text
//! gather the rows that share their tiles
//! scale of a tile = its largest magnitude / the code's largest, rounded to the dtype of scales
//! code of an entry = entry / scale, rounded to nearest even
//! ```

use crate::dtype::{Float, Real};
use crate::kernel::scale::{divide_and_encode, raise_to_largest};
use crate::manifest::Packing;

/// The least scale of fp8 tiles, as their own tools have it: a tile of zeros has one too.
const LEAST_SCALE: f64 = 1e-12;

/// Quantised rows of one chunk, and the buffers of one thread.
#[derive(Default)]
pub(super) struct Packer<T: Real> {
    /// Entries of the rows of tiles that are not complete yet.
    rows: Vec<T>,
    /// A row, divided by its scales.
    divided: Vec<T>,
    /// The scales of a row of tiles, as they are stored.
    tiles: Vec<T>,
    /// The codes of the complete rows.
    pub(super) values: Vec<u8>,
    /// The scales of the complete rows of tiles.
    pub(super) scales: Vec<u8>,
}

impl<T: Real> Packer<T> {
    /// Start a chunk.
    pub(super) fn start(&mut self) {
        self.rows.clear();
        self.values.clear();
        self.scales.clear();
    }

    /// Add entries of rows of `columns` each, in order.
    pub(super) fn push(&mut self, packing: Packing, columns: usize, entries: &[T]) {
        self.rows.extend_from_slice(entries);
        let whole = packing.tile()[0] * columns;
        while self.rows.len() >= whole {
            self.pack(packing, columns, whole);
            self.rows.drain(..whole);
        }
    }

    /// Complete the last row of tiles, which may have fewer rows.
    pub(super) fn finish(&mut self, packing: Packing, columns: usize) {
        let rest = self.rows.len();
        if rest > 0 {
            self.pack(packing, columns, rest);
        }
    }

    /// Quantise the first `entries` of the rows, which share their tiles.
    fn pack(&mut self, packing: Packing, columns: usize, entries: usize) {
        let (run, code) = (packing.tile()[1], packing.code());
        let Self { rows, divided, tiles, values, scales } = self;
        let rows = &rows[..entries];
        tiles.clear();
        tiles.resize(columns.div_ceil(run), T::ZERO);
        for row in rows.chunks(columns) {
            raise_to_largest(row, run, tiles);
        }
        to_scales(packing, tiles, scales);
        divided.resize(columns, T::ZERO);
        let used = columns.div_ceil(code.per_byte());
        for row in rows.chunks(columns) {
            let start = values.len();
            values.resize(start + packing.row_bytes(columns), 0);
            let out = &mut values[start..start + used];
            divide_and_encode(row, run, tiles, code, divided, out);
        }
    }
}

/// Turn the largest magnitudes of tiles into their scales as stored, and add their bytes to `stored`.
fn to_scales<T: Real>(packing: Packing, tiles: &mut [T], stored: &mut Vec<u8>) {
    let largest = T::from_f64(packing.code().largest().into());
    for tile in tiles.iter_mut() {
        let scale = *tile / largest;
        *tile = match packing {
            Packing::Float8 { .. } if scale < T::from_f64(LEAST_SCALE) => T::from_f64(LEAST_SCALE),
            Packing::Int4 { .. } if scale == T::ZERO => T::ONE,
            _ => scale,
        };
    }
    let (dtype, start) = (packing.scales(), stored.len());
    stored.resize(start + tiles.len() * dtype.size(), 0);
    let bytes = &mut stored[start..];
    T::narrow(tiles, dtype, bytes);
    if let (Packing::Float8 { powers_of_two: true, .. }, Float::F32) = (packing, dtype) {
        for entry in bytes.as_chunks_mut::<4>().0 {
            *entry = round_up_to_power_of_two(f32::from_le_bytes(*entry)).to_le_bytes();
        }
    }
    T::widen(dtype, bytes, tiles);
}

/// The least power of two that is not below a normal number: the carry of its mantissa.
fn round_up_to_power_of_two(value: f32) -> f32 {
    f32::from_bits((value.to_bits() + 0x7f_ffff) & 0x7f80_0000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Code;
    use proptest::prelude::*;

    #[test]
    fn scales_are_rounded_up_to_powers_of_two() {
        for (value, expected) in [(1.0, 1.0), (1.000_001, 2.0), (0.75, 1.0), (3.0, 4.0)] {
            assert_eq!(round_up_to_power_of_two(value), expected);
        }
    }

    /// Codes and scales by the definition: entry by entry, in float64.
    fn by_hand(packing: Packing, columns: usize, values: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let [height, width] = packing.tile();
        let rows = values.len() / columns;
        let (mut codes, mut scales) = (vec![0.0; values.len()], Vec::new());
        for top in (0..rows).step_by(height) {
            for left in (0..columns).step_by(width) {
                let mut places = Vec::new();
                for row in top..rows.min(top + height) {
                    let tile = left..columns.min(left + width);
                    places.extend(tile.map(|column| row * columns + column));
                }
                let largest = places.iter().map(|&at| values[at].abs()).fold(0.0, f32::max);
                let scale = match packing {
                    Packing::Float8 { .. } => (largest / 448.0).max(1e-12),
                    Packing::Int4 { .. } if largest == 0.0 => 1.0,
                    Packing::Int4 { .. } => half::bf16::from_f32(largest / 7.0).to_f32(),
                };
                scales.push(f64::from(scale));
                for at in places {
                    let mut byte = [0];
                    packing.code().encode(&[values[at] / scale], &mut byte);
                    let mut out = [0.0];
                    packing.code().decode(&byte, 0, &mut out);
                    codes[at] = out[0];
                }
            }
        }
        (codes, scales)
    }

    proptest! {
        #[test]
        fn tiles_are_packed_as_their_definition_says(
            columns in 1..70_usize,
            rows in 1..40_usize,
            tile in (1..20_usize, 1..40_usize),
            piece in 1..200_usize,
            seed in prop::collection::vec(-3.0_f32..3.0, 53),
        ) {
            let values: Vec<f32> = (0..rows * columns).map(|at| seed[(at * 7 + at / 50) % 53]).collect();
            let float8 = Packing::Float8 { tile: tile.into(), powers_of_two: false };
            for packing in [float8, Packing::Int4 { group: tile.1 }] {
                let mut packer = Packer::<f32>::default();
                packer.start();
                values.chunks(piece).for_each(|piece| packer.push(packing, columns, piece));
                packer.finish(packing, columns);
                let (codes, scales) = by_hand(packing, columns, &values);
                let mut found = vec![0.0_f64; scales.len()];
                f64::widen(packing.scales(), &packer.scales, &mut found);
                prop_assert_eq!(found, scales);
                let mut decoded = Vec::new();
                for row in packer.values.chunks(packing.row_bytes(columns)) {
                    let mut out = vec![0.0_f64; columns];
                    packing.code().decode(row, 0, &mut out);
                    decoded.extend(out);
                    let used = columns.div_ceil(packing.code().per_byte());
                    prop_assert!(row[used..].iter().all(|byte| *byte == 0));
                    if packing.code() == Code::Int4 && columns % 2 == 1 {
                        prop_assert_eq!(row[used - 1] >> 4, 0);
                    }
                }
                prop_assert_eq!(decoded, codes);
            }
        }
    }
}
