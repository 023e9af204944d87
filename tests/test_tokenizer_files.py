"""The tokenizer's files: what is saved is loaded, also by tiktoken, and a damaged or strange one is told."""

import hashlib
import json
import re
import warnings
from pathlib import Path

import pytest
import tiktoken
import tiktoken.registry
import tokenizers
from slow_bpe import TEXTS

import rustbpe
from nanochat import paths
from nanochat.command import UserError
from nanochat.tokenizer import SPLIT_PATTERN, RustBPETokenizer, get_token_bytes, get_tokenizer
from nanochat.tokenizer_files import byte_alphabet


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(TEXTS, 320)


def test_what_is_saved_is_loaded(base_dir: Path, tokenizer: RustBPETokenizer) -> None:
    tokenizer.save(paths.tokenizer_dir())
    assert sorted(path.name for path in paths.tokenizer_dir().iterdir()) == ["meta.json", "tokenizer.json"]
    loaded = get_tokenizer()
    assert loaded.tiktoken_parameters() == tokenizer.tiktoken_parameters()
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert get_token_bytes().tolist() == tokenizer.token_bytes()
    meta = json.loads((paths.tokenizer_dir() / "meta.json").read_text(encoding="utf-8"))
    assert meta["pattern"] == SPLIT_PATTERN
    assert meta["unicode_version"] == rustbpe.UNICODE_VERSION
    assert meta["token_bytes"] == tokenizer.token_bytes()


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RustBPETokenizer.train_from_iterator(TEXTS, 320).save(tmp_path / name)
    for file in ("tokenizer.json", "meta.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_missing_tokenizer_names_the_command_that_makes_one(base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is missing: train one with `python -m scripts\.tok_train`"):
        get_tokenizer()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "missing"),
        ("meta.json", None, "missing"),
        ("tokenizer.json", b'{"model": ', "not the file that meta.json was written for"),
        ("meta.json", b'{"pattern": ', "damaged"),
        ("meta.json", b"[]", "no tokenizer of nanochat"),
        ("meta.json", b"{}", "not the file that meta.json was written for"),
    ],
)
def test_a_damaged_file_is_told(
    tokenizer: RustBPETokenizer, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    tokenizer.save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        RustBPETokenizer.from_directory(tmp_path)
    assert "python -m scripts.tok_train" in str(raised.value)
    assert str(tmp_path / file) in str(raised.value) or "tokenizer.json" in str(raised.value)


def test_an_edited_file_is_told(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<|bos|>", "<|BOS|>"), encoding="utf-8")
    with pytest.raises(UserError, match=r"not the file that meta\.json was written for"):
        RustBPETokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("change", ["foreign", "token_bytes", "special_ids", "pattern"])
def test_a_foreign_file_with_a_fitting_hash_is_told(tokenizer: RustBPETokenizer, tmp_path: Path, change: str) -> None:
    tokenizer.save(tmp_path)
    plain = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    meta = json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))
    if change == "foreign":
        plain["model"] = {"type": "WordPiece", "vocab": {"hello": 0}}
    elif change == "token_bytes":
        meta["token_bytes"][5] = 7
    elif change == "special_ids":
        plain["added_tokens"][0]["id"] = 3
    else:
        meta["pattern"] = "("
    text = json.dumps(plain).encode()
    meta["sha256"] = hashlib.sha256(text).hexdigest()
    (tmp_path / "tokenizer.json").write_bytes(text)
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(UserError, match="is no tokenizer of nanochat"):
        RustBPETokenizer.from_directory(tmp_path)


def test_another_unicode_version_is_told_once(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "meta.json"
    path.write_text(path.read_text(encoding="utf-8").replace(rustbpe.UNICODE_VERSION, "9.0.0"), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"made with Unicode 9\.0\.0"):
        RustBPETokenizer.from_directory(tmp_path)
    tokenizer.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RustBPETokenizer.from_directory(tmp_path)


def test_our_own_file_is_loaded_without_its_neighbour(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = RustBPETokenizer.from_huggingface_file(tmp_path / "tokenizer.json")
    assert loaded.tiktoken_parameters() == tokenizer.tiktoken_parameters()


def test_the_alphabet_is_that_of_gpt2(shared_data: Path) -> None:
    vocabulary = json.loads((shared_data / "tokenizer_reference" / "gpt2_vocab.json").read_text(encoding="utf-8"))
    assert {character for character in vocabulary if len(character) == 1} == set(byte_alphabet())
    assert byte_alphabet()[ord(" ")] == "Ġ"
    assert byte_alphabet()[ord("\n")] == "Ċ"


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    [example] = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Tokenizer" in code]
    exec(example, {})
    assert (tmp_path / "my_tokenizer" / "tokenizer.json").is_file()


# --- tiktoken's -------------------------------------------------------------------------------------------------------


def test_tiktokens_text_is_written_and_read(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    tokenizer.save_tiktoken_file(path)
    assert RustBPETokenizer.from_tiktoken_file(path).tiktoken_parameters() == tokenizer.tiktoken_parameters()


def test_the_vocabulary_of_gpt4_is_loaded_and_survives_our_own_file(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "tokenizer_reference" / "cl100k_base.tiktoken"
    tokenizer = RustBPETokenizer.from_tiktoken_file(path, rustbpe.GPT4_PATTERN)
    assert tokenizer.get_vocab_size() == 100_256 + 9
    # Ids that OpenAI's own documentation gives for cl100k_base.
    assert tokenizer.encode("tiktoken is great!") == [83, 1609, 5963, 374, 2294, 0]
    tokenizer.save(tmp_path)
    loaded = RustBPETokenizer.from_directory(tmp_path)
    hugging_face = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = (shared_data / "text" / "taylorswift.txt").read_text(encoding="utf-8")[:50_000]
    assert loaded.encode(text) == tokenizer.encode(text) == hugging_face.encode(text).ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"YQ== 0\nYg== one\n", "line 2: expected a token in base64 and its rank, got 'Yg== one'"),
        (b"!!! 0\n", "line 1"),
        (b"YQ==\n", "line 1"),
        (b"YQ== 0\n", "byte 0 has no token"),
        (b"YQ== -1\n", "cannot be used"),
        (b"", "byte 0 has no token"),
    ],
)
def test_a_wrong_tiktoken_file_is_told_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "wrong.tiktoken"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        RustBPETokenizer.from_tiktoken_file(path)


def test_tiktoken_finds_the_tokenizer_of_the_base_directory_by_name(
    base_dir: Path, tokenizer: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    tokenizer.save(paths.tokenizer_dir())
    encoding = tiktoken.get_encoding("nanochat")
    assert encoding.encode_ordinary(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert encoding.encode("<|bos|>", allowed_special="all") == [311]
