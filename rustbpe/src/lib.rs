//! Byte-level BPE: a trainer, an encoder and a decoder.
//!
//! The way of the data: [`Splitter`] cuts texts into words, [`Corpus`] counts them, [`train`] finds the merges,
//! [`Vocabulary`] holds the tokens, [`Encoder`] turns text into ids and back. Only `python.rs` knows Python.
//!
//! ```
//! use rustbpe::{Corpus, Encoder, GPT4_PATTERN, Splitter, Vocabulary, train};
//!
//! let mut corpus = Corpus::new(Splitter::new(GPT4_PATTERN)?);
//! corpus.add(&["low lower lowest", "low slow"])?;
//! let (splitter, words) = corpus.into_words();
//! let merges = train(&words, 260, &mut |_done, _wanted| Ok(()))?;
//! assert_eq!(merges[0], (b'l'.into(), b'o'.into()));
//!
//! let encoder = Encoder::new(splitter, Vocabulary::from_merges(&merges)?);
//! let ids = encoder.encode("low")?;
//! assert_eq!(ids, [257]);
//! assert_eq!(encoder.decode([257])?, "low");
//! # Ok::<(), rustbpe::Error>(())
//! ```
//!
//! Lesson: lessons/02_rust_hello

#![deny(unsafe_code)]
#![deny(missing_docs)]

mod cache;
mod corpus;
mod encoder;
mod error;
mod key;
mod merging;
mod pairs;
#[cfg(feature = "python")]
mod python;
mod scanner;
mod split;
mod trainer;
mod unicode;
mod vocabulary;

pub use corpus::{Corpus, Words};
pub use encoder::{Encoder, Id};
pub use error::Error;
pub use scanner::{GPT2_PATTERN, GPT4_PATTERN, NANOCHAT_PATTERN, PATTERNS, QWEN2_PATTERN};
pub use split::Splitter;
pub use trainer::{Pair, train};
pub use unicode::UNICODE_VERSION;
pub use vocabulary::Vocabulary;
