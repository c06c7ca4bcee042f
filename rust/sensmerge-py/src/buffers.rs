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

    /// Where they lie.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        let start = self.buffer.buf_ptr() as usize;
        start..start + self.buffer.len_bytes()
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

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// Contiguous bytes to be written to, kept exported while this lives.
pub(crate) struct BytesMut {
    bytes: Bytes,
}

impl BytesMut {
    /// The bytes of `object`, which must export a contiguous, writable buffer of unsigned bytes.
    pub(crate) fn of(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = Bytes::of(name, object)?;
        if bytes.buffer.readonly() {
            return Err(bad_input(format!(
                "{name}: is read-only, so nothing can be merged into it"
            )));
        }
        Ok(Self { bytes })
    }

    /// Where they lie.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.bytes.range()
    }

    /// The bytes themselves. Whoever asks has made sure that no other slice overlaps them.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.bytes.buffer.len_bytes() == 0 {
            return &mut [];
        }
        // SAFETY: as for `Bytes::as_slice`; besides, the buffer is writable, `self` is borrowed for
        // writing, and `memory::disjoint` has refused buffers that overlap others.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.bytes.buffer.buf_ptr().cast::<u8>(),
                self.bytes.buffer.len_bytes(),
            )
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
