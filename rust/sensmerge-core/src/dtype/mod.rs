//! The dtypes of safetensors files, and the conversions of floats: widened for computing, rounded
//! once for storing.
//!
//! Conversions have no branch per entry, so that the loops vectorise on any target, and give the same
//! bits on every target: no hardware conversion that flushes subnormals is used.

mod code;

use std::ops::{Add, AddAssign, Div, Mul, Sub};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::processor::widest;
pub use code::Code;

/// Every dtype that a safetensors header can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the format's")]
pub enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

const NAMES: [(Dtype, &str, usize); 22] = [
    (Dtype::Bool, "BOOL", 8),
    (Dtype::F4, "F4", 4),
    (Dtype::F6E2M3, "F6_E2M3", 6),
    (Dtype::F6E3M2, "F6_E3M2", 6),
    (Dtype::U8, "U8", 8),
    (Dtype::I8, "I8", 8),
    (Dtype::F8E5M2, "F8_E5M2", 8),
    (Dtype::F8E4M3, "F8_E4M3", 8),
    (Dtype::F8E8M0, "F8_E8M0", 8),
    (Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", 8),
    (Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", 8),
    (Dtype::I16, "I16", 16),
    (Dtype::U16, "U16", 16),
    (Dtype::F16, "F16", 16),
    (Dtype::Bf16, "BF16", 16),
    (Dtype::I32, "I32", 32),
    (Dtype::U32, "U32", 32),
    (Dtype::F32, "F32", 32),
    (Dtype::C64, "C64", 64),
    (Dtype::F64, "F64", 64),
    (Dtype::I64, "I64", 64),
    (Dtype::U64, "U64", 64),
];

impl Dtype {
    /// The name in safetensors headers, such as `BF16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// The dtype that a header names.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known, _)| *known == name).map(|&(dtype, ..)| dtype)
    }

    /// Size of one entry in bits.
    #[must_use]
    pub fn bits(self) -> usize {
        NAMES[self as usize].2
    }

    /// The dtype as a [`Float`]; `None` for a dtype that is not merged.
    #[must_use]
    pub fn float(self) -> Option<Float> {
        match self {
            Self::F16 => Some(Float::F16),
            Self::Bf16 => Some(Float::Bf16),
            Self::F32 => Some(Float::F32),
            Self::F64 => Some(Float::F64),
            _ => None,
        }
    }
}

impl Serialize for Dtype {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::from_name(&name)
            .ok_or_else(|| serde::de::Error::custom(format!("dtype '{name}' is not known")))
    }
}

/// The dtypes that are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Float {
    /// IEEE half precision.
    #[serde(rename = "float16", alias = "fp16")]
    F16,
    /// The upper half of a float32.
    #[serde(rename = "bfloat16", alias = "bf16")]
    Bf16,
    /// IEEE single precision.
    #[serde(rename = "float32", alias = "fp32")]
    F32,
    /// IEEE double precision.
    #[serde(rename = "float64", alias = "fp64")]
    F64,
}

impl Float {
    /// Size of one entry in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        self.dtype().bits() / 8
    }

    /// The dtype as a [`Dtype`].
    #[must_use]
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::F32 => Dtype::F32,
            Self::F64 => Dtype::F64,
        }
    }
}

/// The error for a dtype name that is none of float16, bfloat16, float32, float64 and their short
/// forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFloat;

impl FromStr for Float {
    type Err = UnknownFloat;

    fn from_str(name: &str) -> Result<Self, UnknownFloat> {
        match name {
            "float16" | "fp16" => Ok(Self::F16),
            "bfloat16" | "bf16" => Ok(Self::Bf16),
            "float32" | "fp32" => Ok(Self::F32),
            "float64" | "fp64" => Ok(Self::F64),
            _ => Err(UnknownFloat),
        }
    }
}

