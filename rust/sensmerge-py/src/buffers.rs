//! Tensors from Python without a copy: contiguous bytes by the buffer protocol, dtype beside them.
#![expect(unsafe_code, reason = "the buffer protocol hands out raw pointers")]

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use sensmerge_core::dtype::Float;

use crate::error::bad_input;

/// Contiguous bytes that a Python object exports, kept exported while this lives.
pub(crate) struct Bytes {
    buffer: PyBuffer<u8>,
}

impl Bytes {
    /// The bytes of `object`, which must export a contiguous buffer of unsigned bytes.
    pub(crate) fn of(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(object).map_err(|error| {
            bad_input(format!("{name}: {error}; pass a contiguous uint8 view of the tensor"))
        })?;
        if !buffer.is_c_contiguous() {
            return Err(bad_input(format!("{name}: is not contiguous; call .contiguous() first")));
        }
        Ok(Self { buffer })
    }

    /// The bytes themselves.
    pub(crate) fn as_slice(&self) -> &[u8] {
        if self.buffer.len_bytes() == 0 {
            return &[];
        }
        // SAFETY: the buffer is C-contiguous, `len_bytes` long, not empty and stays exported while
        // `self` lives. Python code may write to it meanwhile; callers read tensors that their
        // owner holds still, as every NumPy and torch kernel does.
        unsafe {
            std::slice::from_raw_parts(self.buffer.buf_ptr().cast::<u8>(), self.buffer.len_bytes())
        }
    }
}

/// A float dtype by its name in recipes, such as `bfloat16`.
pub(crate) fn dtype(name: &str, dtype: &str) -> PyResult<Float> {
    dtype.parse().map_err(|_| {
        bad_input(format!(
            "{name}: unknown dtype '{dtype}'; use float16, bfloat16, float32, float64"
        ))
    })
}
