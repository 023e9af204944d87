//! Lesson 4: counting words on one core, on threads by hand, and by rayon.

use std::collections::HashMap;
use std::thread;

use rayon::prelude::*;

/// How often each word occurs. The words are parts of the texts, which must live as long as the map.
pub type Counts<'t> = HashMap<&'t str, u64>;

/// The words of a text: each ends with its space, so that joined they are the text.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

/// The map: the words of some texts, counted by one thread.
pub fn count<'t>(texts: &[&'t str]) -> Counts<'t> {
    texts.iter().fold(HashMap::new(), with_words)
}

fn with_words<'t>(mut counts: Counts<'t>, text: &&'t str) -> Counts<'t> {
    for word in words(text) {
        *counts.entry(word).or_insert(0) += 1;
    }
    counts
}

/// The reduce: two threads' counts as one. The smaller map is poured into the larger.
pub fn add<'t>(one: Counts<'t>, other: Counts<'t>) -> Counts<'t> {
    let (mut large, small) = if one.len() < other.len() { (other, one) } else { (one, other) };
    for (word, count) in small {
        *large.entry(word).or_insert(0) += count;
    }
    large
}

/// The same counts by so many threads, each with its part of the texts.
pub fn count_by_threads<'t>(texts: &[&'t str], threads: usize) -> Counts<'t> {
    let part = texts.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = texts.chunks(part).map(|part| scope.spawn(|| count(part))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).fold(HashMap::new(), add)
    })
}

/// The same counts by rayon: its threads take work from each other, so that none waits for the slowest.
pub fn count_by_rayon<'t>(texts: &[&'t str]) -> Counts<'t> {
    // fold begins a map for each run of texts that one thread takes; par_chunks(16).map(count) made thousands of them
    texts.par_iter().fold(HashMap::new, with_words).reduce(HashMap::new, add)
}
