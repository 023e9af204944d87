"""The tokenizer by Hugging Face's library, beside ours on the same files."""

import gzip
import json
import re
import sys
import warnings
from base64 import b64encode
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_bpe import CUSTOM_PATTERN

import rustbpe
from nanochat.command import UserError
from nanochat.tokenizer import SPECIAL_TOKENS, HuggingFaceTokenizer, RustBPETokenizer
from nanochat.tokenizer_files import huggingface_json, merges_of_ranks
from rustbpe import PATTERNS

CORPUS = ["The cat's on the mat; isn't it? It was 1234 years ago.\n\n  Yes, über 日本語 and so on.\t\n"] * 3 + [
    "the " * 9
]
AWKWARD = [
    "",
    " ",
    "\x00\x01\x7f\u0085\u00a0",
    "  the   cat \t\n\r\n\n sat ",
    "aaaaaaaaaaaaaaaaa the the the",
    "it's IT'S ſ'S 'ſ don’t",
    "1234567890 ١٢٣٤ ²³ Ⅷ",
    "<|bos|><|user_start|>x<|user_end|> <|bos|",
    "日本語 한국어 ไทย हिन्दी עברית العربية",
    "e\u0301 é \ufeff\u200b\u200d 👩‍👩‍👧 🇩🇪 \U0010ffff",
    "ĠĊ is no space",
    "def f(x):\n\treturn x  # ...\n",
]
CHAT = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "the cat <|bos|>"},
        {"role": "assistant", "content": [{"type": "text", "text": "six "}, {"type": "python", "text": "2*3"}]},
    ]
}


@pytest.fixture(scope="module")
def ours() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(CORPUS, 320)


