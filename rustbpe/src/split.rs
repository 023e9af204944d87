//! Text -> words: the pieces within which merges happen.
//!
//! Patterns of the GPT-4 family go through a hand-written scanner; every other pattern through `fancy-regex`, which is
//! also the scanner's oracle in the tests. Not here: counting words, merging bytes.

use std::sync::OnceLock;

use crate::Error;

/// The pattern of GPT-4: contractions, words with one leading mark, up to three digits, punctuation, white space.
pub const GPT4_PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// Version of the Unicode tables that decide what is a letter, a number or white space.
pub const UNICODE_VERSION: &str = "16.0.0";

/// Cuts texts into words by one pattern.
#[derive(Debug)]
pub struct Splitter {
    pattern: String,
    engine: Engine,
}

#[derive(Debug)]
enum Engine {
    Scanner(Scanner),
    Regex(Box<fancy_regex::Regex>),
}

impl Splitter {
    /// Compile `pattern`. Errors with the place when it is no valid regular expression.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let engine = match Scanner::for_pattern(pattern) {
            Some(scanner) => Engine::Scanner(scanner),
            None => Engine::Regex(Box::new(compile(pattern)?)),
        };
        Ok(Self { pattern: pattern.to_owned(), engine })
    }

    /// The pattern as given.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Call `visit` with every word, in order. What the pattern does not match is dropped, as tiktoken does.
    pub(crate) fn for_each_word<'t>(&self, text: &'t str, mut visit: impl FnMut(&'t str)) -> Result<(), Error> {
        match &self.engine {
            Engine::Scanner(scanner) => {
                let mut start = 0;
                while start < text.len() {
                    let end = scanner.word_end(text, start);
                    visit(&text[start..end]);
                    start = end;
                }
            }
            Engine::Regex(regex) => {
                for found in regex.find_iter(text) {
                    let word = found.map_err(|e| Error::PatternGaveUp(e.to_string()))?.as_str();
                    if !word.is_empty() {
                        visit(word);
                    }
                }
            }
        }
        Ok(())
    }

    /// Cut `text` into stretches of about `size` bytes that split into the same words as the whole.
    ///
    /// In the scanner's family a word never goes on after a line break that something visible follows.
    /// Of other patterns nothing is known, so the text stays whole.
    pub(crate) fn stretches<'t>(&self, text: &'t str, size: usize) -> Vec<&'t str> {
        let mut rest = text;
        let mut stretches = Vec::new();
        if let Engine::Scanner(_) = self.engine {
            while rest.len() > size {
                let bytes = rest.as_bytes();
                let cut = (size..bytes.len()).find(|&i| bytes[i - 1] == b'\n' && bytes[i].is_ascii_alphanumeric());
                let Some(cut) = cut else { break };
                let (head, tail) = rest.split_at(cut);
                stretches.push(head);
                rest = tail;
            }
        }
        stretches.push(rest);
        stretches
    }
}

fn compile(pattern: &str) -> Result<fancy_regex::Regex, Error> {
    fancy_regex::Regex::new(pattern).map_err(|error| {
        let (offset, message) = match &error {
            fancy_regex::Error::ParseError(offset, kind) => (Some(*offset), kind.to_string()),
            // The inner engine sees a rewritten pattern, so its own offsets would mislead: ask its parser about ours.
            other => match regex_syntax::parse(pattern) {
                Err(regex_syntax::Error::Parse(inner)) => (Some(inner.span().start.offset), inner.kind().to_string()),
                Err(regex_syntax::Error::Translate(inner)) => {
                    (Some(inner.span().start.offset), inner.kind().to_string())
                }
                _ => (None, other.to_string()),
            },
        };
        Error::BadPattern { pattern: pattern.to_owned(), offset, message }
    })
}

/// The GPT-4 family by hand: about 15 times as fast as the general engine.
#[derive(Clone, Copy, Debug)]
struct Scanner {
    /// Digits per word at most: the K of `\p{N}{1,K}`.
    max_digits: usize,
    /// Whether white space at the end of the text is one word, line breaks and all (`\s++$`).
    whole_tail: bool,
}

