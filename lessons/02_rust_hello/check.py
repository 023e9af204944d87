"""The oracle: Python's own strings, sums and counters; and the learner's own `cargo test`."""

import re
from collections import Counter

import pytest

from lessons.learner import crate

mine = crate(2)


def told(found: str, expected: str, call: str) -> None:
    assert found.strip() == expected, f"{call} printed {found.strip()!r}, and should print {expected!r}"


def test_it_compiles_and_greets() -> None:
    for name in ("Ada", "Grace Hopper", "Ádám"):
        told(mine.run("greet", name), f"Hello, {name}!", f"greet {name}")


@pytest.mark.parametrize("numbers", [[], ["7"], ["1", "-2", "30"], ["9" * 15, "1"]])
def test_total_adds(numbers: list[str]) -> None:
    told(mine.run("total", *numbers), f"Ok({sum(map(int, numbers))})", f"total {' '.join(numbers)}")


@pytest.mark.parametrize("wrong", ["seven", "1.5", ""])
def test_total_names_what_is_no_number(wrong: str) -> None:
    found = mine.run("total", "1", wrong, "also wrong")
    told(found, f'Err("\\"{wrong}\\" is no number")', f"total 1 {wrong!r} 'also wrong'")


@pytest.mark.parametrize("words", [["the"], ["a", "cat", "dog"], ["cat", "a", "elephant"], ["é", "ab", "c"]])
def test_longest_finds_the_first_longest_word(words: list[str]) -> None:
    expected = max(words, key=lambda word: len(word.encode()))
    told(mine.run("longest", *words), f'Some("{expected}")', f"longest {' '.join(words)}")


def test_longest_of_nothing_is_none() -> None:
    told(mine.run("longest"), "None", "longest without a word")


def test_shout_changes_the_text_it_is_lent() -> None:
    told(mine.run("shout", "hello"), "HELLO!!", "shout hello, called twice on the same text,")


@pytest.mark.parametrize("text", ["banana", "naïve", ""])
def test_byte_counts_counts_bytes(text: str) -> None:
    expected = "\n".join(f"{byte} {count}" for byte, count in sorted(Counter(text.encode()).items()))
    told(mine.run("bytes", text), expected, f"bytes {text!r} (byte and count)")


@pytest.mark.parametrize("text", ["the cat sat", "cat", " cat", "naïve é", ""])
def test_first_word_is_a_view(text: str) -> None:
    first = text.partition(" ")[0]
    told(mine.run("first", text), f'("{first}", "{text[len(first) :]}")', f"first {text!r}")


def test_you_wrote_tests_of_your_own_and_cargo_test_passes() -> None:
    passed = sum(int(number) for number in re.findall(r"(\d+) passed", mine.test()))
    assert passed >= 2, f"cargo test ran {passed} tests: write two at least, at the end of lib.rs"
