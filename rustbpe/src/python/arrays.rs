//! Ids between Rust and Python: numpy arrays without a Python object for each id, and lists that share theirs.

use numpy::PyArray1;
use pyo3::buffer::{Element, PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyList, PySlice};

use super::texts::Text;
use super::whole::Whole;
use crate::{Encoder, Error, Id};

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

/// Whether ids of such a vocabulary fit in two bytes.
pub(super) fn is_narrow(vocab_size: usize) -> bool {
    vocab_size <= 1 << 16
}

/// Ids as a numpy array of their width, without a copy.
pub(super) fn array<T: numpy::Element>(py: Python<'_>, ids: Vec<T>) -> PyResult<Bound<'_, PyAny>> {
    py.import("numpy")?; // a plain ImportError where it is missing
    Ok(PyArray1::from_vec(py, ids).into_any())
}

/// The ids of all texts as one array, and where each text starts.
pub(super) fn flat<'py, I: Id + numpy::Element>(
    py: Python<'py>,
    encoder: &Encoder,
    texts: &[Text],
    threads: usize,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let (ids, lengths) = py.detach(|| encoder.encode_flat::<I, _>(texts, threads))?;
    let mut end = 0;
    let ends = lengths.into_iter().map(|length| {
        end += length as u64;
        end
    });
    Ok((array(py, ids)?, array(py, std::iter::once(0).chain(ends).collect())?))
}

/// Whether an array has another byte order than this machine, which pyo3 0.30 does not see ('>' is its little-endian).
fn is_foreign(array: &Bound<'_, PyAny>) -> bool {
    let foreign: &[u8] = if cfg!(target_endian = "little") { b">!" } else { b"<" };
    PyUntypedBuffer::get(array).is_ok_and(|buffer| buffer.format().to_bytes().iter().any(|sign| foreign.contains(sign)))
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
    if is_foreign(out) {
        return Err(PyValueError::new_err(
            "the buffer to write to has another byte order than this machine: \
             out.astype(out.dtype.newbyteorder('=')) makes one of the machine's",
        ));
    }
    let narrow = || if is_narrow(vocab_size) { into::<u16>(out, ids) } else { None };
    into::<u32>(out, ids)
        .or_else(narrow)
        .or_else(|| into::<i64>(out, ids))
        .or_else(|| into::<u64>(out, ids))
        .unwrap_or_else(|| {
            let widths =
                if is_narrow(vocab_size) { "uint16, uint32, int64 or uint64" } else { "uint32, int64 or uint64" };
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
    if !ids.is_instance_of::<PyList>() && !is_foreign(ids) {
        let found = from::<u16>(encoder, ids).or_else(|| from::<u32>(encoder, ids));
        let found = found.or_else(|| from::<i64>(encoder, ids)).or_else(|| from::<i32>(encoder, ids));
        if let Some(bytes) = found {
            return Ok(bytes??);
        }
    }
    let known = |id: Whole| match id {
        Whole::Known(id) => Ok(id),
        Whole::Beyond(id) => {
            let last = encoder.vocabulary().len() - 1;
            Err(PyValueError::new_err(format!("id {id} is not in the vocabulary, whose ids go from 0 to {last}")))
        }
    };
    let ids: Vec<i64> = ids.try_iter()?.map(|id| known(id?.extract()?)).collect::<PyResult<_>>()?;
    Ok(encoder.decode_bytes(ids)?)
}
