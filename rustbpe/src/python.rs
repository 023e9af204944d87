//! The Python module: the only file that knows Python. The GIL is released around all work.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyDict, PyIterator, PyList};

use crate::{Corpus, Encoder, Error, GPT4_PATTERN, Splitter, UNICODE_VERSION, Vocabulary, train};

/// Texts are handed to the counting threads after this many bytes, even when the buffer's count is not reached.
const BUFFER_BYTES: usize = 16 << 20;
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
    encoder: RwLock<Arc<Encoder>>,
}

impl Tokenizer {
    fn of(encoder: Encoder) -> Self {
        Self { encoder: RwLock::new(Arc::new(encoder)) }
    }

    fn encoder(&self) -> Arc<Encoder> {
        Arc::clone(&self.encoder.read().unwrap_or_else(PoisonError::into_inner))
    }
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

    /// Train on an iterator of texts until the vocabulary has `vocab_size` tokens or no pair is left.
    #[pyo3(signature = (iterator, vocab_size, buffer_size=8192, pattern=None, progress=None))]
    fn train_from_iterator(
        &self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: i64,
        buffer_size: usize,
        pattern: Option<&str>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let vocab_size = checked_size(vocab_size)?;
        let splitter = Splitter::new(pattern.unwrap_or(GPT4_PATTERN))?;
        let corpus = count_iterator(py, &iterator.try_iter()?, buffer_size.max(1), Corpus::new(splitter))?;
        let encoder = finish(py, corpus, vocab_size, progress)?;
        *self.encoder.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(encoder);
        Ok(())
    }

    /// The split pattern.
    fn get_pattern(&self) -> String {
        self.encoder().pattern().to_owned()
    }

    /// All tokens as (bytes, rank): the 256 bytes, then the merges in order.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let encoder = self.encoder();
        let tokens: Vec<_> = encoder.vocabulary().tokens().map(|token| PyBytes::new(py, token)).collect();
        PyList::new(py, tokens.into_iter().zip(0_u32..))
    }

    /// The pairs of tokens that merge, in order: for formats that list merges instead of ranks.
    fn get_merges<'py>(&self, py: Python<'py>) -> PyResult<Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>> {
        let encoder = self.encoder();
        let bytes = |id: u32| PyResult::Ok(PyBytes::new(py, encoder.vocabulary().token(i64::from(id))?));
        let merges = py.detach(|| encoder.merges());
        merges.into_iter().map(|(left, right)| Ok((bytes(left)?, bytes(right)?))).collect()
    }

    /// Number of tokens.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.encoder().vocabulary().len()
    }

    /// The ids of a text.
    fn encode(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let (encoder, text) = (self.encoder(), checked_text(text)?);
        Ok(py.detach(|| encoder.encode(&text))?)
    }

    /// The ids of each text, by all cores or at most `num_threads`.
    #[pyo3(signature = (texts, num_threads=None))]
    fn batch_encode(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: Option<usize>,
    ) -> PyResult<Vec<Vec<u32>>> {
        let encoder = self.encoder();
        let texts = texts.try_iter()?.map(|text| checked_text(&text?)).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| encoder.encode_batch(&texts, num_threads.unwrap_or(usize::MAX)))?)
    }

    /// The text of some ids; bytes that are no UTF-8 become U+FFFD.
    fn decode(&self, py: Python<'_>, ids: &Bound<'_, PyAny>) -> PyResult<String> {
        let (encoder, ids) = (self.encoder(), checked_ids(ids)?);
        Ok(py.detach(|| encoder.decode(&ids))?)
    }

    /// The bytes of some ids.
    fn decode_bytes<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let (encoder, ids) = (self.encoder(), checked_ids(ids)?);
        Ok(PyBytes::new(py, &py.detach(|| encoder.decode_bytes(&ids))?))
    }

    fn __repr__(&self) -> String {
        let encoder = self.encoder();
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
    vocab_size: i64,
    pattern: Option<&str>,
) -> PyResult<Tokenizer> {
    let vocab_size = checked_size(vocab_size)?;
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

/// Collect texts from Python while another thread counts the buffer before.
fn count_iterator(
    py: Python<'_>,
    iterator: &Bound<'_, PyIterator>,
    buffer_size: usize,
    mut corpus: Corpus,
) -> PyResult<Corpus> {
    let (sender, receiver): (SyncSender<Vec<String>>, Receiver<Vec<String>>) = sync_channel(0);
    std::thread::scope(|scope| {
        let counting: ScopedJoinHandle<'_, Result<Corpus, Error>> = scope.spawn(move || {
            for texts in receiver {
                corpus.add(&texts)?;
            }
            Ok(corpus)
        });
        let collected = collect(py, iterator, buffer_size, &sender);
        drop(sender);
        let counted = py.detach(|| counting.join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The iterator's own error comes first: it is what the caller has to repair.
        collected?;
        Ok(counted?)
    })
}

/// Send the iterator's texts in buffers. Ends early when the counting thread has given up: its error tells why.
fn collect(
    py: Python<'_>,
    iterator: &Bound<'_, PyIterator>,
    buffer_size: usize,
    sender: &SyncSender<Vec<String>>,
) -> PyResult<()> {
    let mut buffer = Vec::new();
    let mut bytes = 0;
    for item in iterator.clone() {
        py.check_signals()?;
        let text = checked_text(&item?)?.to_string();
        bytes += text.len();
        buffer.push(text);
        if buffer.len() >= buffer_size || bytes >= BUFFER_BYTES {
            let full = std::mem::take(&mut buffer);
            bytes = 0;
            if py.detach(|| sender.send(full)).is_err() {
                return Ok(());
            }
        }
    }
    // A refusal here means the same as above.
    let _ = py.detach(|| sender.send(buffer));
    py.check_signals()
}

fn checked_size(vocab_size: i64) -> PyResult<u32> {
    match u32::try_from(vocab_size) {
        Ok(size) if size >= 256 => Ok(size),
        Ok(size) => Err(Error::VocabularyTooSmall(size).into()),
        Err(_) => {
            Err(PyValueError::new_err(format!("vocab_size is {vocab_size}, but must be from 256 to {}", u32::MAX)))
        }
    }
}

/// A str as UTF-8. A lone surrogate, which JSON can smuggle in, has none.
fn checked_text(text: &Bound<'_, PyAny>) -> PyResult<PyBackedStr> {
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

fn checked_ids(ids: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    ids.try_iter()?.map(|id| id?.extract::<i64>()).collect()
}

#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()?;
    module.add_function(wrap_pyfunction!(train_bpe, module)?)?;
    module.add("GPT4_PATTERN", GPT4_PATTERN)?;
    module.add("UNICODE_VERSION", UNICODE_VERSION)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
