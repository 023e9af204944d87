"""Shards of documents: what is written is read, splits hold, mistakes are named."""

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import dataset, paths, text_import
from nanochat.command import UserError
from nanochat.dataset import (
    Config,
    default_source,
    iterate_documents,
    list_parquet_files,
    read_row_group,
    row_group_counts,
    split_files,
    write_shards,
)
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer


def documents_of(source: str) -> tuple[list[str], list[str]]:
    return list(iterate_documents("train", source)), list(iterate_documents("val", source))


def test_every_twentieth_document_is_held_out_and_none_is_lost(base_dir: Path) -> None:
    given_documents = [f"document {i}" for i in range(100)]
    write_shards(given_documents, "own")
    train, val = documents_of("own")
    assert val == [f"document {i}" for i in (19, 39, 59, 79, 99)]
    assert train == [text for text in given_documents if text not in val]


def test_the_last_shard_is_the_validation_shard_and_the_others_are_of_the_size_asked_for(base_dir: Path) -> None:
    files = write_shards(("x" * 100 for _ in range(200)), "own", shard_chars=3000, row_group_rows=7)
    assert [path.name for path in files] == [f"shard_{i:05d}.parquet" for i in range(8)]
    assert split_files("val", "own") == files[-1:]
    assert split_files("train", "own") == files[:-1]
    assert [sum(row_group_counts(path)) for path in files] == [30, 30, 30, 30, 30, 30, 10, 10]
    assert row_group_counts(files[0]) == [7, 7, 7, 7, 2]
    assert read_row_group(files[0], 4) == ["x" * 100] * 2


def test_a_row_without_text_is_an_empty_one(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "shard.parquet")
    assert read_row_group(tmp_path / "shard.parquet", 0) == ["a", ""]


def test_documents_are_read_without_waiting_for_pandas(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "shard.parquet")
    program = (
        "import json, numpy, sys\nfrom pathlib import Path\nfrom nanochat.dataset import read_row_group_array, taken\n"
        "texts = taken(read_row_group_array(Path(sys.argv[1]), 0), numpy.array([1, 0]))\n"
        "print(json.dumps([texts.to_pylist(), 'pandas' in sys.modules]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "shard.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["b", "a"], False]


def test_what_a_kill_left_of_a_source_half_replaced_is_put_back(base_dir: Path) -> None:
    """The next import used to delete it, whatever became of that import."""
    write_shards(["the old text of this source"], "own")
    folder = paths.data_dir("own")
    folder.rename(folder.with_name(".own.old"))
    with pytest.raises(UserError, match="no text for 'own'"):
        write_shards([], "own")
    assert "".join(iterate_documents("train", "own")).startswith("the old")
    write_shards(["the new text of this source"], "own")
    assert "".join(iterate_documents("train", "own")).startswith("the new")


def test_of_two_imports_into_one_source_the_second_waits(base_dir: Path) -> None:
    """It used to delete the first one's half-written shards."""
    began, go = threading.Event(), threading.Event()

    def slow_texts() -> Iterator[str]:
        began.set()
        assert go.wait(60)
        yield "the first text of this source"

    first = threading.Thread(target=write_shards, args=(slow_texts(), "own"))
    second = threading.Thread(target=write_shards, args=(["the second text of this source"], "own"))
    first.start()
    assert began.wait(60)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go.set()
    first.join()
    second.join()
    assert "".join(iterate_documents("train", "own")).startswith("the second")


def test_one_document_still_gives_a_training_and_a_validation_part(base_dir: Path) -> None:
    text = " ".join(f"word{i}" for i in range(1000))
    write_shards([text], "book")
    train, val = documents_of("book")
    assert "".join(train + val) == text
    assert len(val[0]) == pytest.approx(len(text) / 10, rel=0.05)
    assert train[0].endswith(" ")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=2, max_size=40), min_size=1, max_size=60))
