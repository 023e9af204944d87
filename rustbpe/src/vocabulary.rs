//! Ids <-> bytes, and which two ids merge into which.
//!
//! Lesson: lessons/06_tiktoken_object

use std::path::Path;

use rustc_hash::FxHashMap;

use crate::Error;
use crate::key::{KeyMap, key};
use crate::merging::Scratch;
use crate::pairs::PairTable;
use crate::trainer::Pair;

/// No such id.
pub(crate) const NONE: u32 = u32::MAX;

/// Stands for a length that is not below 16.
const LONG: u8 = u8::MAX;

/// The tokens: id `i` stands for the bytes of rank `i`, and a lower rank merges first.
#[derive(Debug)]
pub struct Vocabulary {
    /// Bytes of all tokens, one after another; token `i` is `bytes[ends[i - 1]..ends[i]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Tokens of up to 15 bytes once more, padded, their length in the last place; a longer token's is `LONG`.
    padded: Vec<[u8; 16]>,
    /// Id + 1 of every token that has a key; the others' ids by their bytes.
    short_ids: KeyMap,
    long_ids: FxHashMap<Box<[u8]>, u32>,
    byte_ids: [u32; 256],
    /// Two tokens and the one that they merge into, for every two that can come to stand side by side.
    merges: PairTable,
    /// The same for two bytes, where every word's merging starts: `first << 8 | second`.
    byte_merges: Box<[u32]>,
}

impl Vocabulary {
    /// The 256 bytes (id = byte value), then one token per merge.
    pub fn from_merges(merges: &[Pair]) -> Result<Self, Error> {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        for &(left, right) in merges {
            let (Some(left), Some(right)) = (tokens.get(left as usize), tokens.get(right as usize)) else {
                return Err(Error::BadRanks(format!("merge ({left}, {right}) comes before its parts")));
            };
            let token = [left.as_slice(), right].concat();
            tokens.push(token);
        }
        let mut vocabulary = Self::from_tokens(tokens)?;
        let known: Vec<_> = merges.iter().copied().zip(256..).collect();
        vocabulary.set_merges(&known);
        if vocabulary.own_merges() != known {
            vocabulary.find_merges();
        }
        Ok(vocabulary)
    }

    /// The tokens with their ranks in any order; the ranks must be 0, 1, 2, ... and every byte must have one.
    pub fn from_ranks(ranks: Vec<(Vec<u8>, u32)>) -> Result<Self, Error> {
        let mut tokens = vec![Vec::new(); ranks.len()];
        for (token, rank) in ranks {
            let size = tokens.len();
            let Some(place) = tokens.get_mut(rank as usize) else {
                return Err(Error::BadRanks(format!(
                    "rank {rank} is too high for {size} tokens: some rank is missing"
                )));
            };
            if token.is_empty() {
                return Err(Error::BadRanks(format!("the token of rank {rank} is empty")));
            }
            if !place.is_empty() {
                return Err(Error::BadRanks(format!("rank {rank} is there twice")));
            }
            *place = token;
        }
        let mut vocabulary = Self::from_tokens(tokens)?;
        vocabulary.find_merges();
        Ok(vocabulary)
    }

    /// Without merges yet.
    fn from_tokens(tokens: Vec<Vec<u8>>) -> Result<Self, Error> {
        let mut vocabulary = Self {
            bytes: tokens.concat(),
            ends: Vec::with_capacity(tokens.len()),
            padded: tokens.iter().map(|token| padded(token)).collect(),
            short_ids: KeyMap::default(),
            long_ids: FxHashMap::default(),
            byte_ids: [NONE; 256],
            merges: PairTable::new(&[]),
            byte_merges: Box::default(),
        };
        let mut end = 0;
        for (id, token) in tokens.into_iter().enumerate() {
            let id = u32::try_from(id).map_err(|_| Error::BadRanks("more than 2^32 tokens".into()))?;
            end += token.len();
            vocabulary.ends.push(end);
            if let [byte] = token[..] {
                vocabulary.byte_ids[byte as usize] = id;
            }
            if let Some(earlier) = vocabulary.id(&token) {
                return Err(Error::BadRanks(format!("ids {earlier} and {id} stand for the same bytes")));
            }
            match key(&token, 0, token.len()) {
                Some(key) => vocabulary.short_ids.add(key, u64::from(id) + 1),
                None => {
                    vocabulary.long_ids.insert(token.into(), id);
                }
            }
        }
        if let Some(byte) = vocabulary.byte_ids.iter().position(|&id| id == NONE) {
            return Err(Error::BadRanks(format!("byte {byte} has no token of its own")));
        }
        Ok(vocabulary)
    }

