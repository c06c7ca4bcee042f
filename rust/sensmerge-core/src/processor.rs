//! Code that depends on the processor: the choice of vector instructions, prefetching, and the
//! floating-point mode.
#![expect(unsafe_code, reason = "instruction sets and control registers are beyond safe Rust")]

use std::sync::OnceLock;

/// The environment variable that caps the instruction set: `baseline`, `avx2` or `avx512` (any other
/// value caps nothing). For tests and measurements; no choice changes a byte of any result.
pub const LEVEL_VARIABLE: &str = "SENSMERGE_SIMD";

/// Instruction sets that loops are compiled for, narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The instructions that every processor of the target has.
    Baseline,
    /// AVX2 and BMI.
    Avx2,
    /// AVX-512 with byte, word, doubleword and vector-length extensions.
    Avx512,
}

/// The widest level that this processor has and [`LEVEL_VARIABLE`] allows. Determined once.
#[must_use]
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let allowed = match std::env::var(LEVEL_VARIABLE).as_deref() {
            Ok("baseline") => Level::Baseline,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        detected().min(allowed)
    })
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Level {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        (false, _) => Level::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Level {
    Level::Baseline
}

/// Compile a function once for every [`Level`] and call the version for [`level()`].
///
/// All versions have the same loop and differ only in the number of entries that an instruction
/// processes; multiplications and additions are never fused. After a semicolon, the list of generic types may
/// end with a constant. Functions that it calls must be inlined:
/// one that is not is compiled for the baseline only.
macro_rules! widest {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident
        $(<$($generic:ident : $bound:path),+ $(; $constant:ident)?>)? (
            $($argument:ident : $type:ty),* $(,)?
        ) $(-> $result:ty)? $body:block
    ) => {
        $(#[$attribute])*
        $visibility fn $name<$($($generic: $bound,)+ $(const $constant: usize)?)?> (
            $($argument: $type),*
        ) $(-> $result)? {
            #[inline(always)]
            fn work<$($($generic: $bound,)+ $(const $constant: usize)?)?> (
                $($argument: $type),*
            ) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code, reason = "instruction sets are beyond safe Rust")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2")]
                fn avx512<$($($generic: $bound,)+ $(const $constant: usize)?)?> (
                    $($argument: $type),*
                ) $(-> $result)? {
                    work::<$($($generic,)+ $($constant)?)?>($($argument),*)
                }

                #[target_feature(enable = "avx2,bmi1,bmi2")]
                fn avx2<$($($generic: $bound,)+ $(const $constant: usize)?)?> (
                    $($argument: $type),*
                ) $(-> $result)? {
                    work::<$($($generic,)+ $($constant)?)?>($($argument),*)
                }

                match $crate::processor::level() {
                    $crate::processor::Level::Avx512 => {
                        // SAFETY: `level` has checked that the processor has these instructions.
                        return unsafe { avx512::<$($($generic,)+ $($constant)?)?>($($argument),*) };
                    }
                    $crate::processor::Level::Avx2 => {
                        // SAFETY: as above.
                        return unsafe { avx2::<$($($generic,)+ $($constant)?)?>($($argument),*) };
                    }
                    $crate::processor::Level::Baseline => {}
                }
            }
            work::<$($($generic,)+ $($constant)?)?>($($argument),*)
        }
    };
}
pub(crate) use widest;

/// Ask the processor to load memory into its caches. A hint: nothing happens on other processors
/// than x86-64.
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                line.as_ptr().cast(),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Give this thread the floating-point mode that Rust assumes: round to nearest even, keep
/// subnormals. A new thread inherits its creator's mode, and `torch.set_flush_denormal(True)`
/// changes the mode of the thread that calls it.
pub(crate) fn reset_float_mode() {
    #[cfg(target_arch = "x86_64")]
    {
        let every_exception_masked = 0x1f80_u32;
        // SAFETY: this sets the register to its value at the start of a program.
        unsafe {
            std::arch::asm!(
                "ldmxcsr [{}]",
                in(reg) &raw const every_exception_masked,
                options(nostack, readonly, preserves_flags)
            );
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("msr fpcr, xzr", options(nostack, nomem, preserves_flags));
    }
}