@pytest.fixture(scope="module")
def folder(ours: RustBPETokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    ours.save(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_directory(folder)


# --- our vocabulary by the other library ------------------------------------------------------------------------------


def test_it_knows_the_vocabulary_that_we_saved(ours: RustBPETokenizer, theirs: HuggingFaceTokenizer) -> None:
    assert theirs.get_vocab_size() == ours.get_vocab_size() == 320
    assert theirs.get_special_tokens() == set(SPECIAL_TOKENS)
    assert [theirs.encode_special(name) for name in SPECIAL_TOKENS] == list(range(311, 320))
    assert theirs.get_bos_token_id() == 311
    assert theirs.token_bytes() == ours.token_bytes()
    assert [theirs.id_to_token(i) for i in range(320)] == [ours.id_to_token(i) for i in range(320)]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_give_the_same_ids_and_come_back(
    ours: RustBPETokenizer, theirs: HuggingFaceTokenizer, text: str
) -> None:
    ids = ours.encode(text)
    assert theirs.encode(text) == theirs(text) == ids
    assert theirs.decode(ids) == text
    assert theirs.encode(text, allowed_special="all") == ours.encode(text, allowed_special="all")
    some = {"prepend": "<|bos|>", "append": 5, "allowed_special": ["<|user_start|>"]}
    assert theirs.encode([text, "x"], **some) == ours.encode([text, "x"], **some)


def test_a_batch_equals_its_texts(ours: RustBPETokenizer, theirs: HuggingFaceTokenizer) -> None:
    assert theirs.encode(AWKWARD) == ours.encode(AWKWARD) == [theirs.encode(text) for text in AWKWARD]
    assert theirs.encode([]) == []


@settings(deadline=None)
@given(st.lists(st.integers(0, 319), max_size=40))
def test_any_ids_decode_alike(ours: RustBPETokenizer, theirs: HuggingFaceTokenizer, ids: list[int]) -> None:
    assert theirs.decode_bytes(ids) == ours.decode_bytes(ids)
    assert theirs.decode(ids) == ours.decode(ids)


def test_conversations_render_alike(ours: RustBPETokenizer, theirs: HuggingFaceTokenizer) -> None:
    ids, mask = ours.render_conversation(CHAT)
    assert theirs.render_conversation(CHAT) == (ids, mask)
    assert theirs.render_conversation(CHAT, max_tokens=7) == (ids[:7], mask[:7])
    assert theirs.render_for_completion(CHAT) == ours.render_for_completion(CHAT)
    assert theirs.visualize_tokenization(ids, mask) == ours.visualize_tokenization(ids, mask)


def test_real_texts_give_the_same_ids(shared_data: Path, tmp_path: Path) -> None:
    paths = [path for path in sorted(shared_data.rglob("*")) if path.name.endswith((".txt", ".json", ".en", ".gz"))]
    texts = []
    for path in paths:
        plain = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        texts.append(plain.decode("utf-8", errors="replace")[:100_000])
    assert len(texts) > 20
    ours = RustBPETokenizer.train_from_iterator(texts, 3000)
    ours.save(tmp_path)
    theirs = HuggingFaceTokenizer.from_directory(tmp_path)
    for path, text, row, other in zip(paths, texts, ours.encode(texts), theirs.encode(texts), strict=True):
        assert row == other, path
        assert theirs.decode(other) == text, path


def test_transformers_loads_our_file_with_the_same_ids(ours: RustBPETokenizer, folder: Path) -> None:
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert len(loaded) == 320
    for text in AWKWARD:
        assert loaded(text, add_special_tokens=False).input_ids == ours.encode(text, allowed_special="all")
        assert loaded.decode(ours.encode(text), clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    "pattern", [r"\p{L}+", r"[^\p{L}]+", r"\p{L}+(?= )|\d", r"(?i:the|cat)|\s", r"(.)\1", r"a*|b", CUSTOM_PATTERN]
)
def test_what_a_pattern_leaves_out_is_left_out_there_too(pattern: str, tmp_path: Path) -> None:
    ours = RustBPETokenizer.train_from_iterator(CORPUS, 300, pattern)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.save(tmp_path)
    theirs = HuggingFaceTokenizer.from_directory(tmp_path)
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    back = RustBPETokenizer.from_huggingface_file(tmp_path / "tokenizer.json")
    texts = [*AWKWARD, *CORPUS]
    assert theirs.encode(texts) == back.encode(texts) == ours.encode(texts)
    for text in texts:
        assert loaded(text, add_special_tokens=False).input_ids == ours.encode(text, allowed_special="all")


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"\p{N}{1,2}+", "1234", "{1,2}+"),
        (r"^\p{L}+", "a\nb", "^"),
        (r"\p{L}+$", "a\nb", "$"),
        (r"\w+", "x²", r"\w"),
        (r"\W+", "x²", r"\W"),
        (r".\b", "²x", r"\b"),
    ],
)
def test_a_pattern_that_the_other_engine_reads_otherwise_is_told(
    pattern: str, text: str, found: str, tmp_path: Path
) -> None:
    ours = RustBPETokenizer.train_from_iterator(["23 23 1234 a b x² ²x"], 300, pattern)
    with pytest.warns(UserWarning, match=f"means something else by {re.escape(repr(found))} in the split pattern"):
        ours.save(tmp_path)
    assert HuggingFaceTokenizer.from_directory(tmp_path).encode(text) != ours.encode(text)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text("ab", min_size=2, max_size=7), min_size=1, max_size=12, unique=True),
    st.lists(st.text("ab", max_size=20), max_size=30),
)
def test_ranks_that_no_training_gives_give_the_same_ids(tokens: list[str], texts: list[str]) -> None:
    ranks = [bytes([byte]) for byte in range(256)] + [token.encode() for token in tokens]
    bpe = rustbpe.Tokenizer.from_ranks([(token, rank) for rank, token in enumerate(ranks)], PATTERNS["gpt2"])
    stored = huggingface_json(ranks, merges_of_ranks(ranks, bpe.get_merges()), PATTERNS["gpt2"], {})
    library = tokenizers.Tokenizer.from_str(json.dumps(stored))
    for text in [*texts, *tokens, "".join(tokens)]:
        assert library.encode(text).ids == bpe.encode(text)


def test_a_token_that_only_higher_ranks_make_is_made_there_too(tmp_path: Path) -> None:
    ranks = [bytes([byte]) for byte in range(256)] + [b"abc", b"ab"]
    path = tmp_path / "ranks.tiktoken"
    path.write_text("".join(f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)))
    ours = RustBPETokenizer.from_tiktoken_file(path)
    assert ours.encode("abcd") == [256, ord("d")]
    ours.save(tmp_path)
    assert HuggingFaceTokenizer.from_directory(tmp_path).encode("abcd") == [256, ord("d")]
    assert RustBPETokenizer.from_directory(tmp_path).encode("abcd") == [256, ord("d")]


