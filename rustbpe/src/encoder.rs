//! Text <-> ids, equal to tiktoken's for the same ranks and pattern.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use crate::Error;
use crate::split::Splitter;
use crate::trainer::Pair;
use crate::vocabulary::{NONE, Vocabulary};

/// Words up to this many bytes are merged by looking for the lowest rank again and again; longer ones by a heap.
/// The scan is quadratic, but faster on what words usually are.
const SCAN_BYTES: usize = 64;

/// A split pattern and a vocabulary: everything that turns text into ids and back.
#[derive(Debug)]
pub struct Encoder {
    splitter: Splitter,
    vocabulary: Vocabulary,
}

impl Encoder {
    /// Put the two together.
    pub fn new(splitter: Splitter, vocabulary: Vocabulary) -> Self {
        Self { splitter, vocabulary }
    }

    /// The split pattern.
    pub fn pattern(&self) -> &str {
        self.splitter.pattern()
    }

    /// The tokens.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The ids of a text. Errors only when a pattern of the caller's own gives up on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut scratch = Scratch::default();
        self.splitter.for_each_word(text, |word| self.encode_word(word.as_bytes(), &mut scratch, &mut ids))?;
        Ok(ids)
    }

    /// The ids of many texts, by at most `threads` cores; with one, in the caller's thread.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T], threads: usize) -> Result<Vec<Vec<u32>>, Error> {
        let one = |text: &T| self.encode(text.as_ref());
        if threads <= 1 {
            texts.iter().map(one).collect()
        } else if threads < rayon::current_num_threads() {
            let chunk = texts.len().div_ceil(threads).max(1);
            let parts: Result<Vec<Vec<_>>, Error> =
                texts.par_chunks(chunk).map(|part| part.iter().map(one).collect()).collect();
            Ok(parts?.into_iter().flatten().collect())
        } else {
            texts.par_iter().map(one).collect()
        }
    }

    /// The bytes that the ids stand for. Errors on an unknown id.
    pub fn decode_bytes(&self, ids: &[i64]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.vocabulary.token(id)?);
        }
        Ok(bytes)
    }

    /// The text that the ids stand for; bytes that are no UTF-8 become U+FFFD. Errors on an unknown id.
    pub fn decode(&self, ids: &[i64]) -> Result<String, Error> {
        let bytes = self.decode_bytes(ids)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// The two tokens that each longer token is merged from, by rank. A token that merging never reaches has none.
    ///
    /// A token's parts are what lower ranks alone make of its bytes.
    pub fn merges(&self) -> Vec<Pair> {
        let mut scratch = Scratch::default();
        let tokens = (0..).zip(self.vocabulary.tokens()).filter(|(_, token)| token.len() > 1);
        tokens
            .filter_map(|(id, token)| match *scratch.merge_by_scan(&self.vocabulary, token, id) {
                [left, right] => Some((left, right)),
                _ => None,
            })
            .collect()
    }

    fn encode_word(&self, word: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if let Some(id) = self.vocabulary.id(word) {
            ids.push(id);
        } else if word.len() <= SCAN_BYTES {
            ids.extend_from_slice(scratch.merge_by_scan(&self.vocabulary, word, NONE));
        } else {
            scratch.merge_by_heap(&self.vocabulary, word, ids);
        }
    }
}

/// Memory that lives from word to word.
#[derive(Default)]
struct Scratch {
    ids: Vec<u32>,
    /// `ranks[i]`: what `ids[i]` and its right neighbour merge into.
    ranks: Vec<u32>,
    /// Links of the heap's way: the positions left and right that are still there.
    left: Vec<usize>,
    right: Vec<usize>,
    heap: BinaryHeap<Reverse<(u32, usize)>>,
}

impl Scratch {
    fn start(&mut self, vocabulary: &Vocabulary, word: &[u8]) {
        self.ids.clear();
        self.ids.extend(word.iter().map(|&byte| vocabulary.byte_id(byte)));
        self.ranks.clear();
        self.ranks.extend(self.ids.windows(2).map(|pair| vocabulary.merged(pair[0], pair[1])));
        self.ranks.push(NONE);
    }

