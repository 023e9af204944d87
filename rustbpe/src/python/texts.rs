//! Texts out of Python objects: str, bytes, and pyarrow's arrays of strings without a Python object for each.

use pyo3::exceptions::{PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyString};

/// A text that Python holds, or one that was copied out of an array.
pub(super) enum Text {
    Held(PyBackedStr),
    Own(String),
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        match self {
            Self::Held(text) => text,
            Self::Own(text) => text,
        }
    }
}

impl Text {
    /// A text that needs no Python any more.
    pub(super) fn into_string(self) -> String {
        match self {
            Self::Held(text) => text.to_string(),
            Self::Own(text) => text,
        }
    }
}

/// A str as UTF-8. A lone surrogate, which JSON can smuggle in, has none.
pub(super) fn checked_text(text: &Bound<'_, PyAny>) -> PyResult<PyBackedStr> {
    text.extract::<PyBackedStr>().map_err(|error| {
        let py = text.py();
        if !error.is_instance_of::<PyUnicodeEncodeError>(py) {
            return error;
        }
        match error.value(py).getattr("start").and_then(|start| start.extract::<usize>()) {
            Ok(start) => PyValueError::new_err(format!(
                "the text is no valid Unicode: a lone surrogate stands at character {start}; \
                 text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') repairs it"
            )),
            Err(error) => error,
        }
    })
}

/// Hand over the text of a str or bytes, or all texts of a pyarrow array or chunked array (nulls are left out).
pub(super) fn each_text(item: &Bound<'_, PyAny>, visit: &mut dyn FnMut(Text) -> PyResult<()>) -> PyResult<()> {
    if item.is_instance_of::<PyString>() {
        return visit(Text::Held(checked_text(item)?));
    }
    if item.is_instance_of::<PyBytes>() {
        let bytes: PyBackedBytes = item.extract()?;
        return visit(Text::Own(utf8(bytes.to_vec())?));
    }
    if item.hasattr("chunks")? {
        return item.getattr("chunks")?.try_iter()?.try_for_each(|chunk| each_text(&chunk?, visit));
    }
    if item.hasattr("buffers")? && item.hasattr("null_count")? {
        return each_text_of_array(item, visit);
    }
    Err(PyTypeError::new_err(format!(
        "a text is a str, bytes, or a pyarrow array of strings, and not {}",
        item.get_type().fully_qualified_name()?
    )))
}

/// Arrow's layout: one buffer with all bytes, one with where each string starts (32 or 64 bits).
fn each_text_of_array(array: &Bound<'_, PyAny>, visit: &mut dyn FnMut(Text) -> PyResult<()>) -> PyResult<()> {
    let width = match array.getattr("type")?.str()?.to_string_lossy().as_ref() {
        "string" | "binary" => 4,
        "large_string" | "large_binary" => 8,
        other => {
            return Err(PyTypeError::new_err(format!("an array of texts has the type string and not {other}")));
        }
    };
    if array.getattr("null_count")?.extract::<usize>()? > 0 {
        return each_text_of_array(&array.call_method0("drop_null")?, visit);
    }
    let (first, len): (usize, usize) = (array.getattr("offset")?.extract()?, array.len()?);
    let buffers: Vec<Option<Bound<'_, PyAny>>> = array.call_method0("buffers")?.extract()?;
    let [_, Some(offsets), data] = &buffers[..] else { return Ok(()) };
    let bytes_of =
        |buffer: &Bound<'_, PyAny>| -> PyResult<PyBackedBytes> { Ok(buffer.call_method0("to_pybytes")?.extract()?) };
    let offsets = bytes_of(offsets)?;
    let data = data.as_ref().map(bytes_of).transpose()?;
    let data: &[u8] = data.as_deref().unwrap_or_default();
    let damaged = || PyValueError::new_err("the array's offsets do not fit its data");
    let offset = |index: usize| -> PyResult<usize> {
        let at = offsets.get(index * width..(index + 1) * width).ok_or_else(damaged)?;
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(at);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| damaged())
    };
    for index in first..first + len {
        let bytes = data.get(offset(index)?..offset(index + 1)?).ok_or_else(damaged)?;
        visit(Text::Own(utf8(bytes.to_vec())?))?;
    }
    Ok(())
}

fn utf8(bytes: Vec<u8>) -> PyResult<String> {
    String::from_utf8(bytes).map_err(|error| {
        PyValueError::new_err(format!(
            "the bytes are no UTF-8: the first wrong one stands at offset {}",
            error.utf8_error().valid_up_to()
        ))
    })
}
