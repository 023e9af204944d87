//! Text <-> ids, equal to tiktoken's for the same ranks and pattern.
//!
//! Lesson: lessons/06_tiktoken_object

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::Error;
use crate::cache::WordCache;
use crate::key::key;
use crate::merging::Scratch;
use crate::split::{BLOCK, Splitter, Word};
use crate::trainer::Pair;
use crate::vocabulary::Vocabulary;

/// Bytes of text that a thread takes at a time.
const GROUP_BYTES: usize = 1 << 18;

/// The numbers that ids are handed over as: the caller chooses one that holds the vocabulary's.
pub trait Id: Copy + Send {
    /// The id in this width; what does not fit is cut off.
    fn of(id: u32) -> Self;
}

impl Id for u16 {
    fn of(id: u32) -> Self {
        id as u16
    }
}

impl Id for u32 {
    fn of(id: u32) -> Self {
        id
    }
}

/// A split pattern and a vocabulary: everything that turns text into ids and back.
#[derive(Debug)]
pub struct Encoder {
    splitter: Splitter,
    vocabulary: Vocabulary,
    /// One per thread that ever encoded at the same time.
    workspaces: Mutex<Vec<Workspace>>,
}

impl Encoder {
    /// Put the two together.
    pub fn new(splitter: Splitter, vocabulary: Vocabulary) -> Self {
        Self { splitter, vocabulary, workspaces: Mutex::default() }
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
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Append the ids of a text.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        self.with_workspace(|workspace| {
            let bytes = text.as_bytes();
            self.splitter.for_each_block(text, |words| workspace.encode_words(&self.vocabulary, bytes, words, ids))
        })
    }

    /// The ids of many texts, by at most `threads` cores; with one, in the caller's thread.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T], threads: usize) -> Result<Vec<Vec<u32>>, Error> {
        self.in_groups(texts, threads, |group| {
            group.iter().map(|text| self.encode(text.as_ref())).collect::<Result<Vec<_>, Error>>()
        })
        .map(|groups| groups.into_iter().flatten().collect())
    }

    /// The ids of all texts, one after another, and how many each text has.
    pub fn encode_flat<I: Id, T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        threads: usize,
    ) -> Result<(Vec<I>, Vec<usize>), Error> {
        let mut groups = self.in_groups(texts, threads, |group| {
            let bytes: usize = group.iter().map(|text| text.as_ref().len()).sum();
            // Ids are narrowed text by text, while they are near: a large buffer costs more to touch than to fill.
            let (mut of_text, mut ids) = (Vec::new(), Vec::with_capacity(bytes / 4));
            let mut lengths = Vec::with_capacity(group.len());
            for text in group {
                of_text.clear();
                self.encode_into(text.as_ref(), &mut of_text)?;
                ids.extend(of_text.iter().map(|&id| I::of(id)));
                lengths.push(of_text.len());
            }
            Ok((ids, lengths))
        })?;
        if groups.len() == 1 {
            return Ok(groups.remove(0));
        }
        let (ids, lengths): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
        Ok((ids.concat(), lengths.concat()))
    }

    /// Groups of whole texts of about `GROUP_BYTES`, each worked on by one thread.
    fn in_groups<T: AsRef<str> + Sync, R: Send>(
        &self,
        texts: &[T],
        threads: usize,
        work: impl Fn(&[T]) -> Result<R, Error> + Sync,
    ) -> Result<Vec<R>, Error> {
        if threads <= 1 {
            return Ok(vec![work(texts)?]);
        }
        let mut groups = Vec::new();
        let (mut first, mut bytes) = (0, 0);
        for (index, text) in texts.iter().enumerate() {
            bytes += text.as_ref().len();
            if bytes >= GROUP_BYTES || index + 1 == texts.len() {
                groups.push(&texts[first..=index]);
                (first, bytes) = (index + 1, 0);
            }
        }
        // As many tasks as threads are asked for, each taking the next group that nobody has.
        let next = AtomicUsize::new(0);
        let mut done: Vec<(usize, R)> = (0..threads.min(rayon::current_num_threads()))
            .into_par_iter()
            .map(|_| {
                let mine = std::iter::from_fn(|| {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    Some((index, *groups.get(index)?))
                });
                mine.map(|(index, group)| Ok((index, work(group)?))).collect::<Result<Vec<_>, Error>>()
            })
            .collect::<Result<Vec<_>, Error>>()?
            .into_iter()
            .flatten()
            .collect();
        done.sort_by_key(|&(index, _)| index);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }

    /// The bytes that the ids stand for. Errors on an unknown id.
    pub fn decode_bytes(&self, ids: impl IntoIterator<Item = i64>) -> Result<Vec<u8>, Error> {
        let ids = ids.into_iter();
        let mut bytes = Vec::with_capacity(ids.size_hint().0 * 5);
        ids.into_iter().try_for_each(|id| self.vocabulary.append_token(id, &mut bytes))?;
        Ok(bytes)
    }

    /// The text that the ids stand for; bytes that are no UTF-8 become U+FFFD. Errors on an unknown id.
    pub fn decode(&self, ids: impl IntoIterator<Item = i64>) -> Result<String, Error> {
        let bytes = self.decode_bytes(ids)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// The two tokens that each longer token is merged from, by rank. A token that merging never reaches has none.
    pub fn merges(&self) -> Vec<Pair> {
        self.vocabulary.own_merges().into_iter().map(|(pair, _)| pair).collect()
    }

    /// Run `work` with memory that an earlier call has left, its cache warm.
    fn with_workspace<R>(&self, work: impl FnOnce(&mut Workspace) -> R) -> R {
        let kept = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = kept.unwrap_or_else(Workspace::new);
        let result = work(&mut workspace);
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        result
    }
}

