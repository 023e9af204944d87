//! Lesson 2: six small functions, and a test.

/// "Hello, Ada!" of "Ada".
pub fn greet(name: &str) -> String {
    format!("Hello, {name}!")
}

/// The sum of some numbers, each written as a text. `Err` with the first text that is no number.
pub fn total(numbers: &[String]) -> Result<i64, String> {
    let mut sum = 0;
    for number in numbers {
        sum += number.parse::<i64>().map_err(|_| format!("{number:?} is no number"))?;
    }
    Ok(sum)
}

/// The longest word by bytes, the first of several.
pub fn longest(words: &[String]) -> Option<&str> {
    // max_by_key keeps the last of several; going backwards, that is the first
    words.iter().rev().max_by_key(|word| word.len()).map(String::as_str)
}

/// Append an exclamation mark to the caller's own text, and make its ASCII letters large.
pub fn shout(text: &mut String) {
    text.make_ascii_uppercase();
    text.push('!');
}

/// How often each byte occurs.
pub fn byte_counts(bytes: &[u8]) -> [usize; 256] {
    let mut counts = [0; 256];
    for &byte in bytes {
        counts[usize::from(byte)] += 1;
    }
    counts
}

/// The text up to the first space, and the text from that space on.
pub fn first_word(text: &str) -> (&str, &str) {
    text.split_at(text.find(' ').unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_two_longest_words_wins() {
        let words = ["cat", "a", "dog"].map(String::from);
        assert_eq!(longest(&words), Some("cat"));
        assert_eq!(longest(&[]), None);
    }

    #[test]
    fn the_first_word_and_the_rest_make_the_text() {
        assert_eq!(first_word("the cat"), ("the", " cat"));
        assert_eq!(first_word("cat"), ("cat", ""));
    }

    #[test]
    fn what_is_no_number_is_named() {
        let numbers = ["1", "seven"].map(String::from);
        assert_eq!(total(&numbers), Err("\"seven\" is no number".to_string()));
    }
}
