//! Lesson 2: six small functions, and a test. `todo!()` compiles and stops the program where it is reached: replace it.

/// "Hello, Ada!" of "Ada". Looks at a text that belongs to somebody else (`&str`), and makes a new one (`String`).
pub fn greet(name: &str) -> String {
    todo!("greet")
}

/// The sum of some numbers, each written as a text. `Err` with the first text that is no number, in these words:
/// `"seven" is no number`.
pub fn total(numbers: &[String]) -> Result<i64, String> {
    todo!("total")
}

/// The longest word by bytes, the first of several; `None` where there are no words. It is borrowed, not copied.
pub fn longest(words: &[String]) -> Option<&str> {
    todo!("longest")
}

/// Append an exclamation mark to the caller's own text, and make its ASCII letters large. Returns nothing.
pub fn shout(text: &mut String) {
    todo!("shout")
}

/// How often each byte occurs: 256 counts. Overflow is out of the question with `usize`.
pub fn byte_counts(bytes: &[u8]) -> [usize; 256] {
    todo!("byte_counts")
}

/// The text up to the first space (without it), and the text from that space on: two views of one text, no copy.
/// A text without a space is all first word, and the rest is empty.
pub fn first_word(text: &str) -> (&str, &str) {
    todo!("first_word")
}

#[cfg(test)]
mod tests {
    use super::*;

    // Write two tests at least: `#[test]`, then a function without arguments that says `assert_eq!(found, expected);`.
    // `cargo test` runs them.
}
