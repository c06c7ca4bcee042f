//! Tensors from Python, without a copy: their bytes through the buffer protocol, as contiguous uint8
//! views. The dtype is passed separately, since NumPy has no bfloat16.
#![expect(unsafe_code, reason = "the buffer protocol hands out raw pointers")]

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use sensmerge_core::dtype::Float;

use crate::error::bad_input;

/// Contiguous bytes of a Python object, which stay exported while this value lives.
pub(crate) struct Bytes {
    buffer: PyBuffer<u8>,
}

impl Bytes {
    /// The bytes of `object`, which must export a contiguous buffer of unsigned bytes. Messages call
    /// it `name`.
    pub(crate) fn of(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(object).map_err(|error| {
            bad_input(format!("{name}: {error}; pass a contiguous uint8 view of the tensor"))
        })?;
        if !buffer.is_c_contiguous() {
            return Err(bad_input(format!("{name}: is not contiguous; call .contiguous() first")));
        }
        Ok(Self { buffer })
    }

    /// Their addresses.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        let start = self.buffer.buf_ptr() as usize;
        start..start + self.buffer.len_bytes()
    }

    /// The bytes themselves.
    pub(crate) fn as_slice(&self) -> &[u8] {
        if self.buffer.len_bytes() == 0 {
            return &[];
        }
        // SAFETY: the buffer is C-contiguous, `len_bytes` long, not empty, and stays exported while
        // `self` lives. Python code could write to it meanwhile; like the kernels of NumPy and torch,
        // this relies on the caller not to change its tensors during the call.
        unsafe {
            std::slice::from_raw_parts(self.buffer.buf_ptr().cast::<u8>(), self.buffer.len_bytes())
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// Contiguous writable bytes of a Python object, which stay exported while this value lives.
pub(crate) struct BytesMut {
    bytes: Bytes,
}

impl BytesMut {
    /// The bytes of `object`, which must export a contiguous, writable buffer of unsigned bytes.
    /// Messages call it `name`.
    pub(crate) fn of(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = Bytes::of(name, object)?;
        if bytes.buffer.readonly() {
            return Err(bad_input(format!(
                "{name}: is read-only, so nothing can be merged into it"
            )));
        }
        Ok(Self { bytes })
    }

    /// Their addresses.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.bytes.range()
    }

    /// The bytes themselves. The caller must have checked that no other slice overlaps them.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.bytes.buffer.len_bytes() == 0 {
            return &mut [];
        }
        // SAFETY: as for `Bytes::as_slice`; moreover the buffer is writable, `self` is borrowed
        // mutably, and `memory::disjoint` has refused buffers that overlap others.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.bytes.buffer.buf_ptr().cast::<u8>(),
                self.bytes.buffer.len_bytes(),
            )
        }
    }
}

/// The float dtype that recipes call `dtype`, such as `bfloat16`; `name` is the argument's name.
pub(crate) fn dtype(name: &str, dtype: &str) -> PyResult<Float> {
    dtype.parse().map_err(|_| {
        bad_input(format!(
            "{name}: unknown dtype '{dtype}'; use float16, bfloat16, float32, float64"
        ))
    })
}
