//! For every entry the task vector that changes it most, times a strength.

use std::ffi::c_void;
use std::slice::from_raw_parts;

/// What sensmerge calls a function with, in version 1.
#[repr(C)]
pub struct Call {
    version: u32,
    is_double: u32, // the entries are float64, otherwise float32
    models: usize,
    entries: usize, // of each model in this call
    first: usize,   // the place of the first of them in the tensor
    axes: usize,
    shape: *const usize, // the tensor's, [axes]
    parameters: usize,
    numbers: *const f64, // [parameters, models]
    rows: *const c_void, // [models, entries]
    base: *const c_void, // [entries], or null
    out: *mut c_void,    // [entries]
}

/// # Safety
/// `call` is what sensmerge hands over: every pointer is to as many values as its counts say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strongest(call: *const Call) -> i32 {
    let call = unsafe { &*call };
    if call.version != 1 {
        return 1;
    }
    match call.is_double {
        0 => unsafe {
            merge::<f32>(call, |value| value.abs(), |value, factor| value * factor as f32)
        },
        _ => unsafe { merge::<f64>(call, |value| value.abs(), |value, factor| value * factor) },
    }
    0
}

unsafe fn merge<T: Copy + PartialOrd>(
    call: &Call,
    size: impl Fn(T) -> T,
    scaled: impl Fn(T, f64) -> T,
) {
    let rows = unsafe { from_raw_parts(call.rows.cast::<T>(), call.models * call.entries) };
    let out = unsafe { std::slice::from_raw_parts_mut(call.out.cast::<T>(), call.entries) };
    let strength = unsafe { *call.numbers };
    for (place, out) in out.iter_mut().enumerate() {
        let mut most = rows[place];
        for &entry in rows[place..].iter().step_by(call.entries) {
            if size(entry) > size(most) {
                most = entry;
            }
        }
        *out = scaled(most, strength);
    }
}