/// The types that merges are computed in: f32, and f64 where an input is float64.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + std::fmt::Debug
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + 'static
{
    /// The bits of an absolute value, as an integer that is never negative.
    type Magnitude: Copy + Default + Ord + Into<i64> + TryFrom<i64> + Send + Sync + std::fmt::Debug;

    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Infinity.
    const INFINITY: Self;
    /// The largest bits of a magnitude.
    const LARGEST_MAGNITUDE: Self::Magnitude;

    /// Round to this type, to nearest even.
    fn from_f64(value: f64) -> Self;
    /// Widen, exactly.
    fn to_f64(self) -> f64;
    /// `|self|`.
    #[must_use]
    fn abs(self) -> Self;
    /// `self` if `kept`, else +0. A bit mask: compilers turn an `if` into a branch or a masked store.
    #[must_use]
    fn only_if(self, kept: bool) -> Self;
    /// The bits of `|self|`: they order as magnitudes do, NaN above infinity.
    fn magnitude(self) -> Self::Magnitude;
    /// The number that is not negative and has these bits.
    #[must_use]
    fn of_magnitude(magnitude: Self::Magnitude) -> Self;
    /// How far a magnitude is below a larger one, in steps of which a power of two has `2^bits`.
    fn steps_down(from: Self::Magnitude, magnitude: Self::Magnitude, bits: u32) -> u32;

    /// To float32, rounded to odd: a second rounding, to a format of at most 22 significant bits, then
    /// gives the same as rounding once.
    fn to_odd(self) -> f32;

    /// One little-endian float16, exactly.
    fn read_f16(entry: [u8; 2]) -> Self;
    /// One little-endian bfloat16, exactly.
    fn read_bf16(entry: [u8; 2]) -> Self;
    /// One little-endian float32, exactly.
    fn read_f32(entry: [u8; 4]) -> Self;
    /// One little-endian float64, rounded to nearest even where this type is narrower.
    fn read_f64(entry: [u8; 8]) -> Self;

    /// Read entries of dtype `from`, little-endian at any alignment. Exact, except that float64 is
    /// rounded to nearest even for f32.
    ///
    /// # Panics
    /// If `bytes` does not hold exactly `out.len()` entries.
    fn widen(from: Float, bytes: &[u8], out: &mut [Self]) {
        match from {
            Float::F16 => read(bytes, out, Self::read_f16),
            Float::Bf16 => read(bytes, out, Self::read_bf16),
            Float::F32 => read(bytes, out, Self::read_f32),
            Float::F64 => read(bytes, out, Self::read_f64),
        }
    }

    /// Store entries as dtype `to`, rounded once, to nearest even. Subnormals are kept, NaN stays
    /// NaN, and values out of range become infinite.
    ///
    /// # Panics
    /// If `out` does not hold exactly `values.len()` entries.
    fn narrow(values: &[Self], to: Float, out: &mut [u8]);
}

impl Real for f32 {
    type Magnitude = i32;

    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const INFINITY: Self = f32::INFINITY;
    const LARGEST_MAGNITUDE: i32 = i32::MAX;

    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn abs(self) -> Self {
        f32::abs(self)
    }

    #[inline]
    fn only_if(self, kept: bool) -> Self {
        Self::from_bits(self.to_bits() & 0_u32.wrapping_sub(u32::from(kept)))
    }

    #[inline]
    fn magnitude(self) -> i32 {
        (self.to_bits() & 0x7fff_ffff).cast_signed()
    }

    #[inline]
    fn to_odd(self) -> f32 {
        self
    }

    #[inline(always)]
    fn steps_down(from: i32, magnitude: i32, bits: u32) -> u32 {
        ((from - magnitude) >> (f32::MANTISSA_DIGITS - 1 - bits)).cast_unsigned()
    }

    #[inline]
    fn of_magnitude(magnitude: i32) -> Self {
        Self::from_bits(magnitude.cast_unsigned())
    }

    #[inline]
    fn read_f16(entry: [u8; 2]) -> Self {
        f16_to_f32(u16::from_le_bytes(entry))
    }

    #[inline]
    fn read_bf16(entry: [u8; 2]) -> Self {
        bf16_to_f32(u16::from_le_bytes(entry))
    }

    #[inline]
    fn read_f32(entry: [u8; 4]) -> Self {
        Self::from_le_bytes(entry)
    }

