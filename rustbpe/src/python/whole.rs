//! Ints of Python, which may be beyond every integer of Rust: such a number is told like any other wrong one.

use std::fmt;

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

/// An int of Python's.
pub(super) enum Whole {
    Known(i64),
    /// Its digits.
    Beyond(String),
}

impl FromPyObject<'_, '_> for Whole {
    type Error = PyErr;

    fn extract(int: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match int.extract::<i64>() {
            Err(error) if error.is_instance_of::<PyOverflowError>(int.py()) => {
                Ok(Self::Beyond(int.str()?.to_string_lossy().into_owned()))
            }
            known => known.map(Self::Known),
        }
    }
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(number) => number.fmt(f),
            Self::Beyond(digits) => f.write_str(digits),
        }
    }
}

impl Whole {
    /// A number of things. Errors below 0 and beyond what an integer holds.
    pub(super) fn count(&self, name: &str) -> PyResult<usize> {
        match self {
            Self::Known(number @ 0..) => Ok(usize::try_from(*number)?),
            _ => Err(PyValueError::new_err(format!("{name} is {self}, but must be from 0 to {}", i64::MAX))),
        }
    }
}