    /// Of all ways to cut a token into two tokens keep those that can come up.
    ///
    /// Merging comes to the bytes of a token by its own two parts or not at all: as long as no merge crosses their
    /// borders, it goes the way that it goes with those bytes alone. So when every token has such parts, no other cut
    /// ever comes up, and a third of the table is nearer than the whole.
    fn find_merges(&mut self) {
        self.set_merges(&self.all_merges());
        let own = self.own_merges();
        if own.len() == self.tokens().filter(|token| token.len() > 1).count() {
            self.set_merges(&own);
        }
    }

    fn set_merges(&mut self, merges: &[(Pair, u32)]) {
        self.merges = PairTable::new(merges);
        let pair = |both: usize| self.merged(self.byte_ids[both >> 8], self.byte_ids[both & 0xFF]);
        self.byte_merges = (0..1 << 16).map(pair).collect();
    }

    /// tiktoken merges two neighbours whenever their bytes together are a token, however that token came about.
    fn all_merges(&self) -> Vec<(Pair, u32)> {
        let mut merges = Vec::new();
        for (token, whole) in self.tokens().zip(0..) {
            for cut in 1..token.len() {
                if let (Some(left), Some(right)) = (self.id(&token[..cut]), self.id(&token[cut..])) {
                    merges.push(((left, right), whole));
                }
            }
        }
        merges
    }

    /// The two tokens that each longer token is merged from, and itself, by rank; one that merging never reaches has none.
    ///
    /// A token's parts are what lower ranks alone make of its bytes.
    pub(crate) fn own_merges(&self) -> Vec<(Pair, u32)> {
        let mut scratch = Scratch::default();
        let longer = self.tokens().zip(0..).filter(|(token, _)| token.len() > 1);
        longer
            .filter_map(|(token, id)| match *scratch.merge_by_scan(self, token, id) {
                [left, right] => Some(((left, right), id)),
                _ => None,
            })
            .collect()
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Never: a vocabulary holds the 256 bytes.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of a token. Errors on an unknown id.
    pub fn token(&self, id: i64) -> Result<&[u8], Error> {
        let unknown = Error::UnknownId { id, size: self.len() };
        let Some(index) = usize::try_from(id).ok().filter(|&index| index < self.len()) else { return Err(unknown) };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Ok(&self.bytes[start..self.ends[index]])
    }

    /// Append the bytes of a token. Errors on an unknown id.
    #[inline]
    pub(crate) fn append_token(&self, id: i64, bytes: &mut Vec<u8>) -> Result<(), Error> {
        match usize::try_from(id).ok().and_then(|id| self.padded.get(id)) {
            Some(token) if token[15] != LONG => {
                // Sixteen bytes are copied whatever the length: cheaper than a copy of unknown length.
                let end = bytes.len() + usize::from(token[15]);
                bytes.extend_from_slice(token);
                bytes.truncate(end);
            }
            _ => bytes.extend_from_slice(self.token(id)?),
        }
        Ok(())
    }

    /// All tokens in the order of their ids.
    pub fn tokens(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }

    /// The id of exactly these bytes.
    #[inline]
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        match key(bytes, 0, bytes.len()) {
            Some(key) => self.id_of_key(key),
            None => self.long_ids.get(bytes).copied(),
        }
    }