    #[inline]
    fn read_f64(entry: [u8; 8]) -> Self {
        f64::from_le_bytes(entry) as Self
    }

    fn narrow(values: &[Self], to: Float, out: &mut [u8]) {
        match to {
            Float::F16 => write(values, out, |value| f32_to_f16(value).to_le_bytes()),
            Float::Bf16 => write(values, out, |value| f32_to_bf16(value).to_le_bytes()),
            Float::F32 => write(values, out, f32::to_le_bytes),
            Float::F64 => write(values, out, |value| f64::from(value).to_le_bytes()),
        }
    }
}

impl Real for f64 {
    type Magnitude = i64;

    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const INFINITY: Self = f64::INFINITY;
    const LARGEST_MAGNITUDE: i64 = i64::MAX;

    fn from_f64(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }

    fn abs(self) -> Self {
        f64::abs(self)
    }

    #[inline]
    fn only_if(self, kept: bool) -> Self {
        Self::from_bits(self.to_bits() & 0_u64.wrapping_sub(u64::from(kept)))
    }

    #[inline]
    fn magnitude(self) -> i64 {
        (self.to_bits() & 0x7fff_ffff_ffff_ffff).cast_signed()
    }

    #[inline]
    fn to_odd(self) -> f32 {
        to_odd(self)
    }

    #[inline(always)]
    fn steps_down(from: i64, magnitude: i64, bits: u32) -> u32 {
        ((from - magnitude) >> (f64::MANTISSA_DIGITS - 1 - bits)) as u32
    }

    #[inline]
    fn of_magnitude(magnitude: i64) -> Self {
        Self::from_bits(magnitude.cast_unsigned())
    }

    #[inline]
    fn read_f16(entry: [u8; 2]) -> Self {
        f32::read_f16(entry).into()
    }

    #[inline]
    fn read_bf16(entry: [u8; 2]) -> Self {
        f32::read_bf16(entry).into()
    }

    #[inline]
    fn read_f32(entry: [u8; 4]) -> Self {
        f32::from_le_bytes(entry).into()
    }

    #[inline]
    fn read_f64(entry: [u8; 8]) -> Self {
        Self::from_le_bytes(entry)
    }

    fn narrow(values: &[Self], to: Float, out: &mut [u8]) {
        match to {
            Float::F16 => write(values, out, |value| f32_to_f16(to_odd(value)).to_le_bytes()),
            Float::Bf16 => write(values, out, |value| f32_to_bf16(to_odd(value)).to_le_bytes()),
            Float::F32 => write(values, out, |value| (value as f32).to_le_bytes()),
            Float::F64 => write(values, out, f64::to_le_bytes),
        }
    }
}

fn read<const N: usize, T: Copy>(bytes: &[u8], out: &mut [T], entry: impl Fn([u8; N]) -> T) {
    let (entries, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty() && entries.len() == out.len(), "entries do not match their bytes");
    convert(entries, out, entry);
}

fn write<const N: usize, T: Copy>(values: &[T], out: &mut [u8], bytes: impl Fn(T) -> [u8; N]) {
    let (entries, rest) = out.as_chunks_mut::<N>();
    assert!(rest.is_empty() && entries.len() == values.len(), "entries do not match their bytes");
    convert(values, entries, bytes);
}

widest! {
    fn convert<A: Copy, B: Copy, F: Fn(A) -> B>(from: &[A], to: &mut [B], convert: F) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = convert(from);
        }
    }
}

#[inline]
fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Add half a unit of the last kept bit (one ulp of float32 less where that bit is 0) and cut: the
/// carry rounds to nearest even, and turns values beyond the largest bfloat16 into infinity.
#[inline]
fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// The same but for NaN, which may become anything.
#[inline]
pub(crate) fn f32_to_bf16_unless_nan(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Shift exponent and mantissa to their places in a float32 and correct the exponent's bias by a
/// multiplication, which is exact for subnormals too. Infinity and NaN get the largest exponent.
#[inline]
fn f16_to_f32(bits: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + (127 - 15)) << 23);
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * BIAS).to_bits();
    // A mask instead of a branch: all ones where the exponent is the largest.
    let special = 0_u32.wrapping_sub(u32::from(magnitude >= 0x7c00 << 13));
    f32::from_bits(sign | finite | (special & 0x7f80_0000))
}

