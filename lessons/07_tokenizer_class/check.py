"""The oracle: the product's tokenizer, trained on the same texts."""

import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from lessons.learner import load
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer

mine = load(7)

TEXTS = [topics[name] for name in sorted(topics)][:12]
SIZE = 600
SAYING = "The unexamined life is not worth living"
SAMPLES = [
    SAYING,
    "",
    " ",
    "It's 31415!\n\n\tx = y",
    "naïve 한국어 🙂",
    "<|bos|>hello<|user_start|>",
    "a\x00b",
    TEXTS[0],
]


@pytest.fixture(scope="module")
def ours() -> Any:
    return mine.Tokenizer.train_from_iterator(iter(TEXTS), SIZE)


@pytest.fixture(scope="module")
def product() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(iter(TEXTS), SIZE)


def test_training_makes_the_vocabulary_of_the_product(ours: Any, product: RustBPETokenizer) -> None:
    size = ours.get_vocab_size()
    assert size == SIZE, f"a vocabulary of {SIZE} was asked for, with the special tokens; it has {size} ids"
    for i in range(SIZE):
        found, expected = ours.decode_bytes([i]), product.decode_bytes([i])
        assert found == expected, f"id {i} stands for {expected!r}, you have {found!r}"


def test_training_needs_room_for_bytes_and_special_tokens() -> None:
    least = 256 + len(SPECIAL_TOKENS)
    assert mine.Tokenizer.train_from_iterator(["a b"], least).get_vocab_size() == least
    with pytest.raises(ValueError, match=str(least)):
        mine.Tokenizer.train_from_iterator(["a b"], least - 1)


def test_training_reads_its_iterator_once() -> None:
    read: list[int] = []

    def texts() -> Iterator[str]:
        for n in range(3):
            read.append(n)
            yield "the cat sat"

    mine.Tokenizer.train_from_iterator(texts(), 270)
    assert read == [0, 1, 2], f"texts come from an iterator, which can be read once: it was read like this: {read}"


@pytest.mark.parametrize("text", SAMPLES, ids=range(len(SAMPLES)))
def test_encode_gives_the_ids_of_the_product(ours: Any, product: RustBPETokenizer, text: str) -> None:
    found, expected = ours.encode(text), product.encode(text)
    assert list(found) == expected, f"{text[:60]!r} has the ids {expected[:30]}, you have {list(found)[:30]}"


def test_encode_takes_lists_and_prepends(ours: Any, product: RustBPETokenizer) -> None:
    for prepend in (None, "<|bos|>", 5):
        found, expected = ours.encode(SAMPLES, prepend=prepend), product.encode(SAMPLES, prepend=prepend)
        assert [list(row) for row in found] == expected, f"encode of a list with prepend={prepend!r} has other ids"
        found = ours.encode(SAYING, prepend=prepend)
        assert list(found) == product.encode(SAYING, prepend=prepend), f"encode with prepend={prepend!r} has other ids"


def test_encoding_twice_gives_the_same_ids(ours: Any) -> None:
    first = list(ours.encode(SAYING, prepend="<|bos|>"))
    first_again = list(ours.encode(SAYING, prepend="<|bos|>"))
    assert first == first_again, f"the second time other ids came: {first_again}, at first {first}"
    for text in ("The", SAYING):
        before = list(ours.encode(text))
        ours.encode(text).append(7)
        assert list(ours.encode(text)) == before, "a caller changed the list that it got, and the tokenizer with it"


@pytest.mark.parametrize("text", SAMPLES, ids=range(len(SAMPLES)))
def test_decode_gives_the_text_back(ours: Any, text: str) -> None:
    found = ours.decode(ours.encode(text))
    assert found == text, f"{text[:60]!r} came back as {found[:60]!r}"


def test_decode_spells_special_tokens_and_survives_half_a_character(ours: Any, product: RustBPETokenizer) -> None:
    bos = product.get_bos_token_id()
    for ids in ([bos, *product.encode(SAYING)], [240, 159], [0xC3], []):
        found, expected = ours.decode(iter(ids)), product.decode(ids)
        assert found == expected, f"the ids {ids[:20]} are {expected!r}, you have {found!r}"
    for wrong in (SIZE, -1):
        with pytest.raises(ValueError, match=str(wrong)):
            ours.decode([wrong])


def test_special_tokens_have_the_last_ids(ours: Any, product: RustBPETokenizer) -> None:
    for name in SPECIAL_TOKENS:
        found, expected = ours.encode_special(name), product.encode_special(name)
        assert found == expected, f"{name} has the id {expected}, you have {found}"
    assert ours.get_bos_token_id() == product.get_bos_token_id(), "get_bos_token_id is the id of <|bos|>"
    with pytest.raises(ValueError, match="nobody"):
        ours.encode_special("<|nobody|>")


def test_token_bytes_are_the_lengths_of_tokens(ours: Any, product: RustBPETokenizer) -> None:
    found, expected = list(ours.token_bytes()), product.token_bytes()
    assert found == expected, "token_bytes is a token's length in bytes, and 0 for a special token"


def test_what_was_saved_is_loaded(ours: Any, tmp_path: Path) -> None:
    ours.save(tmp_path / "new" / "folder")
    json.loads((tmp_path / "new" / "folder" / "tokenizer.json").read_text(encoding="utf-8"))
    loaded = mine.Tokenizer.from_directory(tmp_path / "new" / "folder")
    assert loaded.get_vocab_size() == SIZE, f"{SIZE} ids were saved, {loaded.get_vocab_size()} came back"
    for text in SAMPLES:
        assert list(loaded.encode(text)) == list(ours.encode(text)), f"loaded, it encodes {text[:40]!r} otherwise"
    whole = mine.Tokenizer.train_from_iterator(["the cat the cat the cat"], 275, pattern=r"[\s\S]+")
    whole.save(tmp_path)
    found, expected = mine.Tokenizer.from_directory(tmp_path).encode("the cat the cat"), whole.encode("the cat the cat")
    assert list(found) == list(expected), (
        f"a pattern of one's own was saved; loaded, the ids are {found}, not {expected}"
    )


@pytest.mark.parametrize("damage", ["", "{", "{}", '{"merges": 3}'])
def test_a_damaged_file_is_a_value_error_with_its_name(ours: Any, tmp_path: Path, damage: str) -> None:
    ours.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(damage, encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        mine.Tokenizer.from_directory(tmp_path)
