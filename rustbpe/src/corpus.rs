//! Counting words: texts come in buffers, each is split by all cores, equal words are kept once.

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::Error;
use crate::split::Splitter;

/// Bytes that one task splits at a time: large enough to find words again, small enough to share among cores.
const STRETCH_BYTES: usize = 1 << 20;

/// The different words of a corpus and how often each occurs.
#[derive(Debug)]
pub struct Corpus {
    splitter: Splitter,
    counts: FxHashMap<Box<str>, u64>,
}

impl Corpus {
    /// An empty corpus whose texts are cut by `splitter`.
    pub fn new(splitter: Splitter) -> Self {
        Self { splitter, counts: FxHashMap::default() }
    }

    /// Add the words of `texts`, split by all cores.
    pub fn add<T: AsRef<str> + Sync>(&mut self, texts: &[T]) -> Result<(), Error> {
        let counted = stretch_groups(&self.splitter, texts)
            .into_par_iter()
            .map(|group| count(&self.splitter, &group))
            .collect::<Result<Vec<_>, Error>>()?;
        for counts in counted {
            for (word, count) in counts {
                match self.counts.get_mut(word) {
                    Some(total) => *total += count,
                    None => {
                        self.counts.insert(word.into(), count);
                    }
                }
            }
        }
        Ok(())
    }

    /// The splitter, and the words with their counts in no particular order.
    pub fn into_words(self) -> (Splitter, Vec<(Box<str>, u64)>) {
        (self.splitter, self.counts.into_iter().collect())
    }
}

/// The texts in groups of about `STRETCH_BYTES`, long texts cut where no word is.
fn stretch_groups<'t, T: AsRef<str>>(splitter: &Splitter, texts: &'t [T]) -> Vec<Vec<&'t str>> {
    let mut groups = vec![Vec::new()];
    let mut bytes = 0;
    for stretch in texts.iter().flat_map(|text| splitter.stretches(text.as_ref(), STRETCH_BYTES)) {
        if bytes >= STRETCH_BYTES {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += stretch.len();
        groups.last_mut().expect("one group at least").push(stretch);
    }
    groups
}

fn count<'t>(splitter: &Splitter, texts: &[&'t str]) -> Result<FxHashMap<&'t str, u64>, Error> {
    let mut counts = FxHashMap::default();
    for text in texts {
        splitter.for_each_word(text, |word| *counts.entry(word).or_insert(0) += 1)?;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::GPT4_PATTERN;

    #[test]
    fn words_are_counted_over_buffers_and_texts_cut_for_speed() {
        let long = "the cat\nsat on the mat\n".repeat(100_000);
        let mut corpus = Corpus::new(Splitter::new(GPT4_PATTERN).unwrap());
        corpus.add(&[long.as_str(), "the", ""]).unwrap();
        corpus.add(&["the the"]).unwrap();
        let (_, words) = corpus.into_words();
        let counts: FxHashMap<_, _> = words.iter().map(|(word, count)| (&**word, *count)).collect();
        assert_eq!(counts["the"], 100_002);
        assert_eq!(counts[" the"], 100_001);
        assert_eq!(counts["\n"], 200_000);
        assert_eq!(counts["sat"], 100_000);
    }
}
