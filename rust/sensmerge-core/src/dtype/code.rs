//! Codes of four and eight bits, in which quantised tensors are stored beside their scales: exact
//! decoding, and rounding to nearest even.
//!
//! Like the conversions of floats, the loops have no branch per entry and give the same bits on every
//! target.

use serde::{Deserialize, Serialize};

use super::{Dtype, Real};
use crate::processor::widest;

/// A code for numbers of a few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// One sign, four exponent and three mantissa bits; no infinity; one NaN of each sign.
    #[serde(rename = "float8_e4m3fn")]
    E4m3,
    /// One sign, five exponent and two mantissa bits: the upper half of a float16.
    #[serde(rename = "float8_e5m2")]
    E5m2,
    /// An integer from −8 to 7, stored as that plus 8; the first of two in the lower half of a byte.
    #[serde(rename = "int4")]
    Int4,
    /// One sign, two exponent bits and one mantissa bit; the first of two in the lower half of a byte.
    #[serde(rename = "float4_e2m1")]
    E2m1,
}

/// The largest number of [`Code::E4m3`].
const LARGEST_E4M3: f32 = 448.0;

/// The largest number of [`Code::Int4`] whose negative is one too.
const LARGEST_INT4: f32 = 7.0;

impl Code {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::E4m3 => "float8_e4m3fn",
            Self::E5m2 => "float8_e5m2",
            Self::Int4 => "int4",
            Self::E2m1 => "float4_e2m1",
        }
    }

    /// The code of a stored dtype; `None` if its entries are not codes of eight bits.
    #[must_use]
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F8E4M3 => Some(Self::E4m3),
            Dtype::F8E5M2 => Some(Self::E5m2),
            _ => None,
        }
    }

    /// Entries in a byte.
    #[must_use]
    pub fn per_byte(self) -> usize {
        match self {
            Self::E4m3 | Self::E5m2 => 1,
            Self::Int4 | Self::E2m1 => 2,
        }
    }

    /// The byte that codes zeros.
    #[must_use]
    pub fn zero(self) -> u8 {
        if self == Self::Int4 { 0x88 } else { 0 }
    }

    /// The largest number that it codes, of those whose negative is coded too.
    #[must_use]
    pub fn largest(self) -> f32 {
        match self {
            Self::E4m3 => LARGEST_E4M3,
            Self::E5m2 => 57344.0,
            Self::Int4 => LARGEST_INT4,
            Self::E2m1 => 6.0,
        }
    }

    /// Decode `out.len()` entries, exactly. `first` is the index of the first one in `bytes`.
    ///
    /// # Panics
    /// If `bytes` holds fewer.
    pub fn decode<T: Real>(self, bytes: &[u8], first: usize, out: &mut [T]) {
        match self {
            Self::E4m3 => decode_bytes(&bytes[first..first + out.len()], out, e4m3_to_f32),
            Self::E5m2 => decode_bytes(&bytes[first..first + out.len()], out, e5m2_to_f32),
            Self::Int4 => decode_halves(bytes, first, out, int4_to_f32),
            Self::E2m1 => decode_halves(bytes, first, out, e2m1_to_f32),
        }
    }

    /// Code `values`, which start a byte: rounded once, to nearest even; numbers beyond the range
    /// become the nearest in it. Half a byte that is left over codes as nothing (all bits 0).
    ///
    /// Only [`Code::E4m3`] and [`Code::Int4`] are written; NaN stays NaN in the first, and must not be
    /// given to the second.
    ///
    /// # Panics
    /// If `out` has another length than the codes, or for a code that is not written.
    pub fn encode<T: Real>(self, values: &[T], out: &mut [u8]) {
        assert_eq!(out.len(), values.len().div_ceil(self.per_byte()));
        match self {
            Self::E4m3 => encode_bytes(values, out),
            Self::Int4 => encode_halves(values, out),
            Self::E5m2 | Self::E2m1 => panic!("{} is not written", self.name()),
        }
    }
}

widest! {
    fn decode_bytes<T: Real, F: Fn(u8) -> f32>(bytes: &[u8], out: &mut [T], decode: F) {
        for (out, &byte) in out.iter_mut().zip(bytes) {
            *out = wide(decode(byte));
        }
    }
}

widest! {
    fn decode_halves<T: Real, F: Fn(u8) -> f32>(
        bytes: &[u8],
        first: usize,
        out: &mut [T],
        decode: F,
    ) {
        let mut bytes = &bytes[first / 2..];
        let mut out = out;
        if first % 2 == 1 && !out.is_empty() {
            out[0] = wide(decode(bytes[0] >> 4));
            (bytes, out) = (&bytes[1..], &mut out[1..]);
        }
        let (pairs, last) = out.as_chunks_mut::<2>();
        let (whole, rest) = bytes.split_at(pairs.len());
        for (pair, &byte) in pairs.iter_mut().zip(whole) {
            *pair = [wide(decode(byte & 15)), wide(decode(byte >> 4))];
        }
        if let [last] = last {
            *last = wide(decode(rest[0] & 15));
        }
    }
}

