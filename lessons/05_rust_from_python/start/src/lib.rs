//! Lesson 5: what lessons 3 and 4 wrote, as a Python module.
//!
//! The check calls from Python, and lesson 7 uses:
//!
//!     count_words(texts: list[str]) -> dict[str, int]
//!         by lesson04::count_by_rayon; other Python threads go on meanwhile
//!     train(words: list[tuple[bytes, int]], merges: int) -> list[tuple[int, int]]
//!         by lesson03::train_words; other Python threads go on meanwhile
//!     Bpe(merges: list[tuple[int, int]])
//!         raises ValueError, with the number of the merge, where a merge uses an id that is not made before it
//!     Bpe.encode(data: bytes) -> list[int]
//!     Bpe.decode(ids: list[int]) -> bytes
//!         raises ValueError with the unknown id in it

use pyo3::prelude::*;

#[pymodule]
mod lesson05 {
    use pyo3::prelude::*;

    /// How many bytes a text has: an example, which you may delete. From Python: `byte_length("é") == 2`.
    #[pyfunction]
    fn byte_length(text: &str) -> usize {
        text.len()
    }
}
