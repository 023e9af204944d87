//! The door to lib.rs, for the check and for you: nothing is to be written here. Bytes come on standard input.
//!
//!     echo -n "abab" | cargo run -- pairs
//!     echo -n "abab" | cargo run -- merge 97 98 256
//!     echo -n "abab" | cargo run -- train 2
//!     echo -n "abab" | cargo run -- encode 97,98 256,256
//!     cargo run -- decode 257 / 97,98 256,256
//!     echo "3 abab" | cargo run -- words 2       (each line: a count, and a word as hexadecimal bytes)
//!     echo "3 abab" | cargo run -- words-slowly 2

use std::collections::BTreeMap;
use std::env;
use std::io::{Read, stdin};
use std::time::Instant;

use lesson03::{Bpe, Pair, count_pairs, merge, train, train_words, train_words_slowly};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [command, rest @ ..] = arguments.as_slice() else { panic!("which command?") };
    let mut input = Vec::new();
    if command != "decode" {
        stdin().read_to_end(&mut input).expect("standard input");
    }
    let ids: Vec<u32> = input.iter().map(|&byte| u32::from(byte)).collect();
    match command.as_str() {
        "pairs" => {
            for ((left, right), count) in count_pairs(&ids).into_iter().collect::<BTreeMap<_, _>>() {
                println!("{left},{right} {count}");
            }
        }
        "merge" => println!("{:?}", merge(&ids, (number(&rest[0]), number(&rest[1])), number(&rest[2]))),
        "train" => show(&train(&input, rest[0].parse().expect("a number of merges"))),
        "encode" => println!("{:?}", Bpe::new(pairs(rest)).encode(&input)),
        "decode" => {
            let slash = rest.iter().position(|part| part == "/").expect("a / between ids and merges");
            let ids: Vec<u32> = rest[..slash].iter().map(|part| number(part)).collect();
            match Bpe::new(pairs(&rest[slash + 1..])).decode(&ids) {
                Ok(bytes) => println!("ok {bytes:?}"),
                Err(error) => println!("error {error}"),
            }
        }
        "words" | "words-slowly" => {
            let words: Vec<(Vec<u8>, u64)> = String::from_utf8(input).expect("text").lines().map(word).collect();
            let merges = rest[0].parse().expect("a number of merges");
            let started = Instant::now();
            let found = if command == "words" { train_words(&words, merges) } else { train_words_slowly(&words, merges) };
            eprintln!("{:.3}", started.elapsed().as_secs_f64());
            show(&found);
        }
        _ => panic!("no command {command}"),
    }
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number")
}

fn pairs(texts: &[String]) -> Vec<Pair> {
    texts.iter().map(|text| text.split_once(',').expect("left,right")).map(|(l, r)| (number(l), number(r))).collect()
}

fn word(line: &str) -> (Vec<u8>, u64) {
    let (count, hex) = line.split_once(' ').expect("count word");
    let bytes = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex"));
    (bytes.collect(), count.parse().expect("a count"))
}

fn show(merges: &[Pair]) {
    for (left, right) in merges {
        println!("{left},{right}");
    }
}
