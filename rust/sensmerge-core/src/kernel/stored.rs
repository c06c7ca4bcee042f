//! Dtypes that kernels read and write themselves, entry by entry, so that no buffer of floats lies between.

use super::entries;
use crate::dtype::{Real, f32_to_bf16_unless_nan, f32_to_f16};

/// A dtype that is computed in float32.
pub(super) trait Stored {
    /// The bytes of an entry, little-endian.
    type Entry: Copy;

    /// The bits of the smallest magnitude that is not stored as a finite number.
    const BEYOND: i32;

    /// Stored entries.
    ///
    /// # Panics
    /// If `bytes` is not a whole number of them.
    fn entries(bytes: &[u8]) -> &[Self::Entry];

    /// Stored entries, to be changed.
    ///
    /// # Panics
    /// As [`entries`](Self::entries).
    fn entries_mut(bytes: &mut [u8]) -> &mut [Self::Entry];

    /// Widen an entry, exactly.
    fn widen(entry: Self::Entry) -> f32;

    /// Round a number once, to nearest even. NaN may become anything.
    fn narrow(value: f32) -> Self::Entry;
}

/// float16.
pub(super) struct F16;

/// bfloat16.
pub(super) struct Bf16;

/// float32.
pub(super) struct F32;

macro_rules! stored {
    ($name:ident, $size:literal, $beyond:expr, $widen:expr, $narrow:expr) => {
        impl Stored for $name {
            type Entry = [u8; $size];
            const BEYOND: i32 = $beyond;

            fn entries(bytes: &[u8]) -> &[[u8; $size]] {
                entries(bytes)
            }

            fn entries_mut(bytes: &mut [u8]) -> &mut [[u8; $size]] {
                let (entries, rest) = bytes.as_chunks_mut();
                assert!(rest.is_empty(), "entries do not match their bytes");
                entries
            }

            #[inline(always)]
            fn widen(entry: [u8; $size]) -> f32 {
                $widen(entry)
            }

            #[inline(always)]
            fn narrow(value: f32) -> [u8; $size] {
                $narrow(value).to_le_bytes()
            }
        }
    };
}

// float16 ends half way between its largest number and the next power of two, which is rounded to even.
stored!(F16, 2, 65_520.0_f32.to_bits().cast_signed(), f32::read_f16, f32_to_f16);
stored!(Bf16, 2, 0x7f7f_8000, f32::read_bf16, f32_to_bf16_unless_nan);
stored!(F32, 4, f32::INFINITY.to_bits().cast_signed(), f32::read_f32, f32::to_bits);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Float;
    use crate::kernel::samples::{any, same};
    use proptest::prelude::*;

    fn agrees<S: Stored>(value: f32, dtype: Float) {
        let (mut expected, mut found) = (vec![0; dtype.size()], vec![0; dtype.size()]);
        f32::narrow(&[value], dtype, &mut expected);
        let mut back = [0.0];
        f32::widen(dtype, &expected, &mut back);
        assert_eq!(value.magnitude() >= S::BEYOND, !back[0].is_finite(), "{value:e} as {dtype:?}");
        if !value.is_nan() {
            S::entries_mut(&mut found)[0] = S::narrow(value);
            assert_eq!(found, expected);
        }
        assert!(same(&[S::widen(S::entries(&expected)[0])], &back));
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
