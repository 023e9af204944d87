//! Words with counts -> merges: byte-level BPE training.
//!
//! The pair with the highest count is merged first; of equal counts the one with the smaller left id, then with the
//! smaller right id. That is a total order, so the result never depends on threads or hashing.
//!
//! Lesson: lessons/03_bpe_in_rust

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::Error;
use crate::corpus::Words;

/// Two ids side by side.
pub type Pair = (u32, u32);

/// Merges between two calls of the caller's check: a thousandth of a second or so.
const MERGES_PER_CHECK: u32 = 64;

/// The merges that grow 256 bytes to a vocabulary of `vocab_size`, in order; merge `i` makes id `256 + i`.
///
/// Fewer when the words hold no more pairs. `on_progress(done, wanted)` is called now and then and may stop training;
/// at the end it is called with what was done twice.
pub fn train(
    words: &Words,
    vocab_size: u32,
    on_progress: &mut dyn FnMut(u32, u32) -> Result<(), Error>,
) -> Result<Vec<Pair>, Error> {
    if vocab_size < 256 {
        return Err(Error::VocabularyTooSmall(vocab_size));
    }
    let wanted = vocab_size - 256;
    let mut state = State::new(words)?;
    let mut merges = Vec::new();
    while (merges.len() as u32) < wanted {
        let done = merges.len() as u32;
        if done % MERGES_PER_CHECK == 0 {
            on_progress(done, wanted)?;
        }
        let Some(pair) = state.most_frequent() else { break };
        state.merge(pair, 256 + done);
        merges.push(pair);
    }
    let done = merges.len() as u32;
    on_progress(done, done)?;
    Ok(merges)
}

/// A pair as it stood when it entered the heap. The greatest is the one to merge first.
type Candidate = (u64, Reverse<Pair>);

/// One word: a stretch of `State::symbols` that shrinks as its pairs are merged.
struct Word {
    start: usize,
    len: u32,
    count: u64,
}

/// Where a pair occurs: how often, and in which words (some of which may have lost it since).
#[derive(Default)]
struct Occurrences {
    count: u64,
    words: Vec<u32>,
}

impl Occurrences {
    /// Words are handed over in ascending order within one pass, so a look at the last is enough to keep each once.
    fn add(&mut self, word: u32, count: u64) {
        self.count += count;
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}

struct State {
    words: Vec<Word>,
    /// The ids of all words, one after another.
    symbols: Vec<u32>,
    pairs: FxHashMap<Pair, Occurrences>,
    /// Counts of a pair only fall after the merge that made it, so an old entry is an upper bound: it is refreshed
    /// when it comes to the top and not before.
    heap: BinaryHeap<Candidate>,
}

impl State {
    fn new(words: &Words) -> Result<Self, Error> {
        let mut state =
            Self { words: Vec::new(), symbols: Vec::new(), pairs: FxHashMap::default(), heap: BinaryHeap::new() };
        for (word, count) in words.iter().filter(|(word, _)| word.len() > 1) {
            let index = u32::try_from(state.words.len()).map_err(|_| Error::CorpusTooLarge)?;
            let len = u32::try_from(word.len()).map_err(|_| Error::CorpusTooLarge)?;
            state.words.push(Word { start: state.symbols.len(), len, count });
            state.symbols.extend(word.iter().map(|&byte| u32::from(byte)));
            for pair in word.windows(2) {
                state.pairs.entry((pair[0].into(), pair[1].into())).or_default().add(index, count);
            }
        }
        state.heap = state.pairs.iter().map(|(&pair, found)| (found.count, Reverse(pair))).collect();
        Ok(state)
    }

    /// Take the pair to merge next from the heap; None when no pair is left.
    fn most_frequent(&mut self) -> Option<Pair> {
        loop {
            let (count, Reverse(pair)) = self.heap.pop()?;
            let now = self.pairs.get(&pair).map_or(0, |found| found.count);
            if now == count {
                return Some(pair);
            }
            if now > 0 {
                self.heap.push((now, Reverse(pair)));
            } else {
                self.pairs.remove(&pair);
            }
        }
    }

    /// Replace `pair` by `id` in all words, from left to right, and keep the counts of its neighbours.
    fn merge(&mut self, pair: Pair, id: u32) {
        let found = self.pairs.remove(&pair).expect("the heap knows only pairs that occur");
        // Pairs that hold `id` can only come up now, and are collected apart from the large map.
        let mut made: FxHashMap<Pair, Occurrences> = FxHashMap::default();
        for index in found.words {
            self.merge_in_word(index, pair, id, &mut made);
        }
        for (pair, found) in made {
            if found.count > 0 {
                self.heap.push((found.count, Reverse(pair)));
                self.pairs.insert(pair, found);
            }
        }
    }

