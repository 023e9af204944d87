"""The two tokenizer stages, called as functions on a base directory of their own."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from nanochat import dataset, paths
from nanochat.command import UserError
from nanochat.tokenizer import SPLIT_PATTERN, get_tokenizer
from rustbpe import PATTERNS
from scripts import tok_eval, tok_train

DOCUMENTS = [f"Document {i} tells of the cat, the hat and {i * 37} mice.\nIsn't it?\n" for i in range(200)]


@pytest.fixture
def corpus(base_dir: Path) -> Path:
    dataset.write_shards(DOCUMENTS, "little")
    return base_dir


def section(name: str) -> dict[str, object]:
    facts = json.loads((paths.report_dir() / f"{name}.json").read_text(encoding="utf-8"))["facts"]
    assert isinstance(facts, dict)
    return facts


def test_training_makes_a_tokenizer_and_a_section_of_the_report(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tok_train.main(tok_train.Config(vocab_size=300))
    tokenizer = get_tokenizer()
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.decode(tokenizer.encode(DOCUMENTS[0])) == DOCUMENTS[0]
    train = list(dataset.iterate_documents("train"))
    facts = section("tok_train")
    assert facts["documents"] == len(train)
    assert facts["characters"] == sum(map(len, train))
    assert facts["vocab_size"] == 300
    assert "trained 300 tokens" in capsys.readouterr().out


def test_our_pattern_is_the_one_that_the_crate_scans_by_hand() -> None:
    assert PATTERNS["nanochat"] == SPLIT_PATTERN


@pytest.mark.parametrize("pattern", ["gpt2", r"\p{L}+|\P{L}"])
def test_a_pattern_by_name_or_of_ones_own_cuts_the_words(corpus: Path, pattern: str) -> None:
    tok_train.main(tok_train.Config(vocab_size=300, pattern=pattern, threads=1))
    assert get_tokenizer().tiktoken_parameters()["pat_str"] == PATTERNS.get(pattern, pattern)
    assert section("tok_train")["pattern"] == pattern
    assert get_tokenizer().decode(get_tokenizer().encode(DOCUMENTS[0])) == DOCUMENTS[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"pattern": "gpt5"}, "no split pattern is called 'gpt5'; there are gpt2, gpt4, nanochat, qwen2, or give"),
        ({"pattern": r"\p{L}+|[a-"}, "the split pattern is no valid regular expression"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
    ],
)
def test_a_wrong_pattern_or_number_of_threads_is_refused_before_anything_is_written(
    corpus: Path, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        tok_train.main(tok_train.Config(vocab_size=300, **flags))
    assert not paths.tokenizer_dir().exists()


def test_the_validation_split_is_not_trained_on(base_dir: Path) -> None:
    dataset.write_shards(["xx" if i % 20 == 19 else "ab" for i in range(100)], "little")
    assert "xx" in set(dataset.iterate_documents("val"))
    tok_train.main(tok_train.Config(vocab_size=300))
    assert "xx" not in [get_tokenizer().id_to_token(i) for i in range(get_tokenizer().get_vocab_size())]


def test_a_text_with_too_few_pairs_trains_what_it_can_and_says_so(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tok_train.main(tok_train.Config(vocab_size=60_000))
    size = get_tokenizer().get_vocab_size()
    assert 300 < size < 60_000
    assert f"no more pairs to merge: {size:,} tokens instead of 60,000" in capsys.readouterr().out
    assert section("tok_train")["vocab_size_asked_for"] == 60_000


def test_no_more_characters_are_read_than_asked_for(corpus: Path) -> None:
    tok_train.main(tok_train.Config(vocab_size=300, max_chars=100, doc_cap=30))
    assert section("tok_train")["characters"] == 100
    assert section("tok_train")["documents"] == 4


def test_documents_are_cut_at_the_cap(corpus: Path) -> None:
    texts = list(tok_train.capped_documents(tok_train.Config(doc_cap=8, max_chars=20), "little"))
    assert texts == ["Document", "Document", "Docu"]


def test_a_dry_run_writes_nothing(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tok_train.main(tok_train.Config(vocab_size=300, dry_run=True))
    tok_eval.main(tok_eval.Config(dry_run=True))
    assert "training 300 tokens" in capsys.readouterr().out
    assert not paths.tokenizer_dir().exists()
    assert not paths.report_dir().exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tok_train.Config(vocab_size=264), "--vocab_size must be at least 265, got 264"),
        (tok_train.Config(max_chars=0), "--max_chars must be at least 1, got 0"),
        (tok_train.Config(doc_cap=-1), "--doc_cap must be at least 1, got -1"),
        (tok_train.Config(data="elsewhere"), "no source called 'elsewhere'"),
    ],
)
def test_mistakes_in_training_are_told_before_any_work(corpus: Path, config: tok_train.Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tok_train.main(config)
    assert not paths.tokenizer_dir().exists()


def test_evaluation_prints_and_keeps_bytes_per_token(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tok_train.main(tok_train.Config(vocab_size=300))
    tok_eval.main(tok_eval.Config(sample_chars=500, peers=()))
    facts = section("tok_eval")["bytes per token, nanochat"]
    assert isinstance(facts, dict)
    assert set(facts) == {*tok_eval.SAMPLES, "train", "val"}
    english = tok_eval.SAMPLES["English"]
    assert facts["English"] == len(english.encode()) / len(get_tokenizer().encode(english))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["Korean"] for line in lines)
    assert not any("left out" in line for line in lines)


def test_peers_that_cannot_be_reached_are_left_out_and_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tok_eval, "is_reachable", lambda: False)
    tok_train.main(tok_train.Config(vocab_size=300))
    tok_eval.main(tok_eval.Config(sample_chars=500))
    assert "left out, their files are neither here nor reachable: GPT-2, GPT-4" in capsys.readouterr().out
    assert section("tok_eval")["left_out"] == "GPT-2, GPT-4"


def test_a_peer_that_tiktoken_has_kept_stands_beside_ours(
    corpus: Path,
    tmp_path: Path,
    shared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = hashlib.sha1((tok_eval.BLOBS + tok_eval.PEER_FILES["cl100k_base"][0]).encode()).hexdigest()
    shutil.copy(shared_data / "tokenizer_reference" / "cl100k_base.tiktoken", tmp_path / name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tok_eval, "is_reachable", lambda: pytest.fail("asked the network"))
    tok_train.main(tok_train.Config(vocab_size=300))
    tok_eval.main(tok_eval.Config(sample_chars=500, peers=("cl100k_base",)))
    facts = section("tok_eval")["bytes per token, GPT-4"]
    assert isinstance(facts, dict)
    english = tok_eval.SAMPLES["English"]
    expected = len(english.encode()) / len(tiktoken.get_encoding("cl100k_base").encode_ordinary(english))
    assert facts["English"] == expected
    assert "tokens vs GPT-4" in capsys.readouterr().out


def test_an_unknown_peer_and_a_missing_tokenizer_are_told(corpus: Path) -> None:
    with pytest.raises(UserError, match="--peers knows gpt2 and cl100k_base, got 'gpt9'"):
        tok_eval.main(tok_eval.Config(peers=("gpt9",)))
    with pytest.raises(UserError, match=r"python -m scripts\.tok_train"):
        tok_eval.main(tok_eval.Config(peers=()))
    with pytest.raises(UserError, match="--sample_chars must be at least 1, got 0"):
        tok_eval.main(tok_eval.Config(sample_chars=0))


def test_a_text_is_shown_token_by_token(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tok_train.main(tok_train.Config(vocab_size=300))
    tokenizer = get_tokenizer()
    text = "the hat, 日!"
    ids = tokenizer.encode(text)
    capsys.readouterr()
    tok_eval.main(tok_eval.Config(show=text))
    line, numbers, summary = capsys.readouterr().out.splitlines()
    assert line.endswith("|\\xe6|\\x97|\\xa5|!")
    assert line.count("|") == len(ids) - 1
    assert numbers.split() == [str(i) for i in ids]
    assert summary == f"{len(ids)} tokens of 13 bytes, {13 / len(ids):.2f} bytes per token"
    coloured = tok_eval.shown(tokenizer, text, coloured=True).splitlines()[0]
    assert coloured.count("\033[97;44m") + coloured.count("\033[30;47m") == coloured.count("\033[0m") == len(ids)
    assert "0 tokens of 0 bytes" in tok_eval.shown(tokenizer, "", coloured=False)
