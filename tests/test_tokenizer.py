"""The tokenizer: its vocabulary, its conversations, and the same ids by tiktoken and by Hugging Face's library."""

import base64
import gzip
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_bpe import TEXTS

import rustbpe
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message, Part
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, RustBPETokenizer


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