def test_whatever_the_documents_no_character_is_lost(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(tmp_path_factory.mktemp("base")))
        kept = [text for text in texts if text.strip()]
        try:
            write_shards(texts, "own")
        except UserError:
            assert len(kept) < 20  # a few documents of a character and blanks have no tenth to give
            return
        train, val = documents_of("own")
        assert train
        assert val
        if len(kept) >= 20:
            assert sorted(train + val) == sorted(kept)
        else:
            assert sum(map(len, train + val)) <= sum(map(len, kept))


def test_a_corpus_without_text_is_refused_and_leaves_what_was_there(base_dir: Path) -> None:
    write_shards(["one two three"], "own")
    before = documents_of("own")
    with pytest.raises(UserError, match="no text for 'own'"):
        write_shards(["", "   "], "own")
    assert documents_of("own") == before
    assert {p.name for p in paths.data_dir().iterdir()} == {"own", ".own.lock"}


def test_a_failure_on_the_way_leaves_what_was_there(base_dir: Path) -> None:
    write_shards(["one two three"], "own")

    def broken() -> object:
        yield from (f"document {i}" for i in range(50))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(broken(), "own", shard_chars=100)
    assert documents_of("own")[0] == ["one two "]
    assert {p.name for p in paths.data_dir().iterdir()} == {"own", ".own.lock"}


def test_the_default_source_is_the_public_one_else_the_only_one_else_a_question(base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"python -m nanochat\.tinyworld"):
        default_source()
    write_shards(["a b"], "mine")
    assert default_source() == "mine"
    write_shards(["a b"], "other")
    with pytest.raises(UserError, match=r"mine, other.*--data=NAME"):
        default_source()
    write_shards(["a b"], "fineweb-edu")
    assert default_source() == "fineweb-edu"
    assert list_parquet_files()[0].parent.name == "fineweb-edu"


def test_an_unknown_source_is_answered_with_the_known_ones(base_dir: Path) -> None:
    write_shards(["a b"], "mine")
    with pytest.raises(UserError, match=r"no source called 'yours'.*mine"):
        list_parquet_files("yours")


def test_a_source_with_one_shard_is_no_source_to_train_on(base_dir: Path) -> None:
    files = write_shards(["a b"], "mine")
    files[0].unlink()
    with pytest.raises(UserError, match=r"shard_00001.parquet is the only shard"):
        split_files("train", "mine")


