//! Conversion of the core's errors to Python exceptions, by their cause.

use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError};
use pyo3::types::PyAnyMethods;
use pyo3::{PyErr, Python, import_exception};
use sensmerge_core::error::{Error, Hint, Kind};

// Defined in Python, where type checkers see it.
import_exception!(sensmerge.errors, InputError);
import_exception!(sensmerge.errors, MethodError);
import_exception!(sensmerge.errors, WaitingError);

/// `MethodError` for a method from outside, `InputError` for other bad input, `WaitingError` where other
/// processes have to do their part first, `KeyboardInterrupt` for a cancellation, `OSError` for the rest.
pub(crate) fn to_python(error: Error) -> PyErr {
    let message = error.to_string();
    if let Error::Method { cause, .. } = error {
        let raised = MethodError::new_err(message);
        if let Some(cause) = cause.and_then(|cause| cause.downcast::<PyErr>().ok()) {
            Python::attach(|py| {
                let inner = cause.cause(py).unwrap_or(*cause);
                raised.set_cause(py, Some(inner));
            });
        }
        return raised;
    }
    match error.kind() {
        Kind::Input => InputError::new_err((message, error.hint().and_then(keyword))),
        Kind::Waiting => WaitingError::new_err(message),
        Kind::Interrupted => PyKeyboardInterrupt::new_err(message),
        Kind::Io => {
            let code = system_code(&error);
            let raised = PyOSError::new_err(message);
            // Beside the message, so that it stays as it is.
            let _ = code.map(|code| Python::attach(|py| raised.value(py).setattr("errno", code)));
            raised
        }
    }
}

/// The operating system's number of an error.
fn system_code(error: &Error) -> Option<i32> {
    match error {
        Error::Io { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

/// The keyword of the Python functions that stands for a hint's option.
fn keyword(hint: Hint) -> Option<&'static str> {
    match hint {
        Hint::Overwrite => Some("overwrite"),
        Hint::AllowNan => Some("allow_nan"),
        Hint::Unpickle => Some("unpickle"),
        _ => None,
    }
}

/// An `InputError` for input that the binding refuses itself.
pub(crate) fn bad_input(message: impl Into<String>) -> PyErr {
    InputError::new_err(message.into())
}
