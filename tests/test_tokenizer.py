"""The tokenizer, its files, and the same ids by tiktoken and by Hugging Face's library."""

import base64
import gzip
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.registry
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import rustbpe
from nanochat import paths
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message, Part
from nanochat.tokenizer import (
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    HuggingFaceTokenizer,
    RustBPETokenizer,
    get_token_bytes,
    get_tokenizer,
)
from nanochat.tokenizer_files import byte_alphabet

TEXTS = ["The cat's on the mat; isn't it? It was 1234 years ago.\n\n  Yes, über 日本語 and so on.\t\n"] * 3 + [
    "the " * 9
]


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(TEXTS, 320)


@pytest.fixture(scope="module")
def hugging_face(tokenizer: RustBPETokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


# --- vocabulary -------------------------------------------------------------------------------------------------------


def test_the_special_tokens_come_last_in_the_order_that_the_project_names(tokenizer: RustBPETokenizer) -> None:
    assert " ".join(SPECIAL_TOKENS) == (
        "<|bos|> <|user_start|> <|user_end|> <|assistant_start|> <|assistant_end|> "
        "<|python_start|> <|python_end|> <|output_start|> <|output_end|>"
    )
    assert tokenizer.get_vocab_size() == 320
    assert [tokenizer.encode_special(name) for name in SPECIAL_TOKENS] == list(range(311, 320))
    assert tokenizer.get_bos_token_id() == 311
    assert set(tokenizer.get_special_tokens()) == set(SPECIAL_TOKENS)
    assert tokenizer.id_to_token(311) == "<|bos|>"
    assert tokenizer.id_to_token(97) == "a"


def test_text_that_spells_a_special_token_stays_text(tokenizer: RustBPETokenizer) -> None:
    for name in SPECIAL_TOKENS:
        ids = tokenizer.encode(f"x{name}y")
        assert max(ids) < 311
        assert tokenizer.decode(ids) == f"x{name}y"


def test_the_merges_are_those_of_the_crate() -> None:
    bpe = rustbpe.Tokenizer()
    bpe.train_from_iterator(TEXTS, 311, pattern=SPLIT_PATTERN)
    ours = RustBPETokenizer.train_from_iterator(TEXTS, 320).to_tiktoken()
    assert [ours.decode_single_token_bytes(i) for i in range(311)] == [t for t, _ in bpe.get_mergeable_ranks()]


def test_a_token_has_two_digits_at_most() -> None:
    tokenizer = RustBPETokenizer.train_from_iterator(["123456 123456"] * 9, 400)
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("1234567")] == ["12", "34", "56", "7"]


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=80) | st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "bos", " "])).map("".join))
def test_no_text_gives_a_special_token_unless_it_is_allowed(tokenizer: RustBPETokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert max(ids, default=0) < 311
    assert tokenizer.decode(ids) == text
    allowed = tokenizer.to_tiktoken().encode(text, allowed_special="all")
    assert tokenizer.encode(text, allowed_special="all") == allowed
    assert tokenizer.decode(allowed) == text


def test_only_the_special_tokens_that_are_named_are_read(tokenizer: RustBPETokenizer) -> None:
    text = "<|bos|>a<|user_start|>b"
    bos, start = tokenizer.encode_special("<|bos|>"), tokenizer.encode_special("<|user_start|>")
    ids = tokenizer.encode(text, allowed_special={"<|bos|>"})
    assert ids == [bos, *tokenizer.encode("a<|user_start|>b")]
    assert tokenizer.encode([text], prepend=start, allowed_special={"<|bos|>"}) == [[start, *ids]]
    with pytest.raises(UserError, match=r"no special token is called '<\|eos\|>'"):
        tokenizer.encode(text, allowed_special=["<|eos|>"])


def test_a_small_corpus_gives_fewer_tokens_and_the_special_ones_still_come_last() -> None:
    tokenizer = RustBPETokenizer.train_from_iterator(["abc"], 5000)
    assert tokenizer.get_vocab_size() == 258 + 9
    assert tokenizer.get_bos_token_id() == 258


def test_bytes_per_token_are_those_of_the_text_and_none_for_special_tokens(tokenizer: RustBPETokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert len(lengths) == 320
    assert lengths[-9:] == [0] * 9
    ids = tokenizer.encode(TEXTS[0])
    assert sum(lengths[i] for i in ids) == len(TEXTS[0].encode())


# --- encode and decode ------------------------------------------------------------------------------------------------


def test_prepend_and_append_take_ids_and_names(tokenizer: RustBPETokenizer) -> None:
    plain = tokenizer.encode("the cat")
    assert tokenizer.encode("the cat", prepend="<|bos|>", append=5) == [311, *plain, 5]
    assert tokenizer.encode(["the cat", ""], prepend=311, append="<|user_end|>") == [[311, *plain, 313], [311, 313]]
    assert tokenizer(["the cat"], num_threads=2) == [plain]
    assert tokenizer("the cat") == plain
    assert tokenizer.encode([]) == []


def test_decoding_writes_special_tokens_by_name(tokenizer: RustBPETokenizer) -> None:
    ids = [311, *tokenizer.encode("é"), 312]
    assert tokenizer.decode(ids) == "<|bos|>é<|user_start|>"
    assert tokenizer.decode_bytes(ids) == "<|bos|>é<|user_start|>".encode()
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert tokenizer.decode([]) == ""


@settings(deadline=None)
@given(st.lists(st.integers(0, 319)))
def test_decoding_equals_tiktokens_on_any_ids(ids: list[int]) -> None:
    tokenizer = RustBPETokenizer.train_from_iterator(TEXTS, 320)
    assert tokenizer.decode_bytes(ids) == tokenizer.to_tiktoken().decode_bytes(ids)


@settings(deadline=None)
@given(text=st.text())
def test_any_text_gives_the_same_ids_by_tiktoken(tokenizer: RustBPETokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == tokenizer.to_tiktoken().encode_ordinary(text)
    assert tokenizer.decode(ids) == text


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.sampled_from("aT'sſ é1²3日\n\r\t .,😀\u00a0\u2028"), max_size=30))
def test_the_hugging_face_file_gives_the_same_ids(
    tokenizer: RustBPETokenizer, hugging_face: tokenizers.Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert hugging_face.encode(text).ids == ids
    assert hugging_face.decode(ids) == text


def test_real_text_gives_the_same_ids_by_all_three(shared_data: Path, tmp_path: Path) -> None:
    with gzip.open(shared_data / "multilingual" / "xquad_passages.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][::20]
    tokenizer = RustBPETokenizer.train_from_iterator(texts, 3000)
    tokenizer.save(tmp_path)
    hugging_face = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rows = tokenizer.encode(texts)
    assert rows == [encoding.ids for encoding in hugging_face.encode_batch(texts)]
    assert rows == tokenizer.to_tiktoken().encode_ordinary_batch(texts)


def test_a_whole_word_that_merging_never_reaches_is_found_by_both(tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    ranks = [*(bytes([i]) for i in range(256)), b"xyz"]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(ranks)))
    tokenizer = RustBPETokenizer.from_tiktoken_file(path)
    tokenizer.save(tmp_path)
    hugging_face = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("xyz xyz") == [256, 32, *b"xyz"]
    assert hugging_face.encode("xyz xyz").ids == [256, 32, *b"xyz"]


def test_the_hugging_face_file_knows_the_special_tokens(
    tokenizer: RustBPETokenizer, hugging_face: tokenizers.Tokenizer
) -> None:
    assert hugging_face.get_vocab_size() == tokenizer.get_vocab_size()
    assert [hugging_face.token_to_id(name) for name in SPECIAL_TOKENS] == list(range(311, 320))
    assert hugging_face.encode("<|bos|>the").ids == [311, *tokenizer.encode("the")]


def test_the_alphabet_is_that_of_gpt2(shared_data: Path) -> None:
    vocabulary = json.loads((shared_data / "tokenizer_reference" / "gpt2_vocab.json").read_text(encoding="utf-8"))
    assert {character for character in vocabulary if len(character) == 1} == set(byte_alphabet())
    assert byte_alphabet()[ord(" ")] == "Ġ"
    assert byte_alphabet()[ord("\n")] == "Ċ"


# --- files ------------------------------------------------------------------------------------------------------------


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


# --- files that others wrote ------------------------------------------------------------------------------------------

AWKWARD = [
    *TEXTS,
    "",
    "  the   cat \t\n\r\n\n sat ",
    "\x00\x7f\u0085\u00a0 it's IT'S ſ'S don’t 1234567 ²³ Ⅷ ١٢",
    "e\u0301 é \ufeff 👩‍👩‍👧 🇩🇪 ไทย हिन्दी \U0010ffff ĠĊ",
    "<|bos|>the<|user_start|> cat<|end|>",
]
GPT4_SPLIT = tokenizers.pre_tokenizers.Split(tokenizers.Regex(rustbpe.GPT4_PATTERN), behavior="isolated")
GPT4_MATCHES = tokenizers.pre_tokenizers.Split(tokenizers.Regex(rustbpe.GPT4_PATTERN), behavior="removed", invert=True)


def foreign(
    split: tokenizers.pre_tokenizers.PreTokenizer | None = None, texts: Sequence[str] = TEXTS
) -> tokenizers.Tokenizer:
    """A vocabulary that Hugging Face's library trained, of bytes cut as GPT-2 did or by `split`."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level]) if split else byte_level
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens(["<|end|>", "<|bos|>"])
    return library


@pytest.mark.parametrize("split", [None, GPT4_SPLIT, GPT4_MATCHES], ids=["gpt2", "gpt4", "gpt4 matches"])
def test_a_vocabulary_that_others_trained_gives_the_same_ids(
    split: tokenizers.pre_tokenizers.PreTokenizer | None, tmp_path: Path
) -> None:
    library = foreign(split)
    library.save(str(tmp_path / "theirs.json"))
    tokenizer = RustBPETokenizer.from_huggingface_file(tmp_path / "theirs.json")
    assert tokenizer.get_vocab_size() == library.get_vocab_size()
    assert tokenizer.encode_special("<|end|>") == library.token_to_id("<|end|>")
    assert tokenizer.get_bos_token_id() == library.token_to_id("<|bos|>")
    tokenizer.save(tmp_path)
    for loaded in (tokenizer, RustBPETokenizer.from_directory(tmp_path)):
        for text in AWKWARD:
            ids = loaded.encode(text, allowed_special="all")
            assert ids == library.encode(text).ids
            assert loaded.decode(ids) == library.decode(ids, skip_special_tokens=False) == text
        assert max(loaded.encode(AWKWARD[-1])) < loaded.encode_special("<|end|>")


def test_what_the_other_class_trains_is_loaded_by_ours(tmp_path: Path) -> None:
    theirs = HuggingFaceTokenizer.train_from_iterator(TEXTS, 320)
    theirs.save(tmp_path)
    ours = RustBPETokenizer.from_huggingface_file(tmp_path / "tokenizer.json")
    assert ours.encode(AWKWARD) == theirs.encode(AWKWARD)
    assert ours.get_bos_token_id() == theirs.get_bos_token_id()


def test_our_own_file_is_loaded_without_its_neighbour(tokenizer: RustBPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = RustBPETokenizer.from_huggingface_file(tmp_path / "tokenizer.json")
    assert loaded.tiktoken_parameters() == tokenizer.tiktoken_parameters()


def test_the_vocabulary_of_gpt2_is_loaded_as_its_repository_writes_it(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "tokenizer_reference"
    stored = json.loads(foreign().to_str())
    merges = (folder / "gpt2_merges.txt").read_text(encoding="utf-8").splitlines()
    model = {"dropout": None, "unk_token": "", "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    model["vocab"] = json.loads((folder / "gpt2_vocab.json").read_text(encoding="utf-8"))
    model["merges"] = [line for line in merges if line and not line.startswith("#version")]
    stored["added_tokens"] = [stored["added_tokens"][0] | {"content": "<|endoftext|>", "id": 50256}]
    del stored["pre_tokenizer"]["use_regex"]
    path = tmp_path / "gpt2.json"
    path.write_text(json.dumps(stored | {"model": model}), encoding="utf-8")
    tokenizer = RustBPETokenizer.from_huggingface_file(path)
    assert tokenizer.get_vocab_size() == 50257
    assert tokenizer.get_bos_token_id() == tokenizer.encode_special("<|endoftext|>") == 50256
    # ids that every text about GPT-2 shows
    assert tokenizer.encode("Hello, world!") == [15496, 11, 995, 0]
    library = tokenizers.Tokenizer.from_file(str(path))
    assert tokenizer.encode(AWKWARD) == [library.encode(text).ids for text in AWKWARD]


def every_split(tokens: list[str]) -> list[list[str]]:
    """All pairs of tokens that make a token, as files list them that were made of tiktoken's ranks."""
    rank = {token: i for i, token in enumerate(tokens)}
    pairs = [(token[:cut], token[cut:]) for token in tokens for cut in range(1, len(token))]
    return [[left, right] for left, right in pairs if left in rank and right in rank]


def test_a_list_of_all_pairs_that_make_a_token_is_as_good(tmp_path: Path) -> None:
    runs = ["a" * length for length in range(1, 40)] + ["ab" * length + "ba" * (length // 2) for length in range(1, 30)]
    stored = json.loads(foreign(GPT4_SPLIT, runs).to_str())
    vocabulary = stored["model"]["vocab"]
    before = len(stored["model"]["merges"])
    stored["model"]["merges"] = every_split(sorted(vocabulary, key=vocabulary.get))
    assert len(stored["model"]["merges"]) > before
    path = tmp_path / "all.json"
    path.write_text(json.dumps(stored), encoding="utf-8")
    tokenizer, library = RustBPETokenizer.from_huggingface_file(path), tokenizers.Tokenizer.from_file(str(path))
    for text in [*AWKWARD, *runs, "bb".join(runs)]:
        assert tokenizer.encode(text, allowed_special="all") == library.encode(text).ids


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_is_accepted_gives_the_same_ids(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    tokens, merges = list("abc"), []
    for _ in range(data.draw(st.integers(1, 8))):
        left, right = data.draw(st.sampled_from(tokens)), data.draw(st.sampled_from(tokens))
        if left + right not in vocabulary:
            tokens.append(left + right)
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
    stored = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    stored["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ignored = data.draw(st.booleans())
    stored["model"] |= {"vocab": vocabulary, "merges": merges, "ignore_merges": ignored}
    path = tmp_path_factory.mktemp("random") / "tokenizer.json"
    path.write_text(json.dumps(stored), encoding="utf-8")
    try:
        tokenizer = RustBPETokenizer.from_huggingface_file(path)
    except UserError:
        assume(False)
    library = tokenizers.Tokenizer.from_file(str(path))
    for text in data.draw(st.lists(st.text("abc", max_size=16), max_size=20)):
        assert tokenizer.encode(text) == library.encode(text).ids


def no_bpe(stored: Any) -> None:
    stored["model"] = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}


def no_model(stored: Any) -> None:
    del stored["model"]


def prefix_space(stored: Any) -> None:
    stored["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def two_regexes(stored: Any) -> None:
    stored["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = True


def two_splits(stored: Any) -> None:
    stored["pre_tokenizer"]["pretokenizers"].insert(0, stored["pre_tokenizer"]["pretokenizers"][0])


def no_split(stored: Any) -> None:
    del stored["pre_tokenizer"]["pretokenizers"][0]


def no_steps(stored: Any) -> None:
    stored["pre_tokenizer"]["pretokenizers"] = []


def other_behavior(stored: Any) -> None:
    stored["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"


def inverted(stored: Any) -> None:
    stored["pre_tokenizer"]["pretokenizers"][0]["invert"] = True


def split_by_string(stored: Any) -> None:
    stored["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"String": " "}


def gaps(stored: Any) -> None:
    stored["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{L}+| ?\p{N}"}


def no_regex(stored: Any) -> None:
    stored["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "("}


def other_pre_tokenizer(stored: Any) -> None:
    stored["pre_tokenizer"] = {"type": "Whitespace"}


def no_pre_tokenizer(stored: Any) -> None:
    stored["pre_tokenizer"] = None


def merges_turned(stored: Any) -> None:
    stored["model"]["merges"].reverse()


def merge_of_others(stored: Any) -> None:
    stored["model"]["merges"][0] = ["z", "z"]


def merge_of_three(stored: Any) -> None:
    stored["model"]["merges"][0] = "t h e"


def merge_missing(stored: Any) -> None:
    stored["model"]["merges"].pop()


def merged_otherwise(stored: Any) -> None:
    """ "xyz" of "xy" and "z", though "yz" merges before "xy"."""
    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    stored["model"]["vocab"] = vocabulary | {"yz": 256, "xy": 257, "xyz": 258}
    stored["model"]["merges"] = [["y", "z"], ["x", "y"], ["xy", "z"]]
    stored["added_tokens"] = []


def token_unreached(stored: Any) -> None:
    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    stored["model"] |= {"vocab": vocabulary | {"xyz": 256}, "merges": []}
    stored["added_tokens"] = []


def token_found_whole_only(stored: Any) -> None:
    """Ranks make "cacb" of "ca" and "cb", whose own rank is higher; the file's merges never do."""
    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    stored["model"]["vocab"] = vocabulary | {"ca": 256, "ac": 257, "acb": 258, "cacb": 259, "cb": 260}
    stored["model"]["merges"] = [["c", "a"], ["a", "c"], ["ac", "b"], ["c", "acb"], ["c", "b"]]
    stored["model"]["ignore_merges"] = True
    stored["added_tokens"] = []


def special_first(stored: Any) -> None:
    vocabulary = stored["model"]["vocab"]
    stored["model"]["vocab"] = {"<s>": 0} | {token: i + 1 for token, i in vocabulary.items()}
    stored["added_tokens"] = [stored["added_tokens"][0] | {"content": "<s>", "id": 0}]


def special_far(stored: Any) -> None:
    stored["added_tokens"][1]["id"] += 7


def hole(stored: Any) -> None:
    stored["added_tokens"] = []
    del stored["model"]["vocab"]["a"]


def byte_missing(stored: Any) -> None:
    stored["model"] |= {"vocab": {"a": 0}, "merges": []}
    stored["added_tokens"] = []


def other_alphabet(stored: Any) -> None:
    stored["model"] |= {"vocab": {"a": 0, "日": 1}, "merges": []}
    stored["added_tokens"] = []


def added_foreign(stored: Any) -> None:
    stored["added_tokens"] = ["<s>"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_bpe, "its model must be BPE with vocab and merges, and is WordPiece"),
        (no_model, "its model must be BPE with vocab and merges, and is missing"),
        ({"byte_fallback": True}, "its model has byte_fallback True"),
        ({"dropout": 0.1}, "its model has dropout 0.1"),
        ({"continuing_subword_prefix": "##"}, "its model has continuing_subword_prefix '##'"),
        ({"end_of_word_suffix": "</w>"}, "its model has end_of_word_suffix '</w>'"),
        ({"normalizer": {"type": "NFC"}}, 'its normalizer changes the text: {"type": "NFC"}'),
        (prefix_space, "its pre-tokenizer must be"),
        (two_regexes, "its pre-tokenizer must be"),
        (two_splits, "its pre-tokenizer must be"),
        (no_split, "its pre-tokenizer must be"),
        (no_steps, "its pre-tokenizer must be"),
        (other_behavior, "its pre-tokenizer must be"),
        (inverted, "its pre-tokenizer must be"),
        (split_by_string, "its pre-tokenizer must be"),
        (other_pre_tokenizer, 'and is {"type": "Whitespace"}'),
        (no_pre_tokenizer, "and is null"),
        (gaps, "its split pattern leaves out a part of"),
        (no_regex, "the split pattern is no valid regular expression"),
        (merges_turned, "its merges are in another order than the ids"),
        (merge_of_others, "its merge of 'z' and 'z' has parts or a result that are no tokens"),
        (merge_of_three, "its merge 't h e' is no pair"),
        (merge_missing, "its merges lack"),
        (merged_otherwise, "its merges lack 'x' and 'yz', of which ranks make 'xyz'"),
        (token_unreached, "ranks alone never make 1 of its tokens"),
        (token_found_whole_only, "ranks alone never make 1 of its tokens"),
        (special_first, "its added token '<s>' has id 0, and must follow the ordinary tokens"),
        (special_far, "its added tokens must have ids in a row"),
        (hole, "ordinary tokens must have the ids from 0 to"),
        (byte_missing, "byte 0 has no token"),
        (other_alphabet, "its token '日' is not spelled in the alphabet of bytes"),
        (added_foreign, "is no tokenizer.json of Hugging Face's"),
        (b'{"model": ', "is damaged (no JSON)"),
        (b"\xff\xfe", "is damaged (no JSON)"),
        (b"[1]", "it must be a JSON object, and is [1]"),
        (None, "cannot be read (No such file or directory)"),
    ],
    ids=lambda part: getattr(part, "__name__", None) or str(part)[:40],
)
def test_a_foreign_file_that_ranks_cannot_tell_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    stored = json.loads(foreign(GPT4_SPLIT).to_str())
    path = tmp_path / "theirs.json"
    if isinstance(change, dict):
        (stored if "normalizer" in change else stored["model"]).update(change)
    elif callable(change):
        change(stored)
    if change is not None:
        path.write_bytes(change if isinstance(change, bytes) else json.dumps(stored).encode())
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        RustBPETokenizer.from_huggingface_file(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_tiktoken_finds_the_tokenizer_of_the_base_directory_by_name(
    base_dir: Path, tokenizer: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    tokenizer.save(paths.tokenizer_dir())
    encoding = tiktoken.get_encoding("nanochat")
    assert encoding.encode_ordinary(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert encoding.encode("<|bos|>", allowed_special="all") == [311]


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    [example] = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Tokenizer" in code]
    exec(example, {})
    assert (tmp_path / "my_tokenizer" / "tokenizer.json").is_file()


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_sentence(tokenizer: RustBPETokenizer) -> None:
    with pytest.raises(UserError, match=r"vocab_size must be at least 265 .*, got 264"):
        RustBPETokenizer.train_from_iterator([], 264)
    with pytest.raises(UserError, match=r"no special token is called '<\|eos\|>'"):
        tokenizer.encode("x", prepend="<|eos|>")
    for wrong in (320, -1):
        for ids in ([wrong], [311, wrong]):
            with pytest.raises(UserError, match=f"id {wrong} is not in the vocabulary, whose ids go from 0 to 319"):
                tokenizer.decode(ids)
    for text in ("ab\ud800", ["ab\ud800"]):
        with pytest.raises(UserError, match="a lone surrogate stands at character 2"):
            tokenizer.encode(text)


# --- conversations ----------------------------------------------------------------------------------------------------


def test_a_conversation_and_its_plain_form_render_alike(tokenizer: RustBPETokenizer) -> None:
    plain = {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "the cat <|bos|>"},
            {"role": "assistant", "content": [{"type": "text", "text": "six "}, {"type": "python", "text": "2*3"}]},
        ]
    }
    conversation = Conversation(
        [
            Message("system", "Be kind."),
            Message("user", "the cat <|bos|>"),
            Message("assistant", [Part("text", "six "), Part("python", "2*3")]),
        ]
    )
    ids, mask = tokenizer.render_conversation(plain)
    assert (
        (ids, mask) == tokenizer.render_conversation(conversation) == tokenizer.render_conversation(plain["messages"])
    )
    assert tokenizer.decode(ids) == (
        "<|bos|><|user_start|>Be kind.\n\nthe cat <|bos|><|user_end|>"
        "<|assistant_start|>six <|python_start|>2*3<|python_end|><|assistant_end|>"
    )
    said = tokenizer.decode([i for i, bit in zip(ids, mask, strict=True) if bit])
    assert said == "six <|python_start|>2*3<|python_end|><|assistant_end|>"
    assert tokenizer.render_conversation(plain, max_tokens=7) == (ids[:7], mask[:7])
    assert tokenizer.decode(tokenizer.render_for_completion(plain)).endswith("<|user_end|><|assistant_start|>")


def test_the_picture_of_a_tokenization_is_green_where_it_is_trained_on(tokenizer: RustBPETokenizer) -> None:
    assert tokenizer.visualize_tokenization([97, 311], [1, 0]) == "\033[92ma\033[0m|\033[91m<|bos|>\033[0m"
