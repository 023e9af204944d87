//! Ids between Rust and Python: numpy arrays without a Python object for each id, and lists that share theirs.

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyInt, PyList, PySlice};

use crate::{Encoder, Error};

/// One int object per id, made at the first call that returns a list. A list of shared objects takes a third of the
/// time of one whose objects are made anew.
#[derive(Default)]
pub(super) struct Ints(PyOnceLock<Vec<Py<PyInt>>>);

impl Ints {
    pub(super) fn list<'py>(&self, py: Python<'py>, size: usize, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let ints = self.0.get_or_init(py, || (0..size).map(|id| PyInt::new(py, id).unbind()).collect());
        PyList::new(py, ids.iter().map(|&id| ints[id as usize].bind(py)))
    }
}

/// Bytes of an id in an array: two while all ids fit in them.
pub(super) fn id_bytes(vocab_size: usize) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// The ids of `parts`, one after another, as a numpy array of uint16 or uint32.
pub(super) fn id_array<'py>(py: Python<'py>, parts: &[&[u32]], vocab_size: usize) -> PyResult<Bound<'py, PyAny>> {
    let width = id_bytes(vocab_size);
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = PyByteArray::new_with(py, len * width, |bytes| {
        let mut rest = bytes;
        for part in parts {
            let (mine, others) = rest.split_at_mut(part.len() * width);
            write_ids(part, mine, width);
            rest = others;
        }
        Ok(())
    })?;
    from_buffer(py, bytes, if width == 2 { "uint16" } else { "uint32" })
}

fn write_ids(ids: &[u32], bytes: &mut [u8], width: usize) {
    if width == 2 {
        for (id, place) in ids.iter().zip(bytes.chunks_exact_mut(2)) {
            place.copy_from_slice(&(*id as u16).to_ne_bytes());
        }
    } else {
        for (id, place) in ids.iter().zip(bytes.chunks_exact_mut(4)) {
            place.copy_from_slice(&id.to_ne_bytes());
        }
    }
}

/// Where each text starts in the ids of all, and at the end how many there are, as a numpy array of uint64.
pub(super) fn offset_array<'py>(
    py: Python<'py>,
    lengths: impl Iterator<Item = usize>,
    texts: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let bytes = PyByteArray::new_with(py, (texts + 1) * 8, |bytes| {
        let mut end = 0;
        for (length, place) in lengths.zip(bytes[8..].chunks_exact_mut(8)) {
            end += length;
            place.copy_from_slice(&(end as u64).to_ne_bytes());
        }
        Ok(())
    })?;
    from_buffer(py, bytes, "uint64")
}

fn from_buffer<'py>(py: Python<'py>, bytes: Bound<'py, PyByteArray>, dtype: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("numpy")?.call_method1("frombuffer", (bytes, dtype))
}

/// Write ids to the front of a caller's buffer of 16, 32 or 64 bit integers. Errors when it is too small.
pub(super) fn write_to_buffer(out: &Bound<'_, PyAny>, ids: &[u32], vocab_size: usize) -> PyResult<()> {
    fn into<T: Element + TryFrom<u32>>(out: &Bound<'_, PyAny>, ids: &[u32]) -> Option<PyResult<()>> {
        let buffer = PyBuffer::<T>::get(out).ok()?;
        if buffer.item_count() < ids.len() {
            let (there, needed) = (buffer.item_count(), ids.len());
            return Some(Err(PyValueError::new_err(format!(
                "the buffer has {there} places and the text {needed} ids"
            ))));
        }
        let ids: Vec<T> = ids.iter().filter_map(|&id| T::try_from(id).ok()).collect();
        let front = || {
            let front = out.get_item(PySlice::new(out.py(), 0, ids.len() as isize, 1))?;
            PyBuffer::<T>::get(&front)?.copy_from_slice(out.py(), &ids)
        };
        Some(front())
    }
    let narrow = || if id_bytes(vocab_size) == 2 { into::<u16>(out, ids) } else { None };
    into::<u32>(out, ids)
        .or_else(narrow)
        .or_else(|| into::<i64>(out, ids))
        .or_else(|| into::<u64>(out, ids))
        .unwrap_or_else(|| {
            let widths =
                if id_bytes(vocab_size) == 2 { "uint16, uint32, int64 or uint64" } else { "uint32, int64 or uint64" };
            Err(PyTypeError::new_err(format!("the buffer to write to must be an array of {widths}")))
        })
}

/// The bytes of ids that stand in an array of integers, or in anything that gives ints.
pub(super) fn decode(encoder: &Encoder, ids: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    fn from<T: Element + Into<i64> + Send + Sync>(
        encoder: &Encoder,
        ids: &Bound<'_, PyAny>,
    ) -> Option<PyResult<Result<Vec<u8>, Error>>> {
        let buffer = PyBuffer::<T>::get(ids).ok()?;
        let py = ids.py();
        Some(buffer.to_vec(py).map(|ids| py.detach(|| encoder.decode_bytes(ids.into_iter().map(Into::into)))))
    }
    if !ids.is_instance_of::<PyList>() {
        let found = from::<u16>(encoder, ids).or_else(|| from::<u32>(encoder, ids));
        let found = found.or_else(|| from::<i64>(encoder, ids)).or_else(|| from::<i32>(encoder, ids));
        if let Some(bytes) = found {
            return Ok(bytes??);
        }
    }
    let ids: Vec<i64> = ids.try_iter()?.map(|id| id?.extract::<i64>()).collect::<PyResult<_>>()?;
    Ok(encoder.decode_bytes(ids)?)
}
