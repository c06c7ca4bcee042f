//! A C function as a method's function, called without the interpreter's lock.
#![expect(unsafe_code, reason = "a function of another library is called by its address")]

use std::ffi::c_void;
use std::ptr::null;

use sensmerge_core::manifest::Number;
use sensmerge_core::method::{Call, Failure, Function};

/// The version of [`RawCall`].
const VERSION: u32 = 1;

/// What a C function is called with. `docs/extending.md` has it in full; a change needs another version.
#[repr(C)]
struct RawCall {
    version: u32,
    is_double: u32,
    models: usize,
    entries: usize,
    first: usize,
    axes: usize,
    shape: *const usize,
    parameters: usize,
    numbers: *const f64,
    rows: *const c_void,
    base: *const c_void,
    out: *mut c_void,
}

type RawFunction = unsafe extern "C" fn(*const RawCall) -> i32;

/// A C function and the parameters that it gets, in their order.
#[derive(Debug)]
pub(crate) struct NativeFunction {
    function: RawFunction,
    parameters: Vec<&'static str>,
}

impl NativeFunction {
    /// The function at an address; `None` for an address of 0.
    pub(crate) fn at(address: usize, parameters: Vec<&'static str>) -> Option<Self> {
        if address == 0 {
            return None;
        }
        // SAFETY: the address is not null. That it is a function of this type, of a library that is
        // never unloaded, is what an installed package promises by naming it; `ctypes` unloads none.
        let function = unsafe {
            std::mem::transmute::<*const (), RawFunction>(std::ptr::with_exposed_provenance(
                address,
            ))
        };
        Some(Self { function, parameters })
    }

    fn call<T>(&self, call: Call<T>, is_double: bool) -> Result<(), Failure> {
        let mut numbers = Vec::with_capacity(self.parameters.len() * call.models);
        for parameter in &self.parameters {
            match call.numbers.get(*parameter) {
                Some(Number::Models(of_models)) => numbers.extend(of_models),
                Some(Number::Merge(number)) => {
                    numbers.extend(std::iter::repeat_n(*number, call.models));
                }
                None => {
                    let reason = format!("has no number for {parameter}");
                    return Err(Failure { reason, cause: None });
                }
            }
        }
        let raw = RawCall {
            version: VERSION,
            is_double: u32::from(is_double),
            models: call.models,
            entries: call.out.len(),
            first: call.entries.start,
            axes: call.shape.len(),
            shape: call.shape.as_ptr(),
            parameters: self.parameters.len(),
            numbers: numbers.as_ptr(),
            rows: call.rows.as_ptr().cast(),
            base: call.base.map_or(null(), <[T]>::as_ptr).cast(),
            out: call.out.as_mut_ptr().cast(),
        };
        // SAFETY: every pointer of `raw` is to as many values as its counts say, or null for a base that
        // is not there, and all outlive the call; `out` is borrowed for it alone. The function keeps to
        // that, as `docs/extending.md` asks of it.
        let code = unsafe { (self.function)(&raw const raw) };
        if code == 0 {
            return Ok(());
        }
        Err(Failure { reason: format!("its function returned {code}"), cause: None })
    }
}

impl Function for NativeFunction {
    fn single(&self, call: Call<f32>) -> Result<(), Failure> {
        self.call(call, false)
    }

    fn double(&self, call: Call<f64>) -> Result<(), Failure> {
        self.call(call, true)
    }
}
