//! Lesson 3: the toy of lesson 1, then words that are counted once and pairs that are corrected instead of recounted.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fmt;

/// Two neighbouring ids.
pub type Pair = (u32, u32);

// --- one: the toy ---------------------------------------------------------------------------------------------------

/// How often each two neighbours occur.
pub fn count_pairs(ids: &[u32]) -> HashMap<Pair, u64> {
    let mut counts = HashMap::new();
    for pair in ids.windows(2) {
        *counts.entry((pair[0], pair[1])).or_insert(0) += 1;
    }
    counts
}

/// New ids in which `new_id` stands for every occurrence of the pair, taken from left to right.
pub fn merge(ids: &[u32], pair: Pair, new_id: u32) -> Vec<u32> {
    let mut merged = Vec::with_capacity(ids.len());
    let mut rest = ids;
    while let [first, tail @ ..] = rest {
        if tail.first() == Some(&pair.1) && *first == pair.0 {
            merged.push(new_id);
            rest = &tail[1..];
        } else {
            merged.push(*first);
            rest = tail;
        }
    }
    merged
}

/// The merges learned from one text: the commonest pair each time, of several the smallest.
pub fn train(text: &[u8], merges: usize) -> Vec<Pair> {
    train_words_slowly(&[(text.to_vec(), 1)], merges)
}

// --- two: idiomatic -------------------------------------------------------------------------------------------------

/// An id that stands for nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownId(pub u32);

impl fmt::Display for UnknownId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {} is not in the vocabulary", self.0)
    }
}

impl std::error::Error for UnknownId {}

/// A vocabulary: the 256 bytes and some merges.
pub struct Bpe {
    merges: Vec<Pair>,
    tokens: Vec<Vec<u8>>,
}

impl Bpe {
    /// The vocabulary that some merges make.
    pub fn new(merges: Vec<Pair>) -> Self {
        let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        for &(left, right) in &merges {
            let token = [tokens[left as usize].as_slice(), &tokens[right as usize]].concat();
            tokens.push(token);
        }
        Self { merges, tokens }
    }

    /// The ids of some bytes.
    pub fn encode(&self, bytes: &[u8]) -> Vec<u32> {
        let ids = bytes.iter().map(|&byte| u32::from(byte)).collect();
        (256..).zip(&self.merges).fold(ids, |ids: Vec<u32>, (new_id, &pair)| merge(&ids, pair, new_id))
    }

    /// The bytes of some ids.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, UnknownId> {
        let tokens = ids.iter().map(|&id| self.tokens.get(id as usize).ok_or(UnknownId(id)));
        Ok(tokens.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().copied().collect())
    }
}

/// The merges of some different words, each with its count; every step counts all pairs anew.
pub fn train_words_slowly(words: &[(Vec<u8>, u64)], merges: usize) -> Vec<Pair> {
    let mut words = ids_of(words);
    let mut found = Vec::new();
    for new_id in (256..).take(merges) {
        let mut counts: HashMap<Pair, u64> = HashMap::new();
        for (ids, times) in &words {
            for (pair, count) in count_pairs(ids) {
                *counts.entry(pair).or_default() += count * times;
            }
        }
        let Some((&pair, _)) = counts.iter().max_by_key(|(pair, count)| (**count, Reverse(**pair))) else { break };
        for (ids, _) in &mut words {
            *ids = merge(ids, pair, new_id);
        }
        found.push(pair);
    }
    found
}

/// The same merges; a step visits only the words that hold the pair, and corrects only the counts that change.
pub fn train_words(words: &[(Vec<u8>, u64)], merges: usize) -> Vec<Pair> {
    let mut words = ids_of(words);
    let mut counts: HashMap<Pair, u64> = HashMap::new();
    let mut places: HashMap<Pair, HashSet<usize>> = HashMap::new();
    for (place, (ids, times)) in words.iter().enumerate() {
        for (pair, count) in count_pairs(ids) {
            *counts.entry(pair).or_default() += count * times;
            places.entry(pair).or_default().insert(place);
        }
    }
    let mut heap: BinaryHeap<(u64, Reverse<Pair>)> = counts.iter().map(|(&pair, &n)| (n, Reverse(pair))).collect();
    let mut found = Vec::new();
    while found.len() < merges {
        let Some((count, Reverse(pair))) = heap.pop() else { break };
        if counts[&pair] != count {
            continue; // an old entry: the pair was pushed again when its count changed
        }
        let new_id = 256 + found.len() as u32;
        let mut changed = HashSet::new();
        for place in places.remove(&pair).unwrap_or_default() {
            let (ids, times) = &mut words[place];
            let merged = merge(ids, pair, new_id);
            for (old, n) in count_pairs(ids) {
                *counts.entry(old).or_default() -= n * *times;
                changed.insert(old);
            }
            for (new, n) in count_pairs(&merged) {
                *counts.entry(new).or_default() += n * *times;
                places.entry(new).or_default().insert(place);
                changed.insert(new);
            }
            *ids = merged;
        }
        heap.extend(changed.into_iter().map(|pair| (counts[&pair], Reverse(pair))).filter(|(count, _)| *count > 0));
        found.push(pair);
    }
    found
}

fn ids_of(words: &[(Vec<u8>, u64)]) -> Vec<(Vec<u32>, u64)> {
    words.iter().map(|(bytes, times)| (bytes.iter().map(|&byte| u32::from(byte)).collect(), *times)).collect()
}