/// What encoding needs beside the vocabulary, for one thread at a time.
#[derive(Debug)]
struct Workspace {
    cache: WordCache,
    scratch: Scratch,
}

impl Workspace {
    fn new() -> Self {
        Self { cache: WordCache::new(), scratch: Scratch::default() }
    }

    fn encode_words(&mut self, vocabulary: &Vocabulary, text: &[u8], words: &[Word], ids: &mut Vec<u32>) {
        // While the last words' keys are made, the lines of the first come near.
        let mut keys = [0; BLOCK];
        for (place, &(start, end)) in keys.iter_mut().zip(words) {
            *place = key(text, start, end).unwrap_or(0);
            self.cache.prefetch(*place);
        }
        for (&key, &(start, end)) in keys.iter().zip(words) {
            match self.cache.get(key) {
                Some((known, len)) if key != 0 => {
                    // Three ids are copied whatever their number: cheaper than asking.
                    let before = ids.len();
                    ids.extend_from_slice(known);
                    ids.truncate(before + len);
                }
                _ => self.encode_new_word(vocabulary, key, &text[start..end], ids),
            }
        }
    }

    #[cold]
    fn encode_new_word(&mut self, vocabulary: &Vocabulary, key: u128, word: &[u8], ids: &mut Vec<u32>) {
        let whole = if key == 0 { vocabulary.id(word) } else { vocabulary.id_of_key(key) }.map(|id| [id]);
        let found = whole.as_ref().map_or_else(|| self.scratch.merge(vocabulary, word), |id| &id[..]);
        ids.extend_from_slice(found);
        if key != 0 {
            self.cache.put(key, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scanner::GPT4_PATTERN;

    fn encoder(merges: &[(u32, u32)]) -> Encoder {
        Encoder::new(Splitter::new(GPT4_PATTERN).unwrap(), Vocabulary::from_merges(merges).unwrap())
    }

    /// tiktoken's rule, word by word: the leftmost pair whose bytes together have the lowest rank, until none has one.
    fn encode_slowly(encoder: &Encoder, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut push = |start: usize, end: usize| {
            let word = &text.as_bytes()[start..end];
            let mut parts: Vec<&[u8]> = word.chunks(1).collect();
            if encoder.vocabulary.id(word).is_some() {
                parts = vec![word];
            }
            let place = |part: &[u8]| part.as_ptr() as usize - word.as_ptr() as usize;
            let both = |pair: &[&'_ [u8]]| &word[place(pair[0])..place(pair[1]) + pair[1].len()];
            while let Some((i, _)) = parts
                .windows(2)
                .enumerate()
                .filter_map(|(i, pair)| Some((i, encoder.vocabulary.id(both(pair))?)))
                .min_by_key(|&(i, rank)| (rank, i))
            {
                parts[i] = both(&parts[i..i + 2]);
                parts.remove(i + 1);
            }
            ids.extend(parts.iter().map(|part| encoder.vocabulary.id(part).unwrap()));
        };
        let visit = |words: &[Word]| words.iter().for_each(|&(start, end)| push(start, end));
        encoder.splitter.for_each_block(text, visit).unwrap();
        ids
    }

    proptest! {
        #[test]
        fn ids_are_those_of_the_slow_rule_and_decode_to_the_text(texts in prop::collection::vec("[abc ]{0,40}|[ab]{0,90}|\\PC{0,20}", 1..8), merges in 0_u32..80) {
            let mut corpus = crate::Corpus::new(Splitter::new(GPT4_PATTERN).unwrap());
            corpus.add(&texts).unwrap();
            let (splitter, words) = corpus.into_words();
            let merges = crate::train(&words, 256 + merges, &mut |_, _| Ok(())).unwrap();
            let encoder = Encoder::new(splitter, Vocabulary::from_merges(&merges).unwrap());
            for text in texts.iter().chain(&texts) {
                let ids = encoder.encode(text).unwrap();
                prop_assert_eq!(&ids, &encode_slowly(&encoder, text));
                prop_assert_eq!(&encoder.decode(ids.into_iter().map(i64::from)).unwrap(), text);
            }
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
            let ids = encoder.encode(text).unwrap().into_iter().map(i64::from);
            assert_eq!(encoder.decode(ids).unwrap(), text);
        }
        assert_eq!(encoder.decode([0xC3]).unwrap(), "\u{fffd}");
        assert!(matches!(encoder.decode_bytes([97, 300]), Err(Error::UnknownId { id: 300, size: 257 })));
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