def test_unreadable_shards_are_named(base_dir: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    empty.touch()
    garbage = tmp_path / "garbage.parquet"
    garbage.write_bytes(b"PAR1 nothing of the kind PAR1")
    wrong = tmp_path / "wrong.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), wrong)
    bare = tmp_path / "bare.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), bare)
    for path, message in (
        (empty, r"empty.parquet is no readable parquet file \(0 bytes\)"),
        (garbage, "garbage.parquet is no readable"),
        (wrong, "wrong.parquet has no column 'text'; it has content"),
        (bare, "bare.parquet holds no documents"),
    ):
        with pytest.raises(UserError, match=message):
            row_group_counts(path)


def test_a_shard_with_a_damaged_row_group_is_named(base_dir: Path) -> None:
    path = write_shards([f"document {i} " * 50 for i in range(100)], "own")[0]
    data = bytearray(path.read_bytes())
    data[20:400] = bytes(380)
    path.write_bytes(data)
    with pytest.raises(UserError, match="row group 0 is unreadable"):
        read_row_group(path, 0)


@pytest.mark.parametrize("count", [0, -2, 1823])
def test_an_impossible_number_of_shards_is_told_the_possible_ones(count: int, base_dir: Path) -> None:
    with pytest.raises(UserError, match="1 to 1822"):
        dataset.main(Config(num_files=count))


def test_import_takes_txt_jsonl_gz_and_folders(
    base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes"
    (notes / "deep").mkdir(parents=True)
    (notes / "a.txt").write_bytes(b"one \xff two")
    (notes / "deep" / "b.md").write_text("# three", encoding="utf-8")
    with gzip.open(notes / "c.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"row {i}"}) + "\n" for i in range(30))
    dataset.main(Config(import_paths=(notes,)))
    printed = capsys.readouterr().out
    assert "32 documents" in printed
    assert "1 bytes or characters were not valid UTF-8" in printed
    train, val = documents_of("notes")
    assert train[:2] == ["one \ufffd two", "row 0"]
    assert len(train) == 31
    assert len(val) == 1
    with pytest.raises(UserError, match="'notes' is here already: --overwrite"):
        dataset.main(Config(import_paths=(notes,)))
    dataset.main(Config(import_paths=(notes,), overwrite=True))
    dataset.main(Config(info=True))
    assert "notes: 2 shards, 31 training and 1 validation documents" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    dataset.main(Config(import_paths=(tmp_path / "a.txt",), dry_run=True))
    dataset.main(Config(num_files=8, dry_run=True))
    assert "fineweb-edu: 9 shards to fetch, about 900 MB" in capsys.readouterr().out
    assert not base_dir.exists()


def test_real_shards_are_read_in_order(base_dir: Path, shared_data: Path) -> None:
    paths.data_dir().mkdir(parents=True)
    paths.data_dir("prose").symlink_to(shared_data / "prose")
    train, val = split_files("train"), split_files("val")
    assert [path.name for path in val] == ["shard_00007.parquet"]
    assert len(train) == 7
    table = pyarrow.parquet.read_table(val[0], columns=["text"])
    assert list(iterate_documents("val")) == table.column("text").to_pylist()


def test_what_is_here_is_said_also_when_there_is_a_choice_to_make(
    base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(["a b"], "mine")
    dataset.main(Config())
    assert "commands read 'mine'" in capsys.readouterr().out
    write_shards(["a b"], "other")
    dataset.main(Config())
    assert "several sources are here: name one with --data=NAME" in capsys.readouterr().out
    write_shards(["a b"], "fineweb-edu")
    dataset.main(Config())
    assert "commands read 'fineweb-edu'" in capsys.readouterr().out


def test_repeated_documents_are_dropped_and_counted_and_standard_input_is_read(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"text": text}) + "\n" for text in ("one two", "three four", "one two", " ", "one two")]
    (tmp_path / "in").write_text("".join(rows), encoding="utf-8")
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        dataset.main(Config(import_paths=(text_import.STDIN,)))
    printed = capsys.readouterr().out
    assert "2 documents, 17 characters" in printed
    assert "1 empty documents and 2 repeated ones were left out" in printed
    assert default_source() == "stdin"


def test_the_survey_counts_documents_characters_and_tokens_and_shows_some(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"Document {i} says  é\n" for i in range(1000)]
    write_shards(texts, "own", shard_chars=5000, row_group_rows=50)
    dataset.main(Config(info=True))
    printed = capsys.readouterr().out
    assert f"950 training and 50 validation documents, {sum(map(len, texts)):,} characters, 0.0 MB" in printed
    assert printed.count("'Document ") == 3
    assert "says é'" in printed
    assert "python -m scripts.tok_train" in printed
    RustBPETokenizer.train_from_iterator(texts, vocab_size=300).save(paths.tokenizer_dir())
    tokenizer = get_tokenizer()
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    dataset.main(Config(info=True, source="own"))
    assert f" {tokens:,} tokens of this tokenizer" in capsys.readouterr().out
    monkeypatch.setattr(dataset, "SURVEY_BYTES", 5000)
    found = dataset.survey("own", tokenizer)
    assert 0 < found.share < 1
    assert found.characters == pytest.approx(sum(map(len, texts)), rel=0.05)
    assert found.tokens == pytest.approx(tokens, rel=0.05)
    assert (found.training, found.validation) == (950, 50)


def test_fetching_and_importing_at_once_is_refused(base_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give one of them"):
        dataset.main(Config(num_files=2, import_paths=(tmp_path,)))


def test_flags_are_those_that_people_know() -> None:
    assert tyro.cli(Config, args=["-n", "450", "-w", "2"]) == Config(num_files=450, num_workers=2)
    assert tyro.cli(Config, args=["--import", "a", "b", "--source", "s"]).import_paths == (Path("a"), Path("b"))
    assert tyro.cli(Config, args=["-n", "-1", "--dry_run"]) == Config(num_files=-1, dry_run=True)
