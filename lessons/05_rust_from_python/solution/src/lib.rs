//! Lesson 5: what lessons 3 and 4 wrote, as a Python module.

use pyo3::prelude::*;

#[pymodule]
mod lesson05 {
    use std::borrow::Cow;
    use std::collections::HashMap;

    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;

    /// How often each word occurs; a word ends with its space. By all cores, while other Python threads go on.
    #[pyfunction]
    fn count_words(py: Python<'_>, texts: Vec<String>) -> HashMap<String, u64> {
        py.detach(|| {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            lesson04::count_by_rayon(&texts).into_iter().map(|(word, count)| (word.to_owned(), count)).collect()
        })
    }

    /// The merges that are learned from words (bytes and their count), so many at most.
    #[pyfunction]
    fn train(py: Python<'_>, words: Vec<(Vec<u8>, u64)>, merges: usize) -> Vec<lesson03::Pair> {
        py.detach(|| lesson03::train_words(&words, merges))
    }

    /// The 256 bytes and some merges.
    #[pyclass(frozen)]
    struct Bpe {
        inner: lesson03::Bpe,
    }

    #[pymethods]
    impl Bpe {
        #[new]
        fn new(merges: Vec<lesson03::Pair>) -> PyResult<Self> {
            for (i, &(left, right)) in merges.iter().enumerate() {
                let known = 256 + i as u32;
                if left >= known || right >= known {
                    let wrong = format!("merge {i} is ({left}, {right}), but the ids before it go from 0 to {}", known - 1);
                    return Err(PyValueError::new_err(wrong));
                }
            }
            Ok(Self { inner: lesson03::Bpe::new(merges) })
        }

        /// The ids of some bytes.
        fn encode(&self, py: Python<'_>, data: &[u8]) -> Vec<u32> {
            py.detach(|| self.inner.encode(data))
        }

        /// The bytes of some ids. Raises ValueError for an id that is not there.
        fn decode(&self, ids: Vec<u32>) -> PyResult<Cow<'_, [u8]>> {
            self.inner.decode(&ids).map(Cow::Owned).map_err(|unknown| PyValueError::new_err(unknown.to_string()))
        }
    }
}
