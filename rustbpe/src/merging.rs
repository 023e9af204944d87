//! The bytes of one word -> ids: the leftmost pair of the lowest rank is merged, again and again.
//!
//! Lesson: lessons/06_tiktoken_object

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::vocabulary::{NONE, Vocabulary};

/// Words up to this many bytes are merged by looking for the lowest rank again and again; longer ones by a heap.
/// The scan is quadratic, but faster on what words usually are.
const SCAN_BYTES: usize = 64;

/// Memory that lives from word to word.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    ids: Vec<u32>,
    /// `ranks[i]`: what `ids[i]` and its right neighbour merge into.
    ranks: Vec<u32>,
    /// Links of the heap's way: the positions left and right that are still there.
    left: Vec<usize>,
    right: Vec<usize>,
    heap: BinaryHeap<Reverse<(u32, usize)>>,
}

impl Scratch {
    /// Merge a word of any length: near linear in it.
    pub(crate) fn merge(&mut self, vocabulary: &Vocabulary, word: &[u8]) -> &[u32] {
        if word.len() <= SCAN_BYTES {
            self.merge_by_scan(vocabulary, word, NONE)
        } else {
            self.merge_by_heap(vocabulary, word)
        }
    }

    fn start(&mut self, vocabulary: &Vocabulary, word: &[u8]) {
        self.ids.clear();
        self.ids.extend(word.iter().map(|&byte| vocabulary.byte_id(byte)));
        self.ranks.clear();
        self.ranks.extend(word.windows(2).map(|pair| vocabulary.merged_bytes(pair[0], pair[1])));
        self.ranks.push(NONE);
    }

    /// Merge the leftmost pair of the lowest rank until none below `limit` is left. Quadratic in the word's length.
    pub(crate) fn merge_by_scan(&mut self, vocabulary: &Vocabulary, word: &[u8], limit: u32) -> &[u32] {
        self.start(vocabulary, word);
        let Self { ids, ranks, .. } = self;
        loop {
            let (mut best, mut rank) = (0, limit);
            for (i, &r) in ranks.iter().enumerate() {
                if r < rank {
                    (best, rank) = (i, r);
                }
            }
            if rank == limit {
                break;
            }
            ids[best] = rank;
            ids.remove(best + 1);
            ranks.remove(best + 1);
            ranks[best] = ids.get(best + 1).map_or(NONE, |&right| vocabulary.merged(rank, right));
            if best > 0 {
                ranks[best - 1] = vocabulary.merged(ids[best - 1], rank);
            }
        }
        ids
    }

    /// The same with a heap of pairs and linked positions: near linear, so that a word of a megabyte is no attack.
    fn merge_by_heap(&mut self, vocabulary: &Vocabulary, word: &[u8]) -> &[u32] {
        self.start(vocabulary, word);
        let Self { ids, ranks, left, right, heap } = self;
        let len = ids.len();
        left.clear();
        left.extend((0..len).map(|i| i.wrapping_sub(1)));
        right.clear();
        right.extend(1..=len);
        heap.clear();
        heap.extend(ranks.iter().enumerate().filter(|&(_, &rank)| rank != NONE).map(|(i, &rank)| Reverse((rank, i))));
        while let Some(Reverse((rank, i))) = heap.pop() {
            // An entry is stale when its place was merged into another or its neighbour has changed since.
            if ids[i] == NONE || ranks[i] != rank {
                continue;
            }
            let gone = right[i];
            (ids[i], ids[gone], ranks[gone]) = (rank, NONE, NONE);
            right[i] = right[gone];
            ranks[i] = NONE;
            if right[i] < len {
                left[right[i]] = i;
                ranks[i] = vocabulary.merged(rank, ids[right[i]]);
                if ranks[i] != NONE {
                    heap.push(Reverse((ranks[i], i)));
                }
            }
            if let Some(before) = (i > 0).then(|| left[i]) {
                ranks[before] = vocabulary.merged(ids[before], rank);
                if ranks[before] != NONE {
                    heap.push(Reverse((ranks[before], before)));
                }
            }
        }
        ids.retain(|&id| id != NONE);
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_ways_of_merging_agree() {
        let merges = [(97, 97), (97, 98), (98, 256), (256, 256), (257, 256), (99, 98), (259, 259), (261, 257)];
        let vocabulary = Vocabulary::from_merges(&merges).unwrap();
        let mut seed = 1_u32;
        for len in 2..400 {
            let word: Vec<u8> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    b"aaabc"[(seed >> 16) as usize % 5]
                })
                .collect();
            let (mut first, mut second) = (Scratch::default(), Scratch::default());
            let by_heap = first.merge_by_heap(&vocabulary, &word);
            let by_scan = second.merge_by_scan(&vocabulary, &word, NONE);
            assert_eq!(by_scan, by_heap, "{}", String::from_utf8_lossy(&word));
        }
    }
}