widest! {
    fn encode_bytes<T: Real>(values: &[T], out: &mut [u8]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = f32_to_e4m3(value.to_odd());
        }
    }
}

widest! {
    fn encode_halves<T: Real>(values: &[T], out: &mut [u8]) {
        let (pairs, last) = values.as_chunks::<2>();
        for (out, &[low, high]) in out.iter_mut().zip(pairs) {
            *out = f32_to_int4(low.to_odd()) | (f32_to_int4(high.to_odd()) << 4);
        }
        if let ([last], Some(out)) = (last, out.last_mut()) {
            *out = f32_to_int4(last.to_odd());
        }
    }
}

#[inline(always)]
fn wide<T: Real>(value: f32) -> T {
    T::read_f32(value.to_le_bytes())
}

/// Shift exponent and mantissa to their places in a float32 and correct the exponent's bias; a
/// subnormal is its mantissa times a power of two.
#[inline(always)]
fn e4m3_to_f32(byte: u8) -> f32 {
    let (bits, sign) = (u32::from(byte), (u32::from(byte) & 0x80) << 24);
    let magnitude = bits & 0x7f;
    let normal = (magnitude << 20) + ((127 - 7) << 23);
    let subnormal = (magnitude.cast_signed() as f32 * f32::from_bits((127 - 9) << 23)).to_bits();
    let finite = if magnitude < 8 { subnormal } else { normal };
    // All ones in the exponent where the code is NaN.
    let nan = 0_u32.wrapping_sub(u32::from(magnitude == 0x7f)) & 0x7ff0_0000;
    f32::from_bits(sign | finite | nan)
}

#[inline(always)]
fn e5m2_to_f32(byte: u8) -> f32 {
    super::f16_to_f32(u16::from(byte) << 8)
}

#[inline(always)]
fn int4_to_f32(half: u8) -> f32 {
    (i32::from(half) - 8) as f32
}

#[inline(always)]
fn e2m1_to_f32(half: u8) -> f32 {
    let (sign, magnitude) = ((u32::from(half) & 8) << 28, u32::from(half) & 7);
    let normal = (magnitude << 22) + ((127 - 1) << 23);
    let subnormal = (magnitude.cast_signed() as f32 * 0.5).to_bits();
    f32::from_bits(sign | if magnitude < 2 { subnormal } else { normal })
}

/// Numbers from the smallest normal one up are rounded by carry, as for bfloat16; for those below, a
/// number is added whose last bit is worth the code's.
#[inline(always)]
fn f32_to_e4m3(value: f32) -> u8 {
    const SMALLEST_NORMAL: u32 = (127 - 6) << 23;
    let bits = value.to_bits();
    let sign = (bits >> 24) & 0x80;
    let magnitude = (bits & 0x7fff_ffff).min(LARGEST_E4M3.to_bits());

    let rebiased = magnitude.wrapping_sub((127 - 7) << 23);
    let normal = rebiased.wrapping_add(0x7_ffff + ((rebiased >> 20) & 1)) >> 20;
    let unit = f32::from_bits((127 - 9 + 23) << 23);
    let subnormal = (f32::from_bits(magnitude) + unit).to_bits().wrapping_sub(unit.to_bits());
    let finite = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
    (sign | if value.is_nan() { 0x7f } else { finite }) as u8
}