# --- its own ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["nanochat", "gpt2", "gpt4"])
def test_it_trains_a_vocabulary_whose_special_tokens_come_last(pattern: str, tmp_path: Path) -> None:
    trained = HuggingFaceTokenizer.train_from_iterator(iter(CORPUS), 300, PATTERNS[pattern])
    assert trained.get_vocab_size() == 300
    assert [trained.encode_special(name) for name in SPECIAL_TOKENS] == list(range(291, 300))
    assert len(trained.encode("the the the")) == 3
    for text in AWKWARD:
        ids = trained.encode(text)
        assert max(ids, default=0) < 291
        assert trained.decode(ids) == text
        assert sum(trained.token_bytes()[i] for i in ids) == len(text.encode())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    trained = HuggingFaceTokenizer.train_from_iterator(CORPUS, 300)
    trained.save(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tokenizer.json"]
    loaded = HuggingFaceTokenizer.from_directory(tmp_path / "new")
    assert loaded.get_vocab_size() == 300
    assert loaded.token_bytes() == trained.token_bytes()
    assert loaded.encode(AWKWARD) == trained.encode(AWKWARD)
    assert loaded.render_conversation(CHAT) == trained.render_conversation(CHAT)


def test_a_small_corpus_gives_fewer_tokens() -> None:
    trained = HuggingFaceTokenizer.train_from_iterator(["abc"], 5000)
    assert trained.get_vocab_size() == 258 + 9
    assert trained.get_bos_token_id() == 258


def test_a_file_that_cuts_pads_and_adds_tokens_gives_the_ids_of_the_text_alone(folder: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(2)
    library.enable_padding(length=50)
    library.post_processor = tokenizers.processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 311)])
    assert HuggingFaceTokenizer(library).encode("abcdef") == list(b"abcdef")


def test_the_hub_is_asked_for_the_file_of_a_repository(
    ours: RustBPETokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo_id: str, filename: str, **options: object) -> str:
        asked.append((repo_id, filename))
        return str(folder / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    theirs = HuggingFaceTokenizer.from_pretrained("someone/something")
    assert asked == [("someone/something", "tokenizer.json")]
    assert theirs.encode(AWKWARD) == ours.encode(AWKWARD)


def test_a_document_starts_with_gpt2s_token_where_there_is_no_other() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    library.add_special_tokens(["<|endoftext|>"])
    assert HuggingFaceTokenizer(library).get_bos_token_id() == 1


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_told_in_the_words_of_ours(ours: RustBPETokenizer, theirs: HuggingFaceTokenizer) -> None:
    for wrong in (320, -1):
        with pytest.raises(UserError, match=f"id {wrong} is not in the vocabulary, whose ids go from 0 to 319"):
            theirs.decode([311, wrong])
    for text in ("ab\ud800", ["x", "ab\ud800"]):
        for tokenizer in (ours, theirs):
            for allowed in ((), "all"):
                with pytest.raises(UserError, match="no valid Unicode: a lone surrogate stands at character 2; text"):
                    tokenizer.encode(text, allowed_special=allowed)
    with pytest.raises(UserError, match=r"no special token is called '<\|eos\|>'"):
        theirs.encode("x", append="<|eos|>")
    with pytest.raises(UserError, match=r"vocab_size must be at least 265 .*, got 264"):
        HuggingFaceTokenizer.train_from_iterator([], 264)
    with pytest.raises(UserError, match="the split pattern is no valid regular expression"):
        HuggingFaceTokenizer.train_from_iterator([], 300, "(")


def test_a_lone_surrogate_is_told_in_one_wording(ours: RustBPETokenizer, theirs: HuggingFaceTokenizer) -> None:
    said = []
    for encode in (ours._bpe.encode, theirs.encode):
        with pytest.raises((UserError, ValueError)) as raised:
            encode("ab\ud800")
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_a_missing_or_damaged_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        HuggingFaceTokenizer.from_directory(tmp_path)
    for wrong in (b"{}", b"\xff", b"[1, "):
        (tmp_path / "tokenizer.json").write_bytes(wrong)
        with pytest.raises(UserError, match=r"tokenizer\.json is no file that tokenizers [\d.]+ reads"):
            HuggingFaceTokenizer.from_directory(tmp_path)


def test_a_name_that_the_hub_does_not_know_is_told() -> None:
    with pytest.raises(UserError, match="no tokenizer called 'no such/name/at all' came from the hub"):
        HuggingFaceTokenizer.from_pretrained("no such/name/at all")


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for make in (HuggingFaceTokenizer.from_pretrained, HuggingFaceTokenizer.from_directory):
        with pytest.raises(UserError, match="`pip install tokenizers`"):
            make(str(tmp_path))


def test_a_vocabulary_of_another_kind_is_read_but_its_bytes_are_not_counted() -> None:
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "the": 1, "##re": 2, "cat": 5}))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.decoder = tokenizers.decoders.WordPiece()
    tokenizer = HuggingFaceTokenizer(library)
    assert tokenizer.encode("there cat") == [1, 2, 5]
    assert tokenizer.decode([1, 2, 5]) == "there cat"
    assert tokenizer.get_vocab_size() == 6
    with pytest.raises(UserError, match="id 3 is not in the vocabulary"):
        tokenizer.decode([3])
    with pytest.raises(UserError, match="byte-level"):
        tokenizer.token_bytes()
