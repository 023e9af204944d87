//! Which two ids merge into which: the map that merging asks all the time, one look in memory for each question.

use crate::trainer::Pair;
use crate::vocabulary::NONE;

/// An open-addressing table with twice as many places as pairs.
#[derive(Debug)]
pub(crate) struct PairTable {
    /// Both ids, and what they merge into; `NONE` marks an empty place. The length is a power of two.
    places: Box<[(u32, u32, u32)]>,
    /// A bit for every hash that occurs: most questions have the answer no, and get it from these 64 KB.
    occurs: Box<[u64]>,
}

/// Upper bits of the hash that choose a bit of `occurs`.
const FILTER_BITS: u32 = 19;

impl PairTable {
    /// Of pairs that are all different.
    pub(crate) fn new(merges: &[(Pair, u32)]) -> Self {
        let places = vec![(0, 0, NONE); (2 * merges.len()).next_power_of_two()].into_boxed_slice();
        let mut table = Self { places, occurs: vec![0; 1 << (FILTER_BITS - 6)].into_boxed_slice() };
        for &((left, right), whole) in merges {
            let (word, bit) = filter_place(hash(left, right));
            table.occurs[word] |= bit;
            let mut place = table.first_place(left, right);
            while table.places[place].2 != NONE {
                place = table.after(place);
            }
            table.places[place] = (left, right, whole);
        }
        table
    }

    /// What two neighbours merge into, `NONE` when they do not.
    #[inline]
    pub(crate) fn get(&self, left: u32, right: u32) -> u32 {
        let (word, bit) = filter_place(hash(left, right));
        if self.occurs[word] & bit == 0 {
            return NONE;
        }
        let mut place = self.first_place(left, right);
        loop {
            let found = self.places[place];
            if found.2 == NONE || (found.0, found.1) == (left, right) {
                return found.2;
            }
            place = self.after(place);
        }
    }

    #[inline]
    fn first_place(&self, left: u32, right: u32) -> usize {
        (hash(left, right) >> 24) as usize & (self.places.len() - 1)
    }

    #[inline]
    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }
}

/// Knuth's multiplicative hashing; the upper bits of the product are the good ones.
#[inline]
fn hash(left: u32, right: u32) -> u64 {
    (u64::from(left) << 32 | u64::from(right)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[inline]
fn filter_place(hash: u64) -> (usize, u64) {
    let bit = hash >> (64 - FILTER_BITS);
    ((bit >> 6) as usize, 1 << (bit & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_and_others_are_not() {
        let merges: Vec<(Pair, u32)> =
            (0..5000).map(|n: u32| ((n % 71, n.wrapping_mul(2_654_435_761) >> 7), n)).collect();
        let table = PairTable::new(&merges);
        assert!(merges.iter().all(|&((left, right), whole)| table.get(left, right) == whole));
        assert!((0..5000).all(|n| table.get(100 + n, n) == NONE));
        assert_eq!(PairTable::new(&[]).get(1, 2), NONE);
    }
}
