//! The one error door: core errors become Python exceptions by whose fault they are.

use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError};
use pyo3::{PyErr, import_exception};
use sensmerge_core::error::{Error, Hint, Kind};

// Defined in Python, so that it has a type there.
import_exception!(sensmerge.errors, InputError);

/// `InputError` for bad input, `KeyboardInterrupt` for a cancellation, `OSError` for the rest.
pub(crate) fn to_python(error: Error) -> PyErr {
    let message = error.to_string();
    match error.kind() {
        Kind::Input => InputError::new_err((message, error.hint().and_then(keyword))),
        Kind::Interrupted => PyKeyboardInterrupt::new_err(message),
        Kind::Io => PyOSError::new_err(message),
    }
}

/// The keyword of Python's verbs that a hint is about.
fn keyword(hint: Hint) -> Option<&'static str> {
    match hint {
        Hint::Overwrite => Some("overwrite"),
        Hint::AllowNan => Some("allow_nan"),
        _ => None,
    }
}

/// Bad input that only the binding can see.
pub(crate) fn bad_input(message: impl Into<String>) -> PyErr {
    InputError::new_err(message.into())
}
