//! The door to lib.rs, for the check and for you: nothing is to be written here. Texts are lines on standard input.
//!
//!     printf 'the cat\nthe hat' | cargo run -- words
//!     printf 'the cat\nthe hat' | cargo run -- one
//!     printf 'the cat\nthe hat' | cargo run -- threads 2
//!     printf 'the cat\nthe hat' | cargo run -- rayon
//!     cargo run -- measure 400 < /etc/services          (every text so many times; medians of five, in milliseconds)

use std::collections::HashMap;
use std::env;
use std::io::{Read, stdin};
use std::time::Instant;

use lesson04::{Counts, add, count, count_by_rayon, count_by_threads, words};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut input = String::new();
    stdin().read_to_string(&mut input).expect("UTF-8 on standard input");
    let texts: Vec<&str> = input.lines().collect();
    let number = || arguments.get(1).and_then(|text| text.parse().ok()).expect("a number after the command");
    match arguments.first().map(String::as_str) {
        Some("words") => texts.iter().for_each(|text| println!("{:?}", words(text).collect::<Vec<_>>())),
        Some("one") => show(&count(&texts)),
        Some("add") => show(&add(count(&texts[..1]), count(&texts[1..]))),
        Some("threads") => show(&count_by_threads(&texts, number())),
        Some("rayon") => show(&count_by_rayon(&texts)),
        Some("measure") => {
            let texts = texts.repeat(number());
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            println!("one {:.1}", median(|| count(&texts)));
            println!("threads {:.1}", median(|| count_by_threads(&texts, cores)));
            println!("rayon {:.1}", median(|| count_by_rayon(&texts)));
        }
        _ => panic!("which command: words, one, add, threads, rayon, measure?"),
    }
}

fn show(counts: &Counts) {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort();
    for (word, count) in sorted {
        println!("{count} {word:?}");
    }
}

fn median<'t>(work: impl Fn() -> HashMap<&'t str, u64>) -> f64 {
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let started = Instant::now();
            let found = work();
            let milliseconds = started.elapsed().as_secs_f64() * 1e3;
            drop(found);
            milliseconds
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[2]
}