    fn merge_in_word(&mut self, index: u32, pair: Pair, id: u32, made: &mut FxHashMap<Pair, Occurrences>) {
        let word = &mut self.words[index as usize];
        let count = word.count;
        let symbols = &mut self.symbols[word.start..word.start + word.len as usize];
        let (mut read, mut write) = (0, 0);
        while read < symbols.len() {
            if read + 1 == symbols.len() || (symbols[read], symbols[read + 1]) != pair {
                symbols[write] = symbols[read];
                read += 1;
                write += 1;
                continue;
            }
            if write > 0 {
                let left = symbols[write - 1];
                if left == id {
                    // The pair (id, pair.0) was noted when the neighbour was merged, and is gone again.
                    made.get_mut(&(id, pair.0)).expect("noted a step ago").count -= count;
                } else if let Some(old) = self.pairs.get_mut(&(left, pair.0)) {
                    old.count -= count;
                }
                made.entry((left, id)).or_default().add(index, count);
            }
            if let Some(&right) = symbols.get(read + 2) {
                if let Some(old) = self.pairs.get_mut(&(pair.1, right)) {
                    old.count -= count;
                }
                made.entry((id, right)).or_default().add(index, count);
            }
            symbols[write] = id;
            read += 2;
            write += 1;
        }
        word.len = write as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook: count all pairs anew before every merge.
    fn train_slowly(words: &Words, vocab_size: u32) -> Vec<Pair> {
        let mut words: Vec<(Vec<u32>, u64)> =
            words.iter().map(|(word, count)| (word.iter().map(|&byte| byte.into()).collect(), count)).collect();
        let mut merges = Vec::new();
        for id in 256..vocab_size {
            let mut counts: FxHashMap<Pair, u64> = FxHashMap::default();
            for (symbols, count) in &words {
                for pair in symbols.windows(2) {
                    *counts.entry((pair[0], pair[1])).or_default() += count;
                }
            }
            let Some((&pair, _)) = counts.iter().max_by_key(|&(&pair, &count)| (count, Reverse(pair))) else { break };
            for (symbols, _) in &mut words {
                let mut i = 0;
                while i + 1 < symbols.len() {
                    if (symbols[i], symbols[i + 1]) == pair {
                        symbols.splice(i..i + 2, [id]);
                    }
                    i += 1;
                }
            }
            merges.push(pair);
        }
        merges
    }

    fn words(list: &[(&str, u64)]) -> Words {
        let mut words = Words::default();
        list.iter().for_each(|&(word, count)| words.push(word.as_bytes(), count));
        words
    }

    #[test]
    fn merges_equal_the_textbook_on_overlaps_and_ties() {
        let mut list = words(&[("aaaa", 3), ("aaaaa", 2), ("abab", 5), ("ababa", 1), ("baab", 4), ("aaabbb", 7)]);
        // A pseudo-random tail over three letters, where ties and overlaps are the rule.
        let mut seed = 7_u32;
        for _ in 0..300 {
            let word: String = (0..9)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ['a', 'b', 'c'][(seed >> 16) as usize % 3]
                })
                .collect();
            list.push(word.as_bytes(), u64::from(1 + (seed >> 29)));
        }
        assert_eq!(train(&list, 600, &mut |_, _| Ok(())).unwrap(), train_slowly(&list, 600));
    }

    #[test]
    fn counts_beyond_32_bits_do_not_wrap() {
        let list = words(&[("ab", 1 << 40), ("cd", (1 << 40) + 1), ("ef", 5)]);
        let merges = train(&list, 258, &mut |_, _| Ok(())).unwrap();
        assert_eq!(merges, [(99, 100), (97, 98)]);
    }

    #[test]
    fn a_small_corpus_gives_the_merges_it_has() {
        assert_eq!(train(&words(&[("abc", 1)]), 1000, &mut |_, _| Ok(())).unwrap(), [(97, 98), (256, 99)]);
        let mut last = (0, 0);
        let mut note = |done, wanted| {
            last = (done, wanted);
            Ok(())
        };
        train(&words(&[("abc", 1)]), 1000, &mut note).unwrap();
        assert_eq!(last, (2, 2));
        assert!(train(&Words::default(), 1000, &mut |_, _| Ok(())).unwrap().is_empty());
    }

    #[test]
    fn the_caller_can_stop() {
        let answer = train(&words(&[("abc", 1)]), 1000, &mut |_, _| Err(Error::Stopped));
        assert!(matches!(answer, Err(Error::Stopped)));
        assert!(matches!(train(&Words::default(), 255, &mut |_, _| Ok(())), Err(Error::VocabularyTooSmall(255))));
    }
}
