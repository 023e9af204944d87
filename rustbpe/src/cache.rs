//! What recent short words were encoded to: text repeats itself, and one look here replaces merging.

use crate::key::hash;

/// Ids of a word that is kept; a word of more is merged anew each time.
pub(crate) const MOST_IDS: usize = 3;

/// Lines of two words: 4 MB. Half of it loses more words than a smaller table gains by being nearer; twice as much
/// gains nothing.
const LINES: usize = 1 << 16;

/// A word by its key, and its ids; the key 0, which no word has, marks an empty place.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    key: u128,
    ids: [u32; MOST_IDS],
    len: u32,
}

/// Two words that share a line of the processor's cache, the newer first.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Line([Known; 2]);

/// A bounded cache: a new word takes the place of the older of the two in its line.
#[derive(Debug)]
pub(crate) struct WordCache {
    lines: Box<[Line]>,
}

impl WordCache {
    pub(crate) fn new() -> Self {
        Self { lines: vec![Line::default(); LINES].into_boxed_slice() }
    }

    /// The ids of a word, the first `len` of three; None when it is not here.
    #[inline]
    pub(crate) fn get(&self, key: u128) -> Option<(&[u32; MOST_IDS], usize)> {
        // Which of the two it is cannot be foreseen, so it is computed and not branched on.
        let line = &self.lines[place(key)].0;
        let known = &line[usize::from(line[1].key == key)];
        (known.key == key).then_some((&known.ids, known.len as usize))
    }

    /// Begin to bring the line of a word near. The crate's one unsafe call: encoding is 15 % slower without it, and a load
    /// in its place, which is safe, makes it slower still.
    #[inline]
    #[allow(unsafe_code)]
    pub(crate) fn prefetch(&self, key: u128) {
        // SAFETY: SSE is a part of x86-64, and a prefetch changes nothing that the program sees.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>((&raw const self.lines[place(key)]).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = key;
    }

    /// Keep the ids of a word, when they are not too many.
    pub(crate) fn put(&mut self, key: u128, ids: &[u32]) {
        if ids.len() <= MOST_IDS {
            let mut known = Known { key, len: ids.len() as u32, ..Known::default() };
            known.ids[..ids.len()].copy_from_slice(ids);
            let line = &mut self.lines[place(key)].0;
            line[1] = line[0];
            line[0] = known;
        }
    }
}

#[inline]
fn place(key: u128) -> usize {
    (hash(key) >> (64 - LINES.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::key;

    #[test]
    fn a_word_is_kept_until_two_newer_ones_share_its_line() {
        let mut cache = WordCache::new();
        let of = |n: u32| key(&n.to_le_bytes(), 0, 4).unwrap();
        let shared: Vec<u128> = (0..).map(of).filter(|&key| place(key) == place(of(0))).take(3).collect();
        for (i, &key) in (0..).zip(&shared) {
            assert!(cache.get(key).is_none());
            cache.put(key, &[i, 7]);
            assert_eq!(cache.get(key), Some((&[i, 7, 0], 2)));
        }
        assert!(cache.get(shared[0]).is_none());
        assert_eq!(cache.get(shared[1]), Some((&[1, 7, 0], 2)));
    }

    #[test]
    fn a_word_of_many_ids_is_not_kept() {
        let mut cache = WordCache::new();
        let word = key(b"words", 0, 5).unwrap();
        cache.put(word, &[1, 2, 3, 4]);
        assert!(cache.get(word).is_none());
    }
}