impl Scanner {
    /// The scanner for a pattern of the family, in the spellings that tiktoken, minbpe and we use.
    fn for_pattern(pattern: &str) -> Option<Self> {
        (1..=9).find_map(|max_digits| {
            let ours = GPT4_PATTERN.replace("{1,3}", &format!("{{1,{max_digits}}}"));
            // As tiktoken first published it, and as its cl100k_base is written now.
            let first = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,{max_digits}}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            let newest = format!(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}++|\p{{N}}{{1,{max_digits}}}+| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
            );
            let known = pattern == ours || pattern == first || pattern == newest;
            known.then_some(Self { max_digits, whole_tail: pattern == newest })
        })
    }

    /// The end of the word that starts at `start`, which is a character border before the end of `text`.
    fn word_end(self, text: &str, start: usize) -> usize {
        let classes = classes();
        let (class, second) = at(classes, text, start);
        match class {
            Class::Letter => run(classes, text, second, Class::Letter),
            Class::Number => {
                let mut end = second;
                for _ in 1..self.max_digits {
                    match next(classes, text, end) {
                        Some((Class::Number, after)) => end = after,
                        _ => break,
                    }
                }
                end
            }
            Class::Other => {
                if let Some(end) = contraction(text, start) {
                    return end;
                }
                match next(classes, text, second) {
                    Some((Class::Letter, third)) => run(classes, text, third, Class::Letter),
                    _ => punctuation(classes, text, second),
                }
            }
            Class::Space => match next(classes, text, second) {
                Some((Class::Letter, third)) => run(classes, text, third, Class::Letter),
                Some((Class::Other, third)) if text.as_bytes()[start] == b' ' => punctuation(classes, text, third),
                _ => self.white_space(classes, text, start),
            },
            Class::Break => self.white_space(classes, text, start),
        }
    }

    /// White space up to the last line break of its run; without one all but the last, which goes with what follows.
    fn white_space(self, classes: &[Class], text: &str, start: usize) -> usize {
        let (mut end, mut last, mut after_break) = (start, start, None);
        while let Some((class, after)) = next(classes, text, end) {
            match class {
                Class::Break => after_break = Some(after),
                Class::Space => {}
                _ => break,
            }
            (last, end) = (end, after);
        }
        let at_end = end == text.len();
        match after_break {
            _ if self.whole_tail && at_end => end,
            Some(after) => after,
            None if at_end || last == start => end,
            None => last,
        }
    }
}

/// The end of `'s`, `'t`, `'m`, `'d`, `'ll`, `'ve` or `'re` in any case.
fn contraction(text: &str, start: usize) -> Option<usize> {
    let rest = &text.as_bytes()[start..];
    if rest[0] != b'\'' {
        return None;
    }
    let lower = |i: usize| rest.get(i).map(u8::to_ascii_lowercase);
    match (lower(1)?, lower(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(start + 2),
        (b'l', Some(b'l')) | (b'v' | b'r', Some(b'e')) => Some(start + 3),
        // The long s (U+017F) is an s in another case.
        (0xC5, Some(0xBF)) => Some(start + 3),
        _ => None,
    }
}

/// The rest of a run of marks and the line breaks right after it.
fn punctuation(classes: &[Class], text: &str, start: usize) -> usize {
    run(classes, text, run(classes, text, start, Class::Other), Class::Break)
}

/// The end of the run of `class` that starts (or not) at `end`.
fn run(classes: &[Class], text: &str, mut end: usize, class: Class) -> usize {
    while let Some((found, after)) = next(classes, text, end) {
        if found != class {
            break;
        }
        end = after;
    }
    end
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Other,
    Letter,
    Number,
    Space,
    Break,
}

/// Class of every code point, made once (about 1 MB) from the tables that the general engine uses too.
fn classes() -> &'static [Class] {
    static CLASSES: OnceLock<Box<[Class]>> = OnceLock::new();
    CLASSES.get_or_init(|| {
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
    })
}

