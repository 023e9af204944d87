"""Files of Hugging Face's library that others wrote: loaded with the same ids, or refused with the reason in a line."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slow_bpe import TEXTS

import rustbpe
from nanochat.command import UserError
from nanochat.tokenizer import HuggingFaceTokenizer, RustBPETokenizer
from nanochat.tokenizer_files import byte_alphabet

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


# --- what is refused --------------------------------------------------------------------------------------------------


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
