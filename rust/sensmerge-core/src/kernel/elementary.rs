//! Exponentials, logarithms and hyperbolic tangents of our own, of additions, multiplications and divisions
//! alone: those of the platform differ in their last bits from machine to machine, and do not vectorise.

/// `1 / n!` for n from 0.
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut found = [1.0; 14];
    let mut n = 1;
    while n < found.len() {
        found[n] = found[n - 1] / n as f64;
        n += 1;
    }
    found
};

/// `e^x` for `x` up to 0, within a few units of the last place; `e^-708` for less.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    // A number to which a float64 is added loses its fraction, and its last bits are the whole part.
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let x = if x < -708.0 { -708.0 } else { x };
    let shifted = x * std::f64::consts::LOG2_E + WHOLE;
    let power = shifted - WHOLE;
    let rest = (x - power * LN_2_HIGH) - power * LN_2_LOW;
    let mut series = 0.0;
    for coefficient in INVERSE_FACTORIALS.iter().rev() {
        series = series * rest + coefficient;
    }
    series * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52))
}

/// `ln z` for normal positive z, within a few units of the last place near 1 and above 2 or below ½; NaN
/// for what is not finite.
#[inline(always)]
pub(super) fn ln(z: f64) -> f64 {
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    // √½, the lower end of the mantissas.
    const LOWEST: u64 = 0x3FE6_A09E_667F_3BCD;
    let power = z.to_bits().wrapping_sub(LOWEST).cast_signed() >> 52;
    let power = power.cast_unsigned();
    let mantissa = f64::from_bits(z.to_bits().wrapping_sub(power << 52));
    let power = f64::from_bits(WHOLE.to_bits().wrapping_add(power)) - WHOLE;
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 0.0;
    let mut term = 23.0;
    while term > 0.0 {
        series = series * square + 1.0 / term;
        term -= 2.0;
    }
    // The last term is 0, or NaN.
    power * std::f64::consts::LN_2 + 2.0 * s * series + z * 0.0
}

/// `tanh x`, within a few units of the last place.
#[inline(always)]
pub(super) fn tanh(x: f64) -> f64 {
    // Below this the difference of 1 and an exponential would lose digits.
    const SMALL: f64 = 0.02;
    let size = x.abs();
    let power = exp(-2.0 * size);
    let square = size * size;
    let series = 1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0)));
    let found = if size < SMALL { size * series } else { (1.0 - power) / (1.0 + power) };
    if x < 0.0 { -found } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exponentials_and_logarithms(x in -800.0..0.0_f64, z in 1e-8..1e8_f64) {
            let expected = x.max(-708.0).exp();
            prop_assert!((exp(x) - expected).abs() <= 4e-16 * 4.0 * expected);
            prop_assert!((ln(z) - z.ln()).abs() <= 1e-15 * (1.0 + z.ln().abs()), "{z}");
            let near = 1.0 + z * 1e-12;
            prop_assert!((ln(near) - near.ln()).abs() <= 1e-15 * near.ln().abs() + 1e-18, "{near}");
        }

        #[test]
        fn tangents(size in -12.0..4.0_f64, negative in any::<bool>()) {
            let x = if negative { -(10.0_f64.powf(size)) } else { 10.0_f64.powf(size) };
            prop_assert!((tanh(x) - x.tanh()).abs() <= 1e-14 * x.tanh().abs(), "{x}");
        }
    }

    #[test]
    fn at_the_ends() {
        assert!((exp(0.0) - 1.0).abs() == 0.0 && ln(1.0) == 0.0 && tanh(0.0) == 0.0);
        assert!(tanh(f64::INFINITY) == 1.0 && tanh(-1e300) == -1.0);
        assert!(tanh(f64::NAN).is_nan() && exp(f64::NAN).is_nan());
    }
}
