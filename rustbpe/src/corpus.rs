//! Counting words: texts come in buffers, each is split by all cores, and each core keeps one map for the whole run.
//!
//! Lesson: lessons/04_parallel

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use rustc_hash::FxHashMap;

use crate::Error;
use crate::key::{KeyMap, key, word};
use crate::split::{Splitter, Word};

/// Bytes that one task splits at a time: large enough to find words again, small enough to share among cores.
const STRETCH_BYTES: usize = 1 << 18;

/// The different words of a corpus and how often each occurs.
#[derive(Debug)]
pub struct Corpus {
    splitter: Splitter,
    /// One per thread; the same word may be in several.
    counts: Vec<Counts>,
    threads: Option<ThreadPool>,
    stop: Arc<AtomicBool>,
}

/// Words with their counts, in no particular order: all bytes in one place.
#[derive(Debug, Default)]
pub struct Words {
    bytes: Vec<u8>,
    /// Where each word ends, and its count.
    ends: Vec<(usize, u64)>,
}

impl Corpus {
    /// An empty corpus whose texts are cut by `splitter`.
    pub fn new(splitter: Splitter) -> Self {
        Self::with_threads(splitter, None)
    }

    /// The same with threads of its own, so many of them; None shares the process's, one per core.
    pub fn with_threads(splitter: Splitter, threads: Option<usize>) -> Self {
        let threads = threads.and_then(|n| ThreadPoolBuilder::new().num_threads(n).build().ok());
        let number = threads.as_ref().map_or_else(rayon::current_num_threads, ThreadPool::current_num_threads);
        let counts = (0..number).map(|_| Counts::default()).collect();
        Self { splitter, counts, threads, stop: Arc::default() }
    }

    /// Where another thread can ask `add` to stop soon, with an error.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Add the words of `texts`, split by all cores.
    pub fn add<T: AsRef<str> + Sync>(&mut self, texts: &[T]) -> Result<(), Error> {
        let (splitter, stop) = (&self.splitter, &self.stop);
        let stretches: Vec<&str> =
            texts.iter().flat_map(|text| splitter.stretches(text.as_ref(), STRETCH_BYTES)).collect();
        let groups = groups(&stretches);
        let next = AtomicUsize::new(0);
        let count = |counts: &mut Counts| {
            while let Some(&group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                for text in group {
                    if stop.load(Ordering::Relaxed) {
                        return Err(Error::Stopped);
                    }
                    splitter.for_each_block(text, |words| counts.add_words(text, words))?;
                }
            }
            Ok(())
        };
        let counts = &mut self.counts;
        match &self.threads {
            Some(threads) => threads.install(|| counts.par_iter_mut().try_for_each(count)),
            None => counts.par_iter_mut().try_for_each(count),
        }
    }

    /// The splitter, and the words with their counts in no particular order.
    pub fn into_words(self) -> (Splitter, Words) {
        let mut parts = self.counts.into_iter();
        let mut all = parts.next().unwrap_or_default();
        parts.for_each(|part| all.add_all(part));
        (self.splitter, all.into_words())
    }
}

/// Whole stretches in groups of about `STRETCH_BYTES`.
fn groups<'g, 't>(stretches: &'g [&'t str]) -> Vec<&'g [&'t str]> {
    let mut groups = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (index, stretch) in stretches.iter().enumerate() {
        bytes += stretch.len();
        if bytes >= STRETCH_BYTES || index + 1 == stretches.len() {
            groups.push(&stretches[first..=index]);
            (first, bytes) = (index + 1, 0);
        }
    }
    groups
}

/// One thread's counts: short words by key, long ones as they are.
#[derive(Debug, Default)]
struct Counts {
    short: KeyMap,
    long: FxHashMap<Box<[u8]>, u64>,
}

impl Counts {
    fn add_words(&mut self, text: &str, words: &[Word]) {
        for &(start, end) in words {
            match key(text.as_bytes(), start, end) {
                Some(key) => self.short.add(key, 1),
                None => self.add_long(&text.as_bytes()[start..end], 1),
            }
        }
    }

    fn add_long(&mut self, word: &[u8], count: u64) {
        match self.long.get_mut(word) {
            Some(total) => *total += count,
            None => {
                self.long.insert(word.into(), count);
            }
        }
    }

    fn add_all(&mut self, other: Self) {
        other.short.iter().for_each(|(key, count)| self.short.add(key, count));
        other.long.into_iter().for_each(|(word, count)| self.add_long(&word, count));
    }

    fn into_words(self) -> Words {
        let mut words = Words::default();
        for (key, count) in self.short.iter() {
            let (bytes, len) = word(key);
            words.push(&bytes[..len], count);
        }
        self.long.iter().for_each(|(word, &count)| words.push(word, count));
        words
    }
}

impl Words {
    /// Add a word, which must not be there yet, with its count.
    pub fn push(&mut self, word: &[u8], count: u64) {
        self.bytes.extend_from_slice(word);
        self.ends.push((self.bytes.len(), count));
    }

    /// Number of different words.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Each word with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|&(end, _)| end));
        starts.zip(&self.ends).map(|(start, &(end, count))| (&self.bytes[start..end], count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scanner::GPT4_PATTERN;

    #[test]
    fn words_are_counted_over_buffers_and_texts_cut_for_speed() {
        let long = "the cat\nsat on the mat of antidisestablishmentarianism\n".repeat(100_000);
        let mut corpus = Corpus::new(Splitter::new(GPT4_PATTERN).unwrap());
        corpus.add(&[long.as_str(), "the", ""]).unwrap();
        corpus.add(&["the the"]).unwrap();
        let (_, words) = corpus.into_words();
        let counts: FxHashMap<_, _> = words.iter().collect();
        assert_eq!((words.len(), counts.len()), (9, 9));
        assert_eq!(counts[&b"the"[..]], 100_002);
        assert_eq!(counts[&b" the"[..]], 100_001);
        assert_eq!(counts[&b"\n"[..]], 200_000);
        assert_eq!(counts[&b"sat"[..]], 100_000);
        assert_eq!(counts[&b" antidisestablishmentarianism"[..]], 100_000);
    }

    #[test]
    fn many_words_are_counted_as_a_map_of_the_library_counts_them() {
        let text: String = (0..200_000_u32).map(|n| format!(" w{}", n.wrapping_mul(2_654_435_761) % 50_000)).collect();
        let mut expected: FxHashMap<&[u8], u64> = FxHashMap::default();
        let splitter = Splitter::new(GPT4_PATTERN).unwrap();
        let count =
            |words: &[Word]| words.iter().for_each(|&(s, e)| *expected.entry(&text.as_bytes()[s..e]).or_default() += 1);
        splitter.for_each_block(&text, count).unwrap();
        let mut corpus = Corpus::new(Splitter::new(GPT4_PATTERN).unwrap());
        corpus.add(&[&text]).unwrap();
        let (_, words) = corpus.into_words();
        assert_eq!(words.len(), expected.len());
        assert!(words.iter().all(|(word, count)| expected[word] == count));
    }

    #[test]
    fn counting_stops_when_asked() {
        let mut corpus = Corpus::new(Splitter::new(GPT4_PATTERN).unwrap());
        corpus.stop_flag().store(true, Ordering::Relaxed);
        assert!(matches!(corpus.add(&["a text"]), Err(Error::Stopped)));
    }
}