/// Class of the character at `position`, and the position after it; None at the end of the text.
#[inline]
fn next(classes: &[Class], text: &str, position: usize) -> Option<(Class, usize)> {
    (position < text.len()).then(|| at(classes, text, position))
}

#[inline]
fn at(classes: &[Class], text: &str, position: usize) -> (Class, usize) {
    let byte = text.as_bytes()[position];
    if byte < 0x80 {
        return (classes[byte as usize], position + 1);
    }
    let character = text[position..].chars().next().expect("a character border");
    (classes[character as usize], position + character.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        splitter.for_each_word(text, |word| words.push(word.to_owned())).unwrap();
        words
    }

    /// Patterns of the family with their general twin.
    fn pairs() -> Vec<(Splitter, Splitter)> {
        let first = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let newest = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
        let two = GPT4_PATTERN.replace("{1,3}", "{1,2}");
        [GPT4_PATTERN, &two, first, newest]
            .map(|pattern| {
                let fast = Splitter::new(pattern).unwrap();
                assert!(matches!(fast.engine, Engine::Scanner(_)));
                let engine = Engine::Regex(Box::new(compile(pattern).unwrap()));
                (fast, Splitter { pattern: pattern.to_owned(), engine })
            })
            .into()
    }

    #[test]
    fn the_scanner_finds_the_words_of_the_general_engine_in_every_short_text() {
        // Every text of up to four of these pieces: each class, each contraction, each kind of white space.
        let pieces = ["'", "s", "LL", "e", "v", "ſ", "é", "7", "²", " ", "\t", "\n", "\r", "\u{a0}", ".", "😀"];
        for (fast, general) in pairs() {
            for index in 0..pieces.len().pow(4) {
                let text: String = (0..4).map(|digit| pieces[index / pieces.len().pow(digit) % pieces.len()]).collect();
                assert_eq!(words(&fast, &text), words(&general, &text), "{text:?} by {}", fast.pattern);
            }
        }
    }

    #[test]
    fn the_scanner_classes_every_character_as_the_general_engine_does() {
        let (fast, general) = &pairs()[0];
        let text: String = ('\0'..=char::MAX).flat_map(|c| ['x', c, '\'', c, ' ', c, '1']).collect();
        assert!(words(fast, &text) == words(general, &text));
    }

    #[test]
    fn the_unicode_tables_are_of_the_version_that_we_state() {
        // Todhri came with Unicode 16, Sidetic with 17.
        assert!(classes()[0x105C0] == Class::Letter && classes()[0x10940] == Class::Other);
    }

    #[test]
    fn stretches_split_into_the_words_of_the_whole() {
        let text = "One's two\n\n  three.\n4th,\r\nfive  \nsix\n".repeat(20);
        for (splitter, general) in pairs() {
            let stretches = splitter.stretches(&text, 30);
            assert!(stretches.len() > 5);
            let together: Vec<_> = stretches.iter().flat_map(|s| words(&splitter, s)).collect();
            assert_eq!(together, words(&splitter, &text));
            assert_eq!(general.stretches(&text, 30), [&text]);
        }
    }

    #[test]
    fn a_bad_pattern_says_where() {
        let message = Splitter::new(r"\p{L}+|[a-").unwrap_err().to_string();
        assert!(message.contains("at character 8") || message.contains("at character 11"), "{message}");
        assert!(message.ends_with('^'), "{message}");
        assert!(Splitter::new(r"(?<=a").is_err() && Splitter::new(r"\p{Nonsense}").is_err());
    }

    #[test]
    fn a_pattern_that_gives_up_is_an_error() {
        let splitter = Splitter::new(r"(x+x+)+(?=y)z\1").unwrap();
        let answer = splitter.for_each_word(&"x".repeat(40), |_| {});
        assert!(matches!(answer, Err(Error::PatternGaveUp(_))));
    }
}
