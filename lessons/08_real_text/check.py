"""The oracle: the product's data set and tokenizer, and Python."""

import statistics
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from lessons.learner import load
from nanochat import dataset
from nanochat.tokenizer import RustBPETokenizer

mine = load(8)

HELP = [topics[name] for name in sorted(topics)]
LITTLE = ["The cat sat.", "A naïve café", "the CAT ran, the dog ran", "The cat sat.", "x"]


@pytest.fixture
def base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    return tmp_path


def test_python_help_has_all_texts_by_name() -> None:
    found = mine.python_help()
    assert len(found) == len(HELP), f"Python carries {len(HELP)} texts, you have {len(found)}"
    assert found == HELP, "the texts stand in the order of their names: sorted(topics)"


def test_documents_are_pythons_help_where_nothing_was_fetched(base_dir: Path) -> None:
    found = mine.documents(len(HELP[0]) + 1)
    assert found == HELP[:2], f"{len(HELP[0]) + 1} characters need two whole texts; you have {[*map(len, found)]}"
    assert mine.documents(10**9) == HELP, "when there is less text than asked for, all of it is given"
    assert mine.documents(len(HELP[0])) == HELP[:1], "the first text alone has enough characters"


def test_documents_are_those_of_a_source_where_there_is_one(base_dir: Path) -> None:
    dataset.write_shards([f"Document {i} of a source" for i in range(100)], "little")
    expected = list(dataset.iterate_documents("train"))
    assert mine.documents(10**9) == expected, "with a source in the base directory, its training documents are meant"
    assert mine.documents(60) == expected[:3], "60 characters need three of these documents"


@pytest.mark.parametrize("every", [2, 3, 20])
def test_hold_out_keeps_apart_what_is_learned_and_what_is_measured(every: int) -> None:
    texts = [f"text {i}" for i in range(41)]
    train, held = mine.hold_out(texts, every)
    assert held == texts[every - 1 :: every], f"of each {every} the last is held out: {texts[every - 1 :: every]}"
    assert train == [text for text in texts if text not in held], "all others are there to learn from, in order"


def test_hold_out_lets_no_repeated_text_into_both() -> None:
    train, held = mine.hold_out(["a", "b", "a", "c", "b", "d"], 2)
    assert not set(train) & set(held), f"{set(train) & set(held)} is both learned and measured on"
    assert (train, held) == (["a", "c"], ["b", "d"]), f"a b c d are the different ones; you have {train} and {held}"


@pytest.mark.parametrize("texts", [LITTLE, HELP], ids=["little", "help"])
def test_look_tells_sizes(texts: list[str]) -> None:
    found, whole = mine.look(texts), "".join(texts)
    expected = {
        "documents": len(texts),
        "characters": len(whole),
        "bytes": len(whole.encode()),
        "shortest": min(map(len, texts)),
        "median": statistics.median_high(map(len, texts)),
        "longest": max(map(len, texts)),
        "repeated": len(texts) - len(set(texts)),
    }
    for name, value in expected.items():
        assert getattr(found, name) == value, f"{name} is {value}, you have {getattr(found, name)}"
    ascii_share = sum(map(str.isascii, whole)) / len(whole)
    assert found.share_of_ascii == pytest.approx(ascii_share), f"share_of_ascii is {ascii_share}"


def test_look_finds_the_common_words() -> None:
    found = [tuple(item) for item in mine.look(LITTLE).common_words]
    expected = [
        ("the", 4),
        ("cat", 3),
        ("ran", 2),
        ("sat", 2),
        ("a", 1),
        ("café", 1),
        ("dog", 1),
        ("naïve", 1),
        ("x", 1),
    ]
    assert found == expected, f"the words of {LITTLE} are {expected}, you have {found}"
    assert len(mine.look(HELP).common_words) == 10, "ten words, no more"


def test_bytes_per_token_weighs_every_byte_the_same() -> None:
    tokenizer = RustBPETokenizer.train_from_iterator(iter(HELP[:8]), 400)
    for texts in (HELP[:5], ["é" * 50, "the the the"], ["x"]):
        ids = sum(map(len, tokenizer.encode(texts)))
        expected = len("".join(texts).encode()) / ids
        found = mine.bytes_per_token(tokenizer.encode, texts)
        assert found == pytest.approx(expected), f"{texts[0][:20]!r} and others: {expected:.4f}, you have {found:.4f}"


def test_tok_eval_measures_every_kind_by_every_tokenizer() -> None:
    small, large = (RustBPETokenizer.train_from_iterator(iter(HELP[:8]), size).encode for size in (300, 500))
    found = mine.tok_eval({"small": small, "large": large}, {"help": HELP[8:10], "other": ["naïve café"]})
    for kind, texts in (("help", HELP[8:10]), ("other", ["naïve café"])):
        for name, encode in (("small", small), ("large", large)):
            expected = len("".join(texts).encode()) / sum(map(len, encode(texts)))
            value = found[kind][name]
            assert value == pytest.approx(expected), (
                f"found[{kind!r}][{name!r}] is {expected:.4f}, you have {value:.4f}"
            )


def test_growth_gives_what_the_product_would_at_every_size() -> None:
    train, held, sizes = HELP[:10], HELP[10:14], [265, 300, 500]
    rows = mine.growth(train, held, sizes)
    assert [row[0] for row in rows] == sizes, f"one row for each of {sizes}, in this order; you have {rows}"
    for size, on_train, on_held in rows:
        tokenizer = RustBPETokenizer.train_from_iterator(iter(train), size)
        for found, texts, name in ((on_train, train, "the texts"), (on_held, held, "held-out texts")):
            expected = len("".join(texts).encode()) / sum(map(len, tokenizer.encode(texts)))
            assert found == pytest.approx(expected), f"{size} ids on {name}: {expected:.4f}, you have {found:.4f}"
