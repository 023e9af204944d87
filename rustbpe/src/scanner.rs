//! The split patterns of GPT-2, GPT-4, Qwen2 and ours by hand: many times as fast as the general engine, which is the
//! oracle of the tests.
//!
//! Lesson: lessons/06_tiktoken_object

use crate::split::{BLOCK, Word};
use crate::unicode::{Class, Classes, others_of_64};

/// The pattern of GPT-2: a word, a number or punctuation with one leading space.
pub const GPT2_PATTERN: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The pattern of GPT-4: contractions, words with one leading mark, up to three digits, punctuation, white space.
pub const GPT4_PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// The pattern of Qwen2: GPT-4's with one digit a word.
pub const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// nanochat's pattern: GPT-4's with two digits a word, since a small vocabulary has no thousand tokens for numbers.
pub const NANOCHAT_PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// The patterns that have a scanner, by the names that `tok_train --pattern` takes.
pub const PATTERNS: [(&str, &str); 4] =
    [("nanochat", NANOCHAT_PATTERN), ("gpt2", GPT2_PATTERN), ("gpt4", GPT4_PATTERN), ("qwen2", QWEN2_PATTERN)];

/// Which bytes are ASCII punctuation.
static MARKS: [bool; 256] = {
    let (mut marks, mut byte) = ([false; 256], 0);
    while byte < 128 {
        marks[byte] = (byte as u8).is_ascii_punctuation();
        byte += 1;
    }
    marks
};

/// Which bytes make one word with the letters behind them: in GPT-2's pattern the space, in GPT-4's most marks too.
static GPT2_LEADS: [bool; 256] = {
    let mut leads = [false; 256];
    leads[b' ' as usize] = true;
    leads
};
static GPT4_LEADS: [bool; 256] = {
    let mut leads = MARKS;
    leads[b' ' as usize] = true;
    leads[b'\'' as usize] = false; // a contraction is not all letters
    leads
};

/// A split pattern of one of the two families.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scanner {
    classes: Classes,
    family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Gpt2,
    Gpt4 {
        /// Digits per word at most: the K of `\p{N}{1,K}`.
        max_digits: usize,
        /// Whether white space at the end of the text is one word, line breaks and all (`\s++$`).
        whole_tail: bool,
    },
}

impl Scanner {
    /// The scanner for a pattern of the families, in the spellings that tiktoken, minbpe, Qwen and we use.
    pub(crate) fn for_pattern(pattern: &str) -> Option<Self> {
        let family = Family::of(pattern)?;
        Some(Self { classes: Classes::get(), family })
    }

    /// Call `visit` with all words, block by block.
    ///
    /// Nine words in ten are ASCII letters, after one space or mark or not, or one mark before a space. They end at the next
    /// byte that is no letter, which one look at 64 bytes finds for a dozen of them, whatever their lengths.
    #[inline]
    pub(crate) fn for_each_block(self, text: &str, mut visit: impl FnMut(&[Word])) {
        let bytes = text.as_bytes();
        let leads = if self.family == Family::Gpt2 { &GPT2_LEADS } else { &GPT4_LEADS };
        let (mut words, mut count) = ([(0, 0); BLOCK], 0);
        // Of the 64 bytes from `block`, `others` has those behind `start` that are no letter.
        let (mut start, mut block, mut others) = (0, 0, others_of_64(bytes) & !1);
        while start < bytes.len() {
            while others == 0 {
                block += 64;
                others = others_of_64(&bytes[block..]);
            }
            let next = block + others.trailing_zeros() as usize;
            let (first, behind) = (bytes[start], *bytes.get(next).unwrap_or(&0));
            // Computed and not branched on: what comes next cannot be foreseen.
            let letters = first.is_ascii_alphabetic() | leads[usize::from(first)] & (next > start + 1);
            let mark = MARKS[usize::from(first)] & (next == start + 1) & (behind == b' ');
            let end = if (letters & behind.is_ascii()) | mark {
                others &= others - 1;
                next
            } else {
                let end = self.word_end(text, start);
                if end >= block + 64 {
                    (block, others) = (end, others_of_64(&bytes[end..]) & !1);
                } else if end >= block {
                    others &= !1 << (end - block);
                }
                end
            };
            words[count] = (start, end);
            count += 1;
            if count == BLOCK {
                visit(&words);
                count = 0;
            }
            start = end;
        }
        visit(&words[..count]);
    }

    /// The end of the word that starts at `start`, which is a character border before the end of `text`.
    fn word_end(self, text: &str, start: usize) -> usize {
        match self.family {
            Family::Gpt2 => self.gpt2_word_end(text, start),
            Family::Gpt4 { max_digits, whole_tail } => self.gpt4_word_end(text, start, max_digits, whole_tail),
        }
    }