/// Compute three cases and choose one: normal numbers are rounded by carry, as for bfloat16; for
/// subnormals, adding 0.5 moves the kept bits to the end of the mantissa and rounds them; the others
/// are infinite or NaN.
#[inline]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    const BEYOND: u32 = (127 + 16) << 23;
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;

    let rebiased = magnitude.wrapping_sub((127 - 15) << 23);
    let normal = rebiased.wrapping_add(0xfff + ((rebiased >> 13) & 1)) >> 13;
    let half = f32::from_bits((127 - 1) << 23);
    let subnormal = (f32::from_bits(magnitude) + half).to_bits().wrapping_sub(half.to_bits());
    let special = if magnitude > 0x7f80_0000 { 0x7e00 | ((bits >> 13) & 0x3ff) } else { 0x7c00 };

    let finite = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
    (sign | if magnitude >= BEYOND { special } else { finite }) as u16
}

/// Round to odd: towards zero, then set the last bit if the value was not exact. A second rounding,
/// to a format of at most 22 significant bits, then gives the same as rounding once.
#[inline]
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let (exact, back) = (value.abs(), f64::from(nearest).abs());
    let bits = nearest.to_bits();
    let truncated = bits.wrapping_sub(u32::from(back > exact));
    let odd = truncated | u32::from(back != exact);
    f32::from_bits(if value.is_finite() { odd } else { bits })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    fn narrow_f32(value: f32, to: Float) -> u16 {
        let mut bytes = [0; 2];
        f32::narrow(&[value], to, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn narrow_f64(value: f64, to: Float) -> u16 {
        let mut bytes = [0; 2];
        f64::narrow(&[value], to, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// The 16-bit number nearest to `value`, the even one of two, by trying all of them.
    fn nearest(value: f64, widened: &[(u16, f64)]) -> u16 {
        let distance = |&&(bits, other): &&(u16, f64)| ((other - value).abs(), bits & 1);
        let closest = widened.iter().min_by(|a, b| {
            distance(a).partial_cmp(&distance(b)).unwrap_or(std::cmp::Ordering::Equal)
        });
        closest.map_or(0, |&(bits, _)| bits)
    }

    #[test]
    fn names_are_the_formats_and_in_the_enums_order() {
        for (place, &(dtype, name, bits)) in NAMES.iter().enumerate() {
            assert_eq!(dtype as usize, place);
            assert_eq!(Dtype::from_name(name), Some(dtype));
            assert_eq!(dtype.bits(), bits);
        }
        assert_eq!(Dtype::from_name("bf16"), None);
    }

    #[test]
    fn every_16_bit_pattern_widens_exactly_and_comes_back() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            let mut wide = [0.0_f32];
            f32::widen(Float::F16, &bytes, &mut wide);
            let expected = f16::from_bits(bits);
            assert!(wide[0].to_bits() == expected.to_f32().to_bits() || expected.is_nan());
            assert_eq!(wide[0].is_nan(), expected.is_nan());
            if !expected.is_nan() {
                assert_eq!(narrow_f32(wide[0], Float::F16), bits);
            }
            f32::widen(Float::Bf16, &bytes, &mut wide);
            let expected = bf16::from_bits(bits);
            assert_eq!(wide[0].to_bits(), u32::from(bits) << 16);
            assert_eq!(wide[0].is_nan(), expected.is_nan());
            if !expected.is_nan() {
                assert_eq!(narrow_f32(wide[0], Float::Bf16), bits);
            }
        }
    }

    #[test]
    fn every_midpoint_between_16_bit_numbers_rounds_to_even() {
        for bits in 0..0x7c00_u16 {
            let (low, high) = (f16::from_bits(bits).to_f64(), f16::from_bits(bits + 1).to_f64());
            let even = bits + (bits & 1);
            let middle = if bits == 0x7bff { 65520.0 } else { f64::midpoint(low, high) };
            assert_eq!(narrow_f64(middle, Float::F16), even);
            assert_eq!(narrow_f32(middle as f32, Float::F16), even);
            assert_eq!(narrow_f64(middle.next_up(), Float::F16), bits + 1);
            assert_eq!(narrow_f64(middle.next_down(), Float::F16), bits);
        }
        for bits in 0..0x7f7f_u16 {
            let (low, high) = (bf16::from_bits(bits).to_f64(), bf16::from_bits(bits + 1).to_f64());
            let middle = f64::midpoint(low, high);
            assert_eq!(narrow_f64(middle, Float::Bf16), bits + (bits & 1));
            assert_eq!(narrow_f64(middle.next_up(), Float::Bf16), bits + 1);
            assert_eq!(narrow_f64(middle.next_down(), Float::Bf16), bits);
        }
    }

    #[test]
    fn nan_stays_nan_and_overflow_becomes_infinite() {
        for to in [Float::F16, Float::Bf16] {
            let infinity = if to == Float::F16 { 0x7c00 } else { 0x7f80 };
            assert_eq!(narrow_f32(f32::INFINITY, to), infinity);
            assert_eq!(narrow_f32(-f32::MAX, to), infinity | 0x8000);
            assert_eq!(narrow_f64(1e300, to), infinity);
            // The first NaN has its only set bit where a 16-bit format cannot keep it.
            for nan in [f32::from_bits(0x7f80_0001), f32::NAN] {
                assert!(narrow_f32(nan, to) & 0x7fff > infinity);
                assert!(narrow_f64(f64::from(nan), to) & 0x7fff > infinity);
            }
        }
    }

    proptest! {
        #[test]
        fn narrowing_agrees_with_the_half_crate(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(!value.is_nan());
            prop_assert_eq!(narrow_f32(value, Float::F16), f16::from_f32(value).to_bits());
            prop_assert_eq!(narrow_f32(value, Float::Bf16), bf16::from_f32(value).to_bits());
        }

        #[test]
        fn narrowing_a_double_rounds_once(value in -70000.0_f64..70000.0, scale in 0..60) {
            let value = value * 0.5_f64.powi(scale);
            prop_assume!(value.abs() < 65504.0);
            let finite = (0..=u16::MAX).map(|bits| (bits, f16::from_bits(bits).to_f64()));
            let widened: Vec<_> = finite.filter(|(_, other)| other.is_finite()).collect();
            let found = narrow_f64(value, Float::F16);
            let expected = nearest(value, &widened);
            prop_assert!(found == expected || (found ^ expected) == 0x8000 && expected << 1 == 0);
        }

        /// Long runs go through vector instructions, single values do not.
        #[test]
        fn a_run_is_narrowed_as_its_values_are(bits in prop::collection::vec(any::<u64>(), 1..70)) {
            let doubles: Vec<f64> = bits.iter().map(|&bits| f64::from_bits(bits)).collect();
            let singles: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits as u32)).collect();
            for to in [Float::F16, Float::Bf16] {
                let mut bytes = vec![0; 2 * bits.len()];
                let entries = |bytes: &[u8]| -> Vec<u16> {
                    bytes.as_chunks().0.iter().map(|&entry| u16::from_le_bytes(entry)).collect()
                };
                f32::narrow(&singles, to, &mut bytes);
                let expected: Vec<u16> = singles.iter().map(|&x| narrow_f32(x, to)).collect();
                prop_assert_eq!(entries(&bytes), expected);
                f64::narrow(&doubles, to, &mut bytes);
                let expected: Vec<u16> = doubles.iter().map(|&x| narrow_f64(x, to)).collect();
                prop_assert_eq!(entries(&bytes), expected);
            }
        }

        #[test]
        fn any_alignment_is_read(values in prop::collection::vec(any::<f32>(), 0..40)) {
            let mut bytes = vec![0; 1 + 4 * values.len()];
            f32::narrow(&values, Float::F32, &mut bytes[1..]);
            let mut back = vec![0.0; values.len()];
            f32::widen(Float::F32, &bytes[1..], &mut back);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back), bits(&values));
        }
    }
}
