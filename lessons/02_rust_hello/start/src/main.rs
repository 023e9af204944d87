//! The door to lib.rs, for the check and for you: nothing is to be written here.
//!
//!     cargo run -- greet Ada
//!     cargo run -- total 1 2 3
//!     cargo run -- longest the cat sat
//!     cargo run -- shout hello
//!     cargo run -- bytes banana
//!     cargo run -- first "the cat"

use std::env;

use lesson02::{byte_counts, first_word, greet, longest, shout, total};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [command, rest @ ..] = arguments.as_slice() else { panic!("which command?") };
    let text = rest.join(" ");
    match command.as_str() {
        "greet" => println!("{}", greet(&text)),
        "total" => println!("{:?}", total(rest)),
        "longest" => println!("{:?}", longest(rest)),
        "shout" => {
            let mut text = text;
            shout(&mut text);
            shout(&mut text);
            println!("{text}");
        }
        "bytes" => {
            let counts = byte_counts(text.as_bytes());
            for (byte, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                println!("{byte} {count}");
            }
        }
        "first" => println!("{:?}", first_word(&text)),
        _ => panic!("no command {command}"),
    }
}
