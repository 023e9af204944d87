//! What is a letter, a number, white space: one table over all code points, from the crate that regexes use too.
//!
//! Lesson: lessons/06_tiktoken_object

use std::sync::OnceLock;

/// Version of the Unicode tables.
pub const UNICODE_VERSION: &str = "16.0.0";

/// What a split pattern of the families that we know can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s` without the next
    Space,
    /// `[\r\n]`
    Break,
}

/// Class of every code point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Classes {
    ascii: &'static [Class; 128],
    all: &'static [Class],
}

impl Classes {
    /// The table (about 1 MB), made once.
    pub(crate) fn get() -> Self {
        static ALL: OnceLock<Box<[Class]>> = OnceLock::new();
        let all: &[Class] = ALL.get_or_init(|| {
            let mut table = vec![Class::Other; char::MAX as usize + 1];
            for (pattern, class) in
                [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space), (r"[\r\n]", Class::Break)]
            {
                let parsed = regex_syntax::parse(pattern).expect("a constant pattern");
                let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(ranges)) = parsed.kind() else {
                    unreachable!("{pattern} is a class of characters");
                };
                for range in ranges.ranges() {
                    table[range.start() as usize..=range.end() as usize].fill(class);
                }
            }
            table.into_boxed_slice()
        });
        Self { ascii: all.first_chunk().expect("ASCII is a part of Unicode"), all }
    }

    /// Class of the character at `position`, and the position after it; None at the end of the text.
    #[inline]
    pub(crate) fn at(self, text: &str, position: usize) -> Option<(Class, usize)> {
        let byte = *text.as_bytes().get(position)?;
        if byte < 0x80 {
            Some((self.ascii[usize::from(byte)], position + 1))
        } else {
            self.beyond_ascii(text, position)
        }
    }

    #[cold]
    fn beyond_ascii(self, text: &str, position: usize) -> Option<(Class, usize)> {
        let character = text[position..].chars().next()?;
        Some((self.all[character as usize], position + character.len_utf8()))
    }

    /// The end of the run of `class` that starts (or not) at `end`.
    #[inline]
    pub(crate) fn run(self, text: &str, mut end: usize, class: Class) -> usize {
        while let Some((found, after)) = self.at(text, end) {
            if found != class {
                break;
            }
            end = after;
        }
        end
    }

    /// The end of the run of letters that starts (or not) at `start`, eight ASCII letters at a time.
    #[inline]
    pub(crate) fn letters(self, text: &str, start: usize) -> usize {
        let end = ascii_letters(text.as_bytes(), start);
        match text.as_bytes().get(end) {
            Some(byte) if *byte >= 0x80 => self.run(text, end, Class::Letter),
            _ => end,
        }
    }
}

/// The end of the run of ASCII letters that starts (or not) at `end`.
#[inline]
fn ascii_letters(bytes: &[u8], mut end: usize) -> usize {
    while let Some(eight) = bytes.get(end..).and_then(|rest| rest.first_chunk::<8>()) {
        let others = !letters_of_eight(*eight) & HIGH;
        if others != 0 {
            return end + others.trailing_zeros() as usize / 8;
        }
        end += 8;
    }
    while bytes.get(end).is_some_and(u8::is_ascii_alphabetic) {
        end += 1;
    }
    end
}

/// A bit for each of 64 bytes that is no ASCII letter, the first byte's the lowest; past the end there is no letter.
#[inline]
pub(crate) fn others_of_64(bytes: &[u8]) -> u64 {
    let mut padded = [0; 64];
    let block = bytes.first_chunk::<64>().unwrap_or_else(|| {
        padded[..bytes.len()].copy_from_slice(bytes);
        &padded
    });
    !block.chunks_exact(8).rev().fold(0, |letters, eight| {
        let eight = letters_of_eight(eight.try_into().expect("a chunk of eight"));
        // The product has the eight high bits side by side on top.
        letters << 8 | (eight >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
    })
}

const EVERY: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x80 * EVERY;

/// The high bit of every byte that is an ASCII letter; no other bit.
#[inline]
fn letters_of_eight(eight: [u8; 8]) -> u64 {
    let eight = u64::from_le_bytes(eight);
    // In lower case and without the high bit, so that no sum carries into the next byte; the high bit of each sum then
    // says "at least a" and "beyond z".
    let lower = (eight & !HIGH) | (0x20 * EVERY);
    let from_a = lower + (0x80 - u64::from(b'a')) * EVERY;
    let beyond_z = lower + (0x7F - u64::from(b'z')) * EVERY;
    from_a & !beyond_z & !eight & HIGH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_of_the_version_that_we_state() {
        // Todhri came with Unicode 16, Sidetic with 17.
        let all = Classes::get().all;
        assert!(all[0x105C0] == Class::Letter && all[0x10940] == Class::Other);
    }

    #[test]
    fn white_space_is_unicodes_and_not_pythons() {
        let all = Classes::get().all;
        assert_eq!(all.iter().filter(|class| matches!(class, Class::Space | Class::Break)).count(), 25);
        assert!((0x1C..=0x1F).all(|code: usize| all[code] == Class::Other));
    }

    #[test]
    fn eight_letters_at_a_time_end_where_one_at_a_time_does() {
        let mut seed = 1_u32;
        for byte in 0..=255_u8 {
            for place in 0..20 {
                let mut bytes: Vec<u8> = (0..20)
                    .map(|_| {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        b"azAZmq"[(seed >> 16) as usize % 6]
                    })
                    .collect();
                bytes[place] = byte;
                let expected = bytes.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
                assert_eq!(ascii_letters(&bytes, 0), expected, "{byte} at {place}");
                assert_eq!(others_of_64(&bytes).trailing_zeros() as usize, expected, "{byte} at {place}");
            }
        }
    }
}