    fn gpt4_word_end(self, text: &str, start: usize, max_digits: usize, whole_tail: bool) -> usize {
        let classes = self.classes;
        let Some((class, second)) = classes.at(text, start) else { return start };
        match class {
            Class::Letter => classes.letters(text, second),
            Class::Number => {
                let mut end = second;
                for _ in 1..max_digits {
                    match classes.at(text, end) {
                        Some((Class::Number, after)) => end = after,
                        _ => break,
                    }
                }
                end
            }
            Class::Other => {
                if let Some(end) = contraction(text, start, u8::to_ascii_lowercase) {
                    return end;
                }
                match classes.at(text, second) {
                    Some((Class::Letter, third)) => classes.letters(text, third),
                    _ => self.punctuation(text, second),
                }
            }
            Class::Space => match classes.at(text, second) {
                Some((Class::Letter, third)) => classes.letters(text, third),
                Some((Class::Other, third)) if text.as_bytes()[start] == b' ' => self.punctuation(text, third),
                _ => self.white_space(text, start, whole_tail),
            },
            Class::Break => self.white_space(text, start, whole_tail),
        }
    }

    fn gpt2_word_end(self, text: &str, start: usize) -> usize {
        let classes = self.classes;
        if let Some(end) = contraction(text, start, |byte| *byte) {
            return end;
        }
        let body = start + usize::from(text.as_bytes()[start] == b' ');
        match classes.at(text, body) {
            Some((Class::Letter, after)) => classes.letters(text, after),
            Some((class @ (Class::Number | Class::Other), after)) => classes.run(text, after, class),
            _ => self.before_last_space(text, start).0,
        }
    }

    /// The rest of a run of marks and the line breaks right after it.
    fn punctuation(self, text: &str, start: usize) -> usize {
        self.classes.run(text, self.classes.run(text, start, Class::Other), Class::Break)
    }

    /// White space up to the last line break of its run; without one all but the last, which goes with what follows.
    fn white_space(self, text: &str, start: usize, whole_tail: bool) -> usize {
        let (end, after_break) = self.before_last_space(text, start);
        match after_break {
            _ if whole_tail && end == text.len() => end,
            Some(after) => after,
            None => end,
        }
    }

    /// What `\s+(?!\S)|\s+` takes, and the place after the last line break in the run.
    fn before_last_space(self, text: &str, start: usize) -> (usize, Option<usize>) {
        let (mut end, mut last, mut after_break) = (start, start, None);
        while let Some((class, after)) = self.classes.at(text, end) {
            match class {
                Class::Break => after_break = Some(after),
                Class::Space => {}
                _ => break,
            }
            (last, end) = (end, after);
        }
        (if end == text.len() || last == start { end } else { last }, after_break)
    }
}

impl Family {
    fn of(pattern: &str) -> Option<Self> {
        // As GPT-2's authors wrote it, and as tiktoken writes it now.
        let first = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let newest = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s";
        if pattern == GPT2_PATTERN || pattern == first || pattern == newest {
            return Some(Self::Gpt2);
        }
        (1..=9).find_map(|max_digits| {
            let ours = GPT4_PATTERN.replace("{1,3}", &format!("{{1,{max_digits}}}"));
            // As tiktoken first published it, and as its cl100k_base is written now.
            let digits = if max_digits == 1 { String::new() } else { format!("{{1,{max_digits}}}") };
            let first = QWEN2_PATTERN.replace(r"|\p{N}|", &format!(r"|\p{{N}}{digits}|"));
            let newest = format!(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}++|\p{{N}}{{1,{max_digits}}}+| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
            );
            let known = pattern == ours || pattern == first || pattern == newest;
            known.then_some(Self::Gpt4 { max_digits, whole_tail: pattern == newest })
        })
    }
}

/// The end of `'s`, `'t`, `'m`, `'d`, `'ll`, `'ve` or `'re`, in any case where `lower` lowers bytes.
fn contraction(text: &str, start: usize, lower: fn(&u8) -> u8) -> Option<usize> {
    let rest = &text.as_bytes()[start..];
    if rest[0] != b'\'' {
        return None;
    }
    let folded = lower(&b'S') == b's';
    let letter = |i: usize| rest.get(i).map(lower);
    match (letter(1)?, letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(start + 2),
        (b'l', Some(b'l')) | (b'v' | b'r', Some(b'e')) => Some(start + 3),
        // The long s (U+017F) is an s in another case.
        (0xC5, Some(0xBF)) if folded => Some(start + 3),
        _ => None,
    }
}
