//! Lesson 4: counting words on one core, on threads by hand, and by rayon.
//!
//! The check and the next lesson use what is `pub` here.

use std::collections::HashMap;

/// How often each word occurs. The words are parts of the texts (`&str`, no copies), which must live as long as the map:
/// `'t` is the name of that life.
pub type Counts<'t> = HashMap<&'t str, u64>;

/// The words of a text: each ends with its space, so that joined they are the text. "a b  c" has "a ", "b ", " ", "c".
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    todo!("words") as std::vec::IntoIter<&str> // the type is there so that this compiles; it goes with the todo
}

/// The map: the words of some texts, counted by one thread.
pub fn count<'t>(texts: &[&'t str]) -> Counts<'t> {
    todo!("count")
}

/// The reduce: two threads' counts as one.
pub fn add<'t>(one: Counts<'t>, other: Counts<'t>) -> Counts<'t> {
    todo!("add")
}

/// The same counts by so many threads (one at least), each with its part of the texts: `std::thread::scope`.
pub fn count_by_threads<'t>(texts: &[&'t str], threads: usize) -> Counts<'t> {
    todo!("count_by_threads")
}

/// The same counts by rayon: a `map`, and a `reduce` that may join partial results in any grouping.
pub fn count_by_rayon<'t>(texts: &[&'t str]) -> Counts<'t> {
    todo!("count_by_rayon")
}
