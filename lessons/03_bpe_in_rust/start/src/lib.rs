//! Lesson 3: the toy of lesson 1 in Rust, then idiomatic, then fast. Ids below 256 are bytes; merge i makes the id 256 + i.
//!
//! The check and the later lessons use what is `pub` here; behind it the design is yours.

use std::collections::HashMap;
use std::fmt;

/// Two neighbouring ids.
pub type Pair = (u32, u32);

// --- one: the toy, as in Python -------------------------------------------------------------------------------------

/// How often each two neighbours occur: [7, 7, 7] has (7, 7) twice.
pub fn count_pairs(ids: &[u32]) -> HashMap<Pair, u64> {
    todo!("count_pairs")
}

/// New ids in which `new_id` stands for every occurrence of the pair, taken from left to right.
pub fn merge(ids: &[u32], pair: Pair, new_id: u32) -> Vec<u32> {
    todo!("merge")
}

/// The merges learned from one text, so many at most: the commonest pair each time, of several the smallest; fewer when
/// no pair is left.
pub fn train(text: &[u8], merges: usize) -> Vec<Pair> {
    todo!("train")
}

// --- two: idiomatic -------------------------------------------------------------------------------------------------

/// An id that stands for nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownId(pub u32);

impl fmt::Display for UnknownId {
    /// `id 300 is not in the vocabulary`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!("Display of UnknownId")
    }
}

impl std::error::Error for UnknownId {}

/// A vocabulary: the 256 bytes and some merges. Which fields does it need, so that `decode` has little to do?
pub struct Bpe {}

impl Bpe {
    /// The vocabulary that some merges make.
    pub fn new(merges: Vec<Pair>) -> Self {
        todo!("Bpe::new")
    }

    /// The ids of some bytes.
    pub fn encode(&self, bytes: &[u8]) -> Vec<u32> {
        todo!("Bpe::encode")
    }

    /// The bytes of some ids, or the first id that stands for nothing. (They need not be a text: half a character is fine.)
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, UnknownId> {
        todo!("Bpe::decode")
    }
}

// --- three: words instead of a text, corrections instead of recounts ------------------------------------------------

/// The merges of some different words, each with the number of times that it occurs in a text. No pair spans two words.
/// Every step counts all pairs anew.
pub fn train_words_slowly(words: &[(Vec<u8>, u64)], merges: usize) -> Vec<Pair> {
    todo!("train_words_slowly")
}

/// The same merges; a step visits only the words that hold the pair, and corrects only the counts that change.
pub fn train_words(words: &[(Vec<u8>, u64)], merges: usize) -> Vec<Pair> {
    todo!("train_words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_overlaps_itself_is_counted_twice_and_merged_once() {
        assert_eq!(count_pairs(&[7, 7, 7]), HashMap::from([((7, 7), 2)]));
        assert_eq!(merge(&[7, 7, 7], (7, 7), 256), [256, 7]);
    }
}