    /// The id of exactly the bytes that have this key.
    #[inline]
    pub(crate) fn id_of_key(&self, key: u128) -> Option<u32> {
        self.short_ids.get(key).checked_sub(1).map(|id| id as u32)
    }

    #[inline]
    pub(crate) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[byte as usize]
    }

    /// What two neighbours merge into, `NONE` when they do not.
    #[inline]
    pub(crate) fn merged(&self, left: u32, right: u32) -> u32 {
        self.merges.get(left, right)
    }

    /// What two bytes merge into.
    #[inline]
    pub(crate) fn merged_bytes(&self, left: u8, right: u8) -> u32 {
        self.byte_merges[usize::from(left) << 8 | usize::from(right)]
    }

    /// Write the ranks as tiktoken's text: per line the token in base64, a space, the rank. Whole or not at all.
    pub fn save_tiktoken(&self, path: &Path) -> Result<(), Error> {
        let mut text = String::new();
        for (rank, token) in self.tokens().enumerate() {
            push_base64(&mut text, token);
            text.push_str(&format!(" {rank}\n"));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let failed = |source| Error::Io { path: path.to_owned(), source };
        std::fs::write(&part, text).map_err(failed)?;
        std::fs::rename(&part, path).map_err(failed)
    }
}

fn padded(token: &[u8]) -> [u8; 16] {
    let mut padded = [0; 16];
    if token.len() < 16 {
        padded[..token.len()].copy_from_slice(token);
        padded[15] = token.len() as u8;
    } else {
        padded[15] = LONG;
    }
    padded
}

fn push_base64(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let number = (0..3).fold(0, |number, i| number << 8 | usize::from(*group.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let digit = DIGITS[number >> (18 - 6 * i) & 63];
            text.push(if i <= group.len() { digit as char } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_in_the_standard() {
        // RFC 4648, section 10.
        for (bytes, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")]
        {
            let mut text = String::new();
            push_base64(&mut text, bytes.as_bytes());
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn ranks_that_are_no_vocabulary_are_refused() {
        let bytes = || (0..=255_u8).map(|byte| (vec![byte], u32::from(byte))).collect::<Vec<_>>();
        assert_eq!(Vocabulary::from_ranks(bytes()).unwrap().len(), 256);
        let refused = |extra: &[(&str, u32)]| {
            let ranks = bytes().into_iter().chain(extra.iter().map(|&(t, r)| (t.into(), r))).collect();
            Vocabulary::from_ranks(ranks).unwrap_err().to_string()
        };
        assert!(refused(&[("ab", 255)]).contains("rank 255 is there twice"));
        assert!(refused(&[("ab", 257)]).contains("rank 257 is too high"));
        assert!(refused(&[("", 256)]).contains("empty"));
        assert!(refused(&[("ab", 256), ("ab", 257)]).contains("ids 256 and 257 stand for the same bytes"));
        let short = bytes().into_iter().take(255).collect();
        assert!(Vocabulary::from_ranks(short).unwrap_err().to_string().contains("byte 255"));
        assert!(Vocabulary::from_merges(&[(97, 300)]).is_err());
    }

    #[test]
    fn tokens_are_found_by_id() {
        let vocabulary = Vocabulary::from_merges(&[(97, 98), (256, 99)]).unwrap();
        assert_eq!(vocabulary.token(0).unwrap(), [0]);
        assert_eq!(vocabulary.token(257).unwrap(), b"abc");
        assert_eq!(vocabulary.tokens().last().unwrap(), b"abc");
        // "a" + "bc" would be "abc" too, but "bc" is no token.
        assert_eq!((vocabulary.merged(256, 99), vocabulary.merged_bytes(97, 98)), (257, 256));
        assert_eq!((vocabulary.merged(97, 99), vocabulary.merged_bytes(98, 99)), (NONE, NONE));
        for id in [-1, 258] {
            let message = vocabulary.token(id).unwrap_err().to_string();
            assert_eq!(message, format!("id {id} is not in the vocabulary, whose ids go from 0 to 257"));
        }
    }
}
