//! Texts out of Python objects: str, bytes, and pyarrow's arrays of strings without a Python object for each.

use pyo3::exceptions::{PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyIterator, PyList, PySlice, PyString};

/// A text that Python holds, or one that was copied out of an array.
pub(super) enum Text {
    Held(PyBackedStr),
    Own(String),
}

/// Takes a text, or None where one is missing.
pub(super) type Visit<'v> = &'v mut dyn FnMut(Option<Text>) -> PyResult<()>;

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

/// What iterates over texts: any iterable but a text itself, whose characters it would give, or one array.
pub(super) fn iterate<'py>(texts: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyIterator>> {
    if texts.is_instance_of::<PyString>() || texts.is_instance_of::<PyBytes>() {
        return Err(PyTypeError::new_err(format!(
            "texts are given by an iterable and not by one {}: put it in a list, [text]",
            texts.get_type().name()?
        )));
    }
    if is_chunked(texts)? || is_array(texts)? {
        return PyList::new(texts.py(), [texts])?.try_iter();
    }
    texts.try_iter()
}

/// All texts. Errors on a null, whose place in the result nothing could take.
pub(super) fn all_texts(texts: &Bound<'_, PyAny>) -> PyResult<Vec<Text>> {
    let mut all = Vec::new();
    for item in iterate(texts)? {
        each_text(&item?, &mut |text| {
            let null = || {
                let index = all.len();
                PyValueError::new_err(format!("text {index} is null: leave it out, or put an empty text in its place"))
            };
            all.push(text.ok_or_else(null)?);
            Ok(())
        })?;
    }
    Ok(all)
}

/// Hand over the text of a str or bytes, or all texts of a pyarrow array or chunked array; None for None and a null.
pub(super) fn each_text(item: &Bound<'_, PyAny>, visit: Visit<'_>) -> PyResult<()> {
    if item.is_instance_of::<PyString>() {
        return visit(Some(Text::Held(checked_text(item)?)));
    }
    if item.is_instance_of::<PyBytes>() {
        let bytes: PyBackedBytes = item.extract()?;
        return visit(Some(Text::Own(utf8(bytes.to_vec())?)));
    }
    if item.is_none() {
        return visit(None);
    }
    if is_chunked(item)? {
        return item.getattr("chunks")?.try_iter()?.try_for_each(|chunk| each_text(&chunk?, visit));
    }
    if is_array(item)? {
        return each_text_of_array(item, visit);
    }
    Err(PyTypeError::new_err(format!(
        "a text is a str, bytes, or a pyarrow array of strings, and not {}",
        item.get_type().fully_qualified_name()?
    )))
}

fn is_chunked(item: &Bound<'_, PyAny>) -> PyResult<bool> {
    item.hasattr("chunks")
}

fn is_array(item: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(item.hasattr("buffers")? && item.hasattr("null_count")?)
}

/// Arrow's layout: bits that are 0 for nulls (or none), where each string starts (32 or 64 bits), the bytes of all.
fn each_text_of_array(array: &Bound<'_, PyAny>, visit: Visit<'_>) -> PyResult<()> {
    let width = match array.getattr("type")?.str()?.to_string_lossy().as_ref() {
        "string" | "binary" => 4,
        "large_string" | "large_binary" => 8,
        other => {
            return Err(PyTypeError::new_err(format!(
                "an array of texts has the type string and not {other}: \
                 array.cast(pyarrow.large_string()) converts what holds texts"
            )));
        }
    };
    let (first, len): (usize, usize) = (array.getattr("offset")?.extract()?, array.len()?);
    let buffers: Vec<Option<Bound<'_, PyAny>>> = array.call_method0("buffers")?.extract()?;
    let [valid, Some(offsets), data] = &buffers[..] else { return Ok(()) };
    let offsets = bytes_of(offsets, first * width, (first + len + 1) * width)?;
    let damaged = || PyValueError::new_err("the array's offsets do not fit its data");
    let offset = |index: usize| -> PyResult<usize> {
        let at = offsets.get(index * width..(index + 1) * width).ok_or_else(damaged)?;
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(at);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| damaged())
    };
    let start = if len == 0 { return Ok(()) } else { offset(0)? };
    let data = data.as_ref().map(|data| bytes_of(data, start, offset(len)?)).transpose()?;
    let data: &[u8] = data.as_deref().unwrap_or_default();
    let valid = valid.as_ref().map(|valid| bytes_of(valid, 0, (first + len).div_ceil(8))).transpose()?;
    for index in 0..len {
        let bit = first + index;
        if valid.as_ref().is_some_and(|bits| bits.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 0)) {
            visit(None)?;
            continue;
        }
        let place = |at: usize| at.checked_sub(start).ok_or_else(damaged);
        let bytes = data.get(place(offset(index)?)?..place(offset(index + 1)?)?).ok_or_else(damaged)?;
        visit(Some(Text::Own(utf8(bytes.to_vec())?)))?;
    }
    Ok(())
}

/// Some bytes of an arrow buffer, fewer where it ends before: an array may be a small slice of large buffers.
fn bytes_of(buffer: &Bound<'_, PyAny>, start: usize, end: usize) -> PyResult<PyBackedBytes> {
    let slice = PySlice::new(buffer.py(), isize::try_from(start)?, isize::try_from(end)?, 1);
    Ok(buffer.get_item(slice)?.call_method0("to_pybytes")?.extract()?)
}

fn utf8(bytes: Vec<u8>) -> PyResult<String> {
    String::from_utf8(bytes).map_err(|error| {
        PyValueError::new_err(format!(
            "the bytes are no UTF-8: the first wrong one stands at offset {}",
            error.utf8_error().valid_up_to()
        ))
    })
}
