//! A Python function as a method's function.

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict};
use sensmerge_core::dtype::{Float, Real};
use sensmerge_core::manifest::Number;
use sensmerge_core::method::{Call, Failure, Function};

/// A Python function, called under the interpreter's lock with copies of the entries.
#[derive(Debug)]
pub(crate) struct PythonFunction {
    pub(crate) function: Py<PyAny>,
}

impl Function for PythonFunction {
    fn single(&self, call: Call<f32>) -> Result<(), Failure> {
        self.call(call, Float::F32)
    }

    fn double(&self, call: Call<f64>) -> Result<(), Failure> {
        self.call(call, Float::F64)
    }

    fn copies(&self) -> u64 {
        1
    }
}

impl PythonFunction {
    fn call<T: Real>(&self, call: Call<T>, dtype: Float) -> Result<(), Failure> {
        Python::attach(|py| {
            let returned = self.returned(py, &call, dtype)?;
            let bytes = returned.as_bytes();
            // The caller in Python has checked it.
            assert_eq!(bytes.len(), size_of_val(call.out));
            T::widen(dtype, bytes, call.out);
            Ok(())
        })
        .map_err(|error: PyErr| {
            let reason = Python::attach(|py| error.value(py).to_string());
            Failure { reason, cause: Some(Box::new(error)) }
        })
    }

    fn returned<'py, T: Real>(
        &self,
        py: Python<'py>,
        call: &Call<T>,
        dtype: Float,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let copied = |entries: &[T]| {
            PyByteArray::new_with(py, size_of_val(entries), |bytes| {
                T::narrow(entries, dtype, bytes);
                Ok(())
            })
        };
        let numbers = PyDict::new(py);
        for (parameter, number) in call.numbers {
            match number {
                Number::Merge(number) => numbers.set_item(parameter, number)?,
                Number::Models(of_models) => numbers.set_item(parameter, of_models)?,
            }
        }
        let base = call.base.map(copied).transpose()?;
        let arguments = (
            call.tensor,
            call.shape,
            call.models,
            dtype == Float::F64,
            copied(call.rows)?,
            base,
            numbers,
        );
        let returned = self.function.bind(py).call1(arguments)?;
        Ok(returned.cast_into::<PyBytes>()?)
    }
}