/// A number is added whose last bit is worth 1, so that the sum's last bits are the integer.
#[inline(always)]
fn f32_to_int4(value: f32) -> u8 {
    const UNIT: f32 = 12_582_912.0;
    let clamped = value.clamp(-8.0, LARGEST_INT4);
    let integer = (clamped + UNIT).to_bits().wrapping_sub(UNIT.to_bits());
    (integer.wrapping_add(8) & 15) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A float of the given sizes, by the definition; the two largest codes are those of the format.
    fn by_definition(code: u32, exponent_bits: u32, mantissa_bits: u32) -> f64 {
        let mantissa = f64::from(code & ((1 << mantissa_bits) - 1));
        let exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
        let negative = code >> (exponent_bits + mantissa_bits) == 1;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let (unit, scale) =
            (f64::from(1_u32 << mantissa_bits), exponent.max(1).cast_signed() - bias);
        let whole = if exponent == 0 { 0.0 } else { 1.0 };
        let value = (whole + mantissa / unit) * 2.0_f64.powi(scale);
        if negative { -value } else { value }
    }

    fn decoded(code: Code, byte: u8) -> Vec<f64> {
        let mut out = vec![0.0_f64; code.per_byte()];
        code.decode(&[byte], 0, &mut out);
        let mut singles = vec![0.0_f32; code.per_byte()];
        code.decode(&[byte], 0, &mut singles);
        for (one, other) in out.iter().zip(singles) {
            assert!(*one == f64::from(other) || one.is_nan() && other.is_nan());
        }
        out
    }

    #[test]
    fn every_byte_decodes_as_its_format_says() {
        for byte in 0..=u8::MAX {
            let found = decoded(Code::E4m3, byte)[0];
            if byte & 0x7f == 0x7f {
                assert!(found.is_nan());
            } else {
                assert_eq!(found.to_bits(), by_definition(byte.into(), 4, 3).to_bits());
            }
            let found = decoded(Code::E5m2, byte)[0];
            match byte & 0x7f {
                0x7c => assert_eq!(found.abs(), f64::INFINITY),
                0x7d.. => assert!(found.is_nan()),
                _ => assert_eq!(found.to_bits(), by_definition(byte.into(), 5, 2).to_bits()),
            }
            let halves = [u32::from(byte & 15), u32::from(byte >> 4)];
            let found = decoded(Code::E2m1, byte);
            assert_eq!(found, halves.map(|half| by_definition(half, 2, 1)));
            assert_eq!(decoded(Code::Int4, byte), halves.map(|half| f64::from(half) - 8.0));
        }
        for code in [Code::E4m3, Code::E5m2, Code::Int4, Code::E2m1] {
            assert!(decoded(code, code.zero()).iter().all(|value| *value == 0.0));
        }
    }

    /// The nearest code by trying all of them; the even one of two, the largest for what is beyond.
    fn nearest(code: Code, value: f64) -> f64 {
        let mut best: Option<(f64, u8, f64)> = None;
        for byte in 0..=u8::MAX {
            if code == Code::Int4 && byte > 15 {
                break;
            }
            let other = decoded(code, byte)[0];
            let closer = |(distance, bits, _): (f64, u8, f64)| {
                let ours = (other - value).abs();
                ours < distance || ours == distance && byte & 1 < bits & 1
            };
            if !other.is_nan() && best.is_none_or(closer) {
                best = Some(((other - value).abs(), byte, other));
            }
        }
        best.map_or(f64::NAN, |(_, _, other)| other)
    }

    fn coded<T: Real>(code: Code, value: T) -> f64 {
        let mut byte = [0];
        code.encode(&[value], &mut byte);
        let mut out = [0.0_f64];
        code.decode(&byte, 0, &mut out);
        out[0]
    }

    #[test]
    fn every_code_comes_back_and_every_middle_rounds_to_even() {
        let mut values: Vec<f64> = (0..127).map(|byte| decoded(Code::E4m3, byte)[0]).collect();
        for pair in values.windows(2) {
            let middle = f64::midpoint(pair[0], pair[1]);
            for value in [pair[0], middle, middle.next_up(), middle.next_down()] {
                for value in [value, -value] {
                    assert_eq!(coded(Code::E4m3, value), nearest(Code::E4m3, value), "{value}");
                }
            }
            assert_eq!(coded(Code::E4m3, middle as f32), nearest(Code::E4m3, middle));
        }
        values.clear();
        for twice in -20..20 {
            let value = f64::from(twice) / 2.0;
            for value in [value, value.next_up(), value.next_down()] {
                assert_eq!(coded(Code::Int4, value), nearest(Code::Int4, value), "{value}");
            }
        }
    }

    #[test]
    fn what_is_beyond_the_range_becomes_the_largest_and_nan_stays_nan() {
        for value in [448.1, 500.0, 1e30, f32::INFINITY] {
            assert_eq!(coded(Code::E4m3, value), 448.0);
            assert_eq!(coded(Code::E4m3, -value), -448.0);
            assert_eq!((coded(Code::Int4, value), coded(Code::Int4, -value)), (7.0, -8.0));
        }
        assert!(coded(Code::E4m3, f32::NAN).is_nan());
    }

    proptest! {
        #[test]
        fn rounding_is_to_the_nearest(value in -600.0_f64..600.0, scale in 0..16) {
            let value = value * 0.5_f64.powi(scale);
            prop_assert_eq!(coded(Code::E4m3, value), nearest(Code::E4m3, value));
            let single = value as f32;
            prop_assert_eq!(coded(Code::E4m3, single), nearest(Code::E4m3, single.into()));
            prop_assert_eq!(coded(Code::Int4, single), nearest(Code::Int4, single.into()));
        }

        /// Long runs go through vector instructions, and may start and end in the middle of a byte.
        #[test]
        fn a_run_is_coded_as_its_values_are(
            bytes in prop::collection::vec(any::<u8>(), 1..80), skipped in 0..9_usize, left in 0..3_usize,
        ) {
            for code in [Code::E4m3, Code::E5m2, Code::Int4, Code::E2m1] {
                let all: Vec<f64> = bytes.iter().flat_map(|&byte| decoded(code, byte)).collect();
                let first = skipped.min(all.len());
                let mut out = vec![0.0_f64; all.len() - first - left.min(all.len() - first)];
                code.decode(&bytes, first, &mut out);
                let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                let expected = &all[first..first + out.len()];
                if expected.iter().all(|value| !value.is_nan()) {
                    prop_assert_eq!(bits(&out), bits(expected));
                }
                if matches!(code, Code::Int4 | Code::E4m3) && out.iter().all(|v| !v.is_nan()) {
                    let mut again = vec![0_u8; out.len().div_ceil(code.per_byte())];
                    code.encode(&out, &mut again);
                    let mut back = vec![0.0_f64; out.len()];
                    code.decode(&again, 0, &mut back);
                    prop_assert_eq!(bits(&back), bits(&out));
                }
            }
        }
    }
}
