//! Strips of entries between stored bytes and registers, for kernels that read or write stored entries
//! themselves: no buffer of floats lies between.

use crate::dtype::{Float, Real, f32_to_bf16_unless_nan, f32_to_f16};

/// A dtype that is computed in float32, whose entries are stored in `SIZE` bytes.
pub(super) trait Entry {
    /// Size of an entry in bytes.
    const SIZE: usize;

    /// The bits of the smallest magnitude that is not stored as a finite number.
    const BEYOND: i32;

    /// `N` stored entries, widened exactly.
    fn load<const N: usize>(bytes: &[u8]) -> [f32; N];

    /// Store entries, rounded once, to nearest even. NaN may become anything.
    fn store<const N: usize>(values: &[f32; N], bytes: &mut [u8]);
}

/// float16.
pub(super) struct F16;

/// bfloat16.
pub(super) struct Bf16;

/// float32.
pub(super) struct F32;

/// The entries of `bytes`, of which there are at least `N`.
#[inline(always)]
fn load<const N: usize, const SIZE: usize>(
    bytes: &[u8],
    widen: impl Fn([u8; SIZE]) -> f32,
) -> [f32; N] {
    let entries = bytes.as_chunks::<SIZE>().0;
    let entries: &[[u8; SIZE]; N] = entries.try_into().expect("a strip has its bytes");
    entries.map(widen)
}

#[inline(always)]
fn store<const N: usize, const SIZE: usize>(
    values: &[f32; N],
    bytes: &mut [u8],
    narrow: impl Fn(f32) -> [u8; SIZE],
) {
    let entries = bytes.as_chunks_mut::<SIZE>().0;
    let entries: &mut [[u8; SIZE]; N] = entries.try_into().expect("a strip has its bytes");
    for (entry, &value) in entries.iter_mut().zip(values) {
        *entry = narrow(value);
    }
}

impl Entry for F16 {
    const SIZE: usize = 2;
    /// Half way between the largest float16 and the next power of two: rounded to even, it overflows.
    const BEYOND: i32 = 65_520.0_f32.to_bits().cast_signed();

    #[inline(always)]
    fn load<const N: usize>(bytes: &[u8]) -> [f32; N] {
        load(bytes, f32::read_f16)
    }

    #[inline(always)]
    fn store<const N: usize>(values: &[f32; N], bytes: &mut [u8]) {
        store(values, bytes, |value| f32_to_f16(value).to_le_bytes());
    }
}

impl Entry for Bf16 {
    const SIZE: usize = 2;
    const BEYOND: i32 = 0x7f7f_8000;

    #[inline(always)]
    fn load<const N: usize>(bytes: &[u8]) -> [f32; N] {
        load(bytes, f32::read_bf16)
    }

    #[inline(always)]
    fn store<const N: usize>(values: &[f32; N], bytes: &mut [u8]) {
        store(values, bytes, |value| f32_to_bf16_unless_nan(value).to_le_bytes());
    }
}

impl Entry for F32 {
    const SIZE: usize = 4;
    const BEYOND: i32 = f32::INFINITY.to_bits().cast_signed();

    #[inline(always)]
    fn load<const N: usize>(bytes: &[u8]) -> [f32; N] {
        load(bytes, f32::read_f32)
    }

    #[inline(always)]
    fn store<const N: usize>(values: &[f32; N], bytes: &mut [u8]) {
        store(values, bytes, f32::to_le_bytes);
    }
}

/// Call a function that is generic over an [`Entry`] for a [`Float`]; `None` for float64.
macro_rules! with_entry {
    ($dtype:expr, $entry:ident => $call:expr) => {{
        use $crate::kernel::strip::{Bf16, F16, F32};
        match $dtype {
            $crate::dtype::Float::F16 => {
                type $entry = F16;
                Some($call)
            }
            $crate::dtype::Float::Bf16 => {
                type $entry = Bf16;
                Some($call)
            }
            $crate::dtype::Float::F32 => {
                type $entry = F32;
                Some($call)
            }
            $crate::dtype::Float::F64 => None,
        }
    }};
}
pub(super) use with_entry;

/// Whether a dtype is an [`Entry`].
#[must_use]
pub fn is_entry(dtype: Float) -> bool {
    dtype != Float::F64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples::{any, same};
    use proptest::prelude::*;

    fn beyond<E: Entry>(value: f32) -> bool {
        value.magnitude() >= E::BEYOND
    }

    fn agrees<E: Entry>(value: f32, dtype: Float) {
        let (mut expected, mut found) = (vec![0; E::SIZE], vec![0; E::SIZE]);
        f32::narrow(&[value], dtype, &mut expected);
        let mut back = [0.0];
        f32::widen(dtype, &expected, &mut back);
        assert_eq!(beyond::<E>(value), !back[0].is_finite(), "{value:e} as {dtype:?}");
        if !value.is_nan() {
            E::store(&[value], &mut found);
            assert_eq!(found, expected);
        }
        assert!(same(&E::load::<1>(&expected), &back));
    }

    proptest! {
        #[test]
        fn as_the_conversions_of_dtypes(value in any(), bits in proptest::num::u32::ANY) {
            for value in [value, f32::from_bits(bits)] {
                agrees::<F16>(value, Float::F16);
                agrees::<Bf16>(value, Float::Bf16);
                agrees::<F32>(value, Float::F32);
            }
        }
    }

    #[test]
    fn at_the_ends_of_ranges() {
        for value in [65_504.0, 65_519.99, 65_520.0, 65_536.0, f32::MAX, f32::INFINITY, f32::NAN] {
            agrees::<F16>(value, Float::F16);
        }
        for bits in [0x7f7f_0000, 0x7f7f_7fff, 0x7f7f_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001] {
            agrees::<Bf16>(f32::from_bits(bits), Float::Bf16);
            agrees::<F32>(f32::from_bits(bits), Float::F32);
        }
    }
}
