//! The Python module: the only file that knows Python. The GIL is released around all work.
//!
//! Lesson: lessons/05_rust_from_python

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use crate::{Corpus, Encoder, Error, GPT4_PATTERN, Id, PATTERNS, Splitter, UNICODE_VERSION, Vocabulary, train};

mod arrays;
mod counting;
mod texts;
mod whole;

use arrays::Ints;
use counting::count_iterator;
use texts::{all_texts, checked_text, iterate};
use whole::Whole;

/// Time between two looks at Ctrl-C and calls of the caller's `progress`.
const CHECK_EVERY: Duration = Duration::from_millis(50);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match &error {
            Error::Io { path, source } => {
                // Python says the number itself; Rust's text has it in brackets at the end.
                let text = source.to_string();
                let reason = text.split(" (os error").next().unwrap_or(&text).to_owned();
                PyOSError::new_err((source.raw_os_error(), reason, path.to_string_lossy().into_owned()))
            }
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

/// Byte-level BPE: trains on an iterator of texts, encodes and decodes. Starts with the 256 bytes.
#[pyclass(frozen, module = "rustbpe")]
struct Tokenizer {
    /// Swapped as a whole when training ends, so that other threads may encode meanwhile.
    state: RwLock<Arc<State>>,
}

struct State {
    encoder: Encoder,
    ints: Ints,
}

impl State {
    fn of(encoder: Encoder) -> Arc<Self> {
        Arc::new(Self { encoder, ints: Ints::default() })
    }

    fn size(&self) -> usize {
        self.encoder.vocabulary().len()
    }
}

impl Tokenizer {
    fn of(encoder: Encoder) -> Self {
        Self { state: RwLock::new(State::of(encoder)) }
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// As many threads as are asked for, all cores where nothing is said.
fn threads(asked: Option<Whole>) -> PyResult<Option<usize>> {
    asked.map(|number| number.count("num_threads")).transpose()
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self::of(Encoder::new(Splitter::new(GPT4_PATTERN)?, Vocabulary::from_merges(&[])?)))
    }

    /// A tokenizer of known tokens: pairs of bytes and rank, or a dict, ranks 0, 1, 2, ...; every byte must be there.
    #[staticmethod]
    #[pyo3(signature = (ranks, pattern=None))]
    fn from_ranks(py: Python<'_>, ranks: &Bound<'_, PyAny>, pattern: Option<&str>) -> PyResult<Self> {
        let pairs = match ranks.cast::<PyDict>() {
            Ok(dict) => dict.items().into_any(),
            Err(_) => ranks.clone(),
        };
        let ranks = pairs
            .try_iter()?
            .map(|pair| {
                pair?.extract::<(Bound<'_, PyBytes>, u32)>().map(|(token, rank)| (token.as_bytes().to_vec(), rank))
            })
            .collect::<PyResult<Vec<_>>>()?;
        let splitter = Splitter::new(pattern.unwrap_or(GPT4_PATTERN))?;
        let vocabulary = py.detach(|| Vocabulary::from_ranks(ranks))?;
        Ok(Self::of(Encoder::new(splitter, vocabulary)))
    }

    /// Train on an iterator of texts, without its nulls, until the vocabulary has `vocab_size` tokens or no pair is left.
    #[pyo3(signature = (iterator, vocab_size, buffer_size=8192, pattern=None, progress=None, num_threads=None))]
    #[allow(clippy::too_many_arguments)] // they are keywords in Python
    fn train_from_iterator(
        &self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: Whole,
        buffer_size: i64,
        pattern: Option<&str>,
        progress: Option<Py<PyAny>>,
        num_threads: Option<Whole>,
    ) -> PyResult<()> {
        let (vocab_size, num_threads) = (checked_size(&vocab_size)?, threads(num_threads)?);
        let buffer_size = Whole::Known(buffer_size).count("buffer_size")?.max(1);
        let splitter = Splitter::new(pattern.unwrap_or(GPT4_PATTERN))?;
        let corpus = Corpus::with_threads(splitter, num_threads);
        let corpus = count_iterator(py, &iterate(iterator)?, buffer_size, corpus)?;
        let encoder = finish(py, corpus, vocab_size, progress)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State::of(encoder);
        Ok(())
    }

    /// The split pattern.
    fn get_pattern(&self) -> String {
        self.state().encoder.pattern().to_owned()
    }

    /// All tokens as (bytes, rank): the 256 bytes, then the merges in order.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let state = self.state();
        let encoder = &state.encoder;
        let tokens: Vec<_> = encoder.vocabulary().tokens().map(|token| PyBytes::new(py, token)).collect();
        PyList::new(py, tokens.into_iter().zip(0_u32..))
    }

    /// The pairs of tokens that merge, in order: for formats that list merges instead of ranks.
    fn get_merges<'py>(&self, py: Python<'py>) -> PyResult<Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>> {
        let state = self.state();
        let encoder = &state.encoder;
        let bytes = |id: u32| PyResult::Ok(PyBytes::new(py, encoder.vocabulary().token(i64::from(id))?));
        let merges = py.detach(|| encoder.merges());
        merges.into_iter().map(|(left, right)| Ok((bytes(left)?, bytes(right)?))).collect()
    }

    /// Number of tokens.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.state().encoder.vocabulary().len()
    }

    /// The ids of a text.
    fn encode<'py>(&self, py: Python<'py>, text: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let (state, text) = (self.state(), checked_text(text)?);
        let ids = py.detach(|| state.encoder.encode(&text))?;
        state.ints.list(py, state.size(), &ids)
    }

    /// The ids of each text, by all cores or at most `num_threads`.
    #[pyo3(signature = (texts, num_threads=None))]
    fn batch_encode<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        num_threads: Option<Whole>,
    ) -> PyResult<Bound<'py, PyList>> {
        let (state, threads) = (self.state(), threads(num_threads)?.unwrap_or(usize::MAX));
        let texts = all_texts(texts)?;
        let rows = py.detach(|| state.encoder.encode_batch(&texts, threads))?;
        let rows = rows.iter().map(|ids| state.ints.list(py, state.size(), ids)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, rows)
    }

    /// The ids of a text as a numpy array: uint16 where the vocabulary allows it, else uint32.
    fn encode_to_numpy<'py>(&self, py: Python<'py>, text: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let (state, text) = (self.state(), checked_text(text)?);
        let ids = py.detach(|| state.encoder.encode(&text))?;
        if arrays::is_narrow(state.size()) {
            arrays::array(py, ids.into_iter().map(u16::of).collect())
        } else {
            arrays::array(py, ids)
        }
    }

    /// The ids of all texts in one numpy array, and where each text starts: text i is `ids[offsets[i]:offsets[i + 1]]`.
    #[pyo3(signature = (texts, num_threads=None))]
    fn batch_encode_to_numpy<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        num_threads: Option<Whole>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let (state, threads) = (self.state(), threads(num_threads)?.unwrap_or(usize::MAX));
        let texts = all_texts(texts)?;
        if arrays::is_narrow(state.size()) {
            arrays::flat::<u16>(py, &state.encoder, &texts, threads)
        } else {
            arrays::flat::<u32>(py, &state.encoder, &texts, threads)
        }
    }

    /// Write the ids of a text to the front of `out`, an array of integers; returns how many there are.
    fn encode_into(&self, py: Python<'_>, text: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>) -> PyResult<usize> {
        let (state, text) = (self.state(), checked_text(text)?);
        let ids = py.detach(|| state.encoder.encode(&text))?;
        arrays::write_to_buffer(out, &ids, state.size())?;
        Ok(ids.len())
    }

    /// The text of some ids (ints, or an array of integers); bytes that are no UTF-8 become U+FFFD.
    fn decode<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyString>> {
        let bytes = arrays::decode(&self.state().encoder, ids)?;
        Ok(PyString::new(py, &String::from_utf8_lossy(&bytes)))
    }

    /// The bytes of some ids.
    fn decode_bytes<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &arrays::decode(&self.state().encoder, ids)?))
    }

    fn __repr__(&self) -> String {
        let state = self.state();
        let encoder = &state.encoder;
        format!("Tokenizer(vocab_size={}, pattern={:?})", encoder.vocabulary().len(), encoder.pattern())
    }
}

