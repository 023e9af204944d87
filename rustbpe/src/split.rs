//! Text -> words: the pieces within which merges happen.
//!
//! The patterns that the scanner knows go through it; every other one through `fancy-regex`, which is also the scanner's
//! oracle in the tests. Not here: counting words, merging bytes.
//!
//! Lesson: lessons/06_tiktoken_object

use crate::Error;
use crate::scanner::Scanner;

/// Where a word starts and where it ends.
pub(crate) type Word = (usize, usize);

/// Words that are handed over at a time.
pub(crate) const BLOCK: usize = 32;

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

    /// Call `visit` with all words in order, block by block. What the pattern does not match is dropped, as tiktoken does.
    pub(crate) fn for_each_block(&self, text: &str, mut visit: impl FnMut(&[Word])) -> Result<(), Error> {
        match &self.engine {
            Engine::Scanner(scanner) => scanner.for_each_block(text, visit),
            Engine::Regex(regex) => {
                for found in regex.find_iter(text) {
                    let word = found.map_err(|e| Error::PatternGaveUp(e.to_string()))?;
                    if word.start() < word.end() {
                        visit(&[(word.start(), word.end())]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Cut `text` into stretches of about `size` bytes that split into the same words as the whole.
    ///
    /// The scanner's patterns all end a word at a letter that a space and another letter follow. Of other patterns
    /// nothing is known, so the text stays whole.
    pub(crate) fn stretches<'t>(&self, text: &'t str, size: usize) -> Vec<&'t str> {
        let mut rest = text;
        let mut stretches = Vec::new();
        if let Engine::Scanner(_) = self.engine {
            while rest.len() > size {
                let bytes = rest.as_bytes();
                let is_cut = |i: &[u8]| i[0].is_ascii_alphabetic() && i[1] == b' ' && i[2].is_ascii_alphabetic();
                let Some(cut) = bytes[size - 1..].windows(3).position(is_cut) else { break };
                let (head, tail) = rest.split_at(size + cut);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scanner::PATTERNS;

    fn words(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let visit = |block: &[Word]| words.extend(block.iter().map(|&(start, end)| text[start..end].to_owned()));
        splitter.for_each_block(text, visit).unwrap();
        words
    }

    /// Patterns of the family with their general twin.
    fn pairs() -> Vec<(Splitter, Splitter)> {
        let cl100k_first = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let cl100k = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
        let gpt2_first = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let gpt2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s";
        let others = [cl100k_first, cl100k, gpt2_first, gpt2];
        PATTERNS
            .iter()
            .map(|&(_, pattern)| pattern)
            .chain(others)
            .map(|pattern| {
                let fast = Splitter::new(pattern).unwrap();
                assert!(matches!(fast.engine, Engine::Scanner(_)));
                let engine = Engine::Regex(Box::new(compile(pattern).unwrap()));
                (fast, Splitter { pattern: pattern.to_owned(), engine })
            })
            .collect()
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

    proptest! {
        #[test]
        fn the_scanner_finds_the_words_of_the_general_engine_in_any_text(text in r"[a-zA-Z ]{0,70}(\PC|\p{L}|[a-zA-Z' ]|'(?i:s|ll|ve|re)|[ \t\r\n\x0B\u{85}\u{2028}]|[0-9²Ⅷ]|[!-/]){0,90}") {
            for (fast, general) in pairs() {
                prop_assert_eq!(words(&fast, &text), words(&general, &text), "by {}", fast.pattern);
            }
        }
    }

    #[test]
    fn the_scanner_classes_every_character_as_the_general_engine_does() {
        let text: String = ('\0'..=char::MAX).flat_map(|c| ['x', c, '\'', c, ' ', c, '1']).collect();
        for (fast, general) in &pairs()[..2] {
            assert!(words(fast, &text) == words(general, &text), "{}", fast.pattern);
        }
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
        let answer = splitter.for_each_block(&"x".repeat(40), |_| {});
        assert!(matches!(answer, Err(Error::PatternGaveUp(_))));
    }
}
