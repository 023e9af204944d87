//! Short words as numbers: what the counting map and the word cache compare instead of bytes behind a pointer.

/// Bytes of the longest word that has a key. In English text 99 words in 100 are no longer.
pub(crate) const LONGEST: usize = 15;

/// As many low bytes as the index says.
static MASKS: [u128; LONGEST + 1] = {
    let (mut masks, mut len) = ([0; LONGEST + 1], 1);
    while len <= LONGEST {
        masks[len] = u128::MAX >> (128 - 8 * len);
        len += 1;
    }
    masks
};

/// The word `bytes[start..end]` as a number: its bytes, and in the highest byte its length. None for a longer word.
///
/// `bytes` goes on behind the word wherever it can, so that 16 bytes are loaded at once and the rest is masked.
#[inline]
pub(crate) fn key(bytes: &[u8], start: usize, end: usize) -> Option<u128> {
    let len = end - start;
    if len == 0 || len > LONGEST {
        return None;
    }
    let loaded = match bytes[start..].first_chunk::<16>() {
        Some(sixteen) => u128::from_le_bytes(*sixteen),
        None => {
            let mut padded = [0; 16];
            padded[..len].copy_from_slice(&bytes[start..end]);
            u128::from_le_bytes(padded)
        }
    };
    Some(loaded & MASKS[len] | (len as u128) << 120)
}

/// The word that a key stands for: its bytes in front, and how many.
#[inline]
pub(crate) fn word(key: u128) -> ([u8; 16], usize) {
    (key.to_le_bytes(), (key >> 120) as usize)
}

/// A hash whose upper bits are as good as its lower ones: both halves multiplied to 128 bits and folded.
///
/// Neither factor is ever 0, since no text holds the byte 0xFF and no key has a length of 0xFF.
#[inline]
pub(crate) fn hash(key: u128) -> u64 {
    let low = key as u64 ^ 0xFFA0_761D_6478_BD64;
    let high = (key >> 64) as u64 ^ 0xFF70_37ED_1A0B_428D;
    let product = u128::from(low) * u128::from(high);
    product as u64 ^ (product >> 64) as u64
}

/// A map from keys to numbers that are not 0: one table with open addressing, 24 bytes a place.
#[derive(Debug, Default)]
pub(crate) struct KeyMap {
    /// Key in two halves, number; the number 0 marks an empty place. The length is a power of two.
    places: Vec<(u64, u64, u64)>,
    used: usize,
}

impl KeyMap {
    /// The number of a key; 0 where it is not there.
    #[inline]
    pub(crate) fn get(&self, key: u128) -> u64 {
        if self.places.is_empty() { 0 } else { self.places[self.place(key)].2 }
    }

    /// Add to the number of a key.
    #[inline]
    pub(crate) fn add(&mut self, key: u128, number: u64) {
        if self.used * 4 >= self.places.len() * 3 {
            self.grow();
        }
        let place = self.place(key);
        let found = &mut self.places[place];
        if found.2 == 0 {
            (found.0, found.1) = (key as u64, (key >> 64) as u64);
            self.used += 1;
        }
        found.2 += number;
    }

    /// All keys with their numbers, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, u64)> {
        let used = self.places.iter().filter(|place| place.2 != 0);
        used.map(|&(low, high, number)| (u128::from(high) << 64 | u128::from(low), number))
    }

    /// Where a key stands, or would.
    #[inline]
    fn place(&self, key: u128) -> usize {
        let last = self.places.len() - 1;
        let mut place = hash(key) as usize & last;
        loop {
            let found = &self.places[place];
            if found.2 == 0 || (found.0, found.1) == (key as u64, (key >> 64) as u64) {
                return place;
            }
            place = (place + 1) & last;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let size = (self.places.len() * 2).max(1 << 12);
        let old = Self { places: std::mem::replace(&mut self.places, vec![(0, 0, 0); size]), used: 0 };
        self.used = 0;
        old.iter().for_each(|(key, number)| self.add(key, number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_word_wherever_that_stands() {
        let bytes = b"zero, one \0\0 and a word of sixteen.";
        for start in 0..bytes.len() {
            for end in start + 1..=bytes.len() {
                let alone = &bytes[start..end];
                assert_eq!(key(bytes, start, end), key(alone, 0, alone.len()));
                if let Some(key) = key(bytes, start, end) {
                    let (word, len) = word(key);
                    assert_eq!(&word[..len], alone);
                } else {
                    assert!(alone.len() > LONGEST);
                }
            }
        }
        assert!(key(b"", 0, 0).is_none());
    }

    #[test]
    fn words_that_differ_by_a_zero_byte_have_keys_of_their_own() {
        assert_ne!(key(b"a", 0, 1), key(b"a\0", 0, 2));
    }

    #[test]
    fn a_map_keeps_what_it_was_given() {
        let mut map = KeyMap::default();
        let of = |n: u32| key(&n.to_le_bytes(), 0, 4).unwrap();
        assert_eq!(map.get(of(1)), 0);
        (1..=20_000).for_each(|n| map.add(of(n % 9_000), u64::from(n)));
        assert!((1..9_000).all(|n| map.get(of(n)) == (n..=20_000).step_by(9_000).map(u64::from).sum::<u64>()));
        assert_eq!((map.get(of(9_000)), map.iter().count()), (0, 9_000));
    }

    #[test]
    fn hashes_spread_over_the_upper_bits() {
        let slots: std::collections::HashSet<u64> =
            (0..4096_u32).map(|n| hash(key(n.to_string().as_bytes(), 0, n.to_string().len()).unwrap()) >> 44).collect();
        assert!(slots.len() > 4000, "{}", slots.len());
    }
}