/// Train on one UTF-8 text file, write the ranks as tiktoken's text, return the tokenizer.
#[pyfunction]
#[pyo3(signature = (input_file, output_file, vocab_size, pattern=None))]
fn train_bpe(
    py: Python<'_>,
    input_file: PathBuf,
    output_file: PathBuf,
    vocab_size: Whole,
    pattern: Option<&str>,
) -> PyResult<Tokenizer> {
    let vocab_size = checked_size(&vocab_size)?;
    let splitter = Splitter::new(pattern.unwrap_or(GPT4_PATTERN))?;
    let corpus = py.detach(|| {
        let bytes = std::fs::read(&input_file).map_err(|source| Error::Io { path: input_file.clone(), source })?;
        let text = String::from_utf8(bytes)
            .map_err(|e| Error::NotUtf8 { path: input_file.clone(), offset: e.utf8_error().valid_up_to() })?;
        let mut corpus = Corpus::new(splitter);
        corpus.add(&[text])?;
        Ok::<_, Error>(corpus)
    })?;
    let encoder = finish(py, corpus, vocab_size, None)?;
    py.detach(|| encoder.vocabulary().save_tiktoken(&output_file))?;
    Ok(Tokenizer::of(encoder))
}

/// Merge the counted words, looking at Ctrl-C and calling `progress(done, wanted)` now and then.
fn finish(py: Python<'_>, corpus: Corpus, vocab_size: u32, progress: Option<Py<PyAny>>) -> PyResult<Encoder> {
    let mut raised = None;
    let mut last = Instant::now();
    let trained = py.detach(|| {
        let (splitter, words) = corpus.into_words();
        let merges = train(&words, vocab_size, &mut |done, wanted| {
            if done < wanted && last.elapsed() < CHECK_EVERY {
                return Ok(());
            }
            last = Instant::now();
            Python::attach(|py| {
                py.check_signals()?;
                progress.as_ref().map_or(Ok(()), |call| call.call1(py, (done, wanted)).map(|_| ()))
            })
            .map_err(|error| {
                raised = Some(error);
                Error::Stopped
            })
        })?;
        Ok(Encoder::new(splitter, Vocabulary::from_merges(&merges)?))
    });
    match (trained, raised) {
        (_, Some(error)) => Err(error),
        (trained, None) => trained.map_err(|error: Error| error.into()),
    }
}

fn checked_size(vocab_size: &Whole) -> PyResult<u32> {
    let size = if let Whole::Known(size) = vocab_size { u32::try_from(*size).ok() } else { None };
    match size {
        Some(size) if size >= 256 => Ok(size),
        Some(size) => Err(Error::VocabularyTooSmall(size).into()),
        None => Err(PyValueError::new_err(format!("vocab_size is {vocab_size}, but must be from 256 to {}", u32::MAX))),
    }
}

#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()?;
    module.add_function(wrap_pyfunction!(train_bpe, module)?)?;
    module.add("GPT4_PATTERN", GPT4_PATTERN)?;
    module.add("PATTERNS", PATTERNS.into_iter().collect::<std::collections::BTreeMap<_, _>>())?;
    module.add("UNICODE_VERSION", UNICODE_VERSION)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
