//! Everything that can go wrong, each told in one sentence. No panics for a caller's mistake.

use std::fmt;
use std::path::PathBuf;

/// A mistake of the caller, or a refusal of the machine.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A vocabulary must hold the 256 bytes.
    VocabularyTooSmall(u32),
    /// The split pattern is no regular expression that we know.
    BadPattern {
        /// The pattern as given.
        pattern: String,
        /// Where it goes wrong, in bytes from its start, where that is known.
        offset: Option<usize>,
        /// What is wrong there.
        message: String,
    },
    /// The split pattern needed too many attempts on a text.
    PatternGaveUp(String),
    /// An id that is not in the vocabulary.
    UnknownId {
        /// The id as given.
        id: i64,
        /// Size of the vocabulary: ids are below it.
        size: usize,
    },
    /// Ranks that are no vocabulary: a byte is missing, an id is there twice, ...
    BadRanks(String),
    /// The words hold more symbols than the trainer can address.
    CorpusTooLarge,
    /// The caller asked to stop.
    Stopped,
    /// A text file that is not UTF-8.
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Bytes from its start up to the first that is no UTF-8.
        offset: usize,
    },
    /// The operating system refused.
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::VocabularyTooSmall(size) => {
                write!(f, "vocab_size is {size}, but must be at least 256: one token for every byte")
            }
            Error::BadPattern { pattern, offset, message } => match offset {
                None => write!(f, "the split pattern is no valid regular expression: {message}: {pattern}"),
                Some(offset) => {
                    let before = pattern.get(..*offset).unwrap_or(pattern).chars().count();
                    let marker = " ".repeat(before);
                    let place = before + 1;
                    write!(
                        f,
                        "the split pattern is no valid regular expression: {message} at character {place}\n    \
                         {pattern}\n    {marker}^"
                    )
                }
            },
            Error::PatternGaveUp(message) => {
                write!(f, "the split pattern needs too many attempts on this text: {message}")
            }
            Error::UnknownId { id, size } => {
                write!(f, "id {id} is not in the vocabulary, whose ids go from 0 to {}", size - 1)
            }
            Error::BadRanks(message) => write!(f, "the ranks are no byte-level BPE vocabulary: {message}"),
            Error::CorpusTooLarge => write!(f, "the corpus has more than 2^32 different words"),
            Error::Stopped => write!(f, "stopped by the caller"),
            Error::NotUtf8 { path, offset } => {
                write!(f, "{} is not UTF-8: the first wrong byte stands at offset {offset}", path.display())
            }
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