    /// Merge the leftmost pair of the lowest rank until none below `limit` is left. Quadratic in the word's length.
    fn merge_by_scan(&mut self, vocabulary: &Vocabulary, word: &[u8], limit: u32) -> &[u32] {
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
    fn merge_by_heap(&mut self, vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<u32>) {
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
        out.extend(ids.iter().filter(|&&id| id != NONE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::GPT4_PATTERN;

    fn encoder(merges: &[(u32, u32)]) -> Encoder {
        Encoder::new(Splitter::new(GPT4_PATTERN).unwrap(), Vocabulary::from_merges(merges).unwrap())
    }

    #[test]
    fn the_two_ways_of_merging_agree() {
        let encoder =
            encoder(&[(97, 97), (97, 98), (98, 256), (256, 256), (257, 256), (99, 98), (259, 259), (261, 257)]);
        let mut seed = 1_u32;
        for len in 2..400 {
            let word: Vec<u8> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    b"aaabc"[(seed >> 16) as usize % 5]
                })
                .collect();
            let mut by_heap = Vec::new();
            Scratch::default().merge_by_heap(&encoder.vocabulary, &word, &mut by_heap);
            let mut scratch = Scratch::default();
            let by_scan = scratch.merge_by_scan(&encoder.vocabulary, &word, NONE);
            assert_eq!(by_scan, by_heap, "{}", String::from_utf8_lossy(&word));
        }
    }

    #[test]
    fn merges_are_found_again() {
        let merges = [(97, 97), (97, 98), (98, 256), (256, 256), (257, 256), (99, 98), (259, 259), (261, 257)];
        assert_eq!(encoder(&merges).merges(), merges);
    }

    #[test]
    fn overlaps_merge_from_the_left() {
        assert_eq!(encoder(&[(97, 97)]).encode("aaaaa").unwrap(), [256, 256, 97]);
    }

    #[test]
    fn a_token_comes_out_whole_even_when_its_merges_would_not_make_it() {
        // "abc" is a token, but "bc" merges first and "a" + "bc" is how it is found; "xyz" has no such way.
        let mut ranks: Vec<(Vec<u8>, u32)> = (0..=255_u8).map(|byte| (vec![byte], u32::from(byte))).collect();
        ranks.extend([(b"bc".to_vec(), 256), (b"abc".to_vec(), 257), (b"xyz".to_vec(), 258)]);
        let encoder = Encoder::new(Splitter::new(GPT4_PATTERN).unwrap(), Vocabulary::from_ranks(ranks).unwrap());
        assert_eq!(encoder.encode("abc xyz").unwrap(), [257, 32, 120, 121, 122]);
        assert_eq!(encoder.encode("xyz").unwrap(), [258]);
    }

    #[test]
    fn decoding_gives_the_text_back_and_replaces_broken_characters() {
        let encoder = encoder(&[(97, 98)]);
        for text in ["", "ab", "abé 日本\n\t😀"] {
            let ids: Vec<i64> = encoder.encode(text).unwrap().into_iter().map(i64::from).collect();
            assert_eq!(encoder.decode(&ids).unwrap(), text);
        }
        assert_eq!(encoder.decode(&[0xC3]).unwrap(), "\u{fffd}");
        assert!(matches!(encoder.decode_bytes(&[97, 300]), Err(Error::UnknownId { id: 300, size: 257 })));
    }

    #[test]
    fn a_batch_equals_its_texts_one_by_one() {
        let encoder = encoder(&[(97, 98)]);
        let texts = ["ab", "", "cab ab"];
        let expected: Vec<_> = texts.iter().map(|text| encoder.encode(text).unwrap()).collect();
        for threads in [0, 1, 2, 3, usize::MAX] {
            assert_eq!(encoder.encode_batch(&texts, threads).unwrap(), expected);
            assert!(encoder.encode_batch(&texts[..0], threads).unwrap().is_empty());
        }
    }
}
