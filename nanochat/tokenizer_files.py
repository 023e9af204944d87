"""What stands on disk of a tokenizer: Hugging Face's JSON, read with one sentence for every fault, written whole.

Lesson: lessons/07_tokenizer_class
"""

import itertools
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.command import UserError

if TYPE_CHECKING:
    import rustbpe

TRAIN_COMMAND = "`python -m scripts.tok_train`"

# A repetition that keeps what it took, lines' edges, words' letters and edges: other regex engines mean other things.
READ_OTHERWISE = re.compile(r"\{[\d,]+\}\+|(?<![\[\\])\^|(?<!\\)\$|\\[wWbB]")

# One of each kind that split patterns tell apart: a pattern that takes every three of them leaves no text out.
KINDS_OF_CHARACTERS = "asZé日1²'._😀\u0301\x00 \t\n\r\u00a0"


def byte_alphabet() -> str:
    """GPT-2's 256 printable characters for the 256 bytes, in which Hugging Face files spell tokens.

    Bytes that print in Latin-1 stand for themselves, the others for U+0100, U+0101, ... in order.
    """
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return "".join(chr(byte if byte in prints else next(others)) for byte in range(256))


def huggingface_json(
    tokens: Sequence[bytes], merges: Iterable[tuple[bytes, bytes]], pattern: str, special_tokens: Mapping[str, int]
) -> dict[str, object]:
    """The content of a `tokenizer.json`: tokens in the order of their ids, merges in order, the split, the specials.

    What a pattern does not match is dropped, as everywhere here. Warns of a pattern that the library reads otherwise.
    """
    from rustbpe import PATTERNS

    alphabet = dict(enumerate(byte_alphabet()))

    def text(token: bytes) -> str:
        return token.decode("latin-1").translate(alphabet)

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    # Our own patterns match every text, so that both ways cut alike: theirs is the one that Llama 3's file has.
    matches_all = pattern in PATTERNS.values()
    if not matches_all and (found := READ_OTHERWISE.search(pattern)):
        warnings.warn(
            f"Hugging Face's regex engine means something else by {found.group()!r} in the split pattern, so that "
            f"tokenizer.json may give other ids there: write it without, or name one of {', '.join(PATTERNS)}",
            stacklevel=3,
        )
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated" if matches_all else "Removed",
        "invert": not matches_all,
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {text(token): rank for rank, token in enumerate(tokens)},
            "merges": [[text(left), text(right)] for left, right in merges],
        },
    }


def merges_of_ranks(tokens: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]]) -> Sequence[tuple[bytes, bytes]]:
    """All merges that ranks do, in order, given those by which lower ranks alone make a token.

    Lower ranks leave some tokens in more than two parts, which no training does: such a token comes of any two tokens
    that make it. Listing all of them is exact: within the bytes of a token the merges are the same in every text.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    made = {left + right for left, right in merges}
    others = [token for token in tokens if len(token) > 1 and token not in made]
    cuts = [(token[:cut], token[cut:]) for token in others for cut in range(1, len(token))]
    pairs = [pair for pair in cuts if pair[0] in ranks and pair[1] in ranks]
    return sorted([*merges, *pairs], key=lambda pair: ranks[pair[0] + pair[1]])


def parse_huggingface(stored: Mapping[str, object]) -> tuple[dict[bytes, int], str, dict[str, int]]:
    """Ranks, split pattern and added tokens with ids of a byte-level BPE `tokenizer.json`, whoever wrote it.

    Raises ValueError, saying what is in the way, where these three cannot give the ids that the file gives.
    """
    model, normalizer, added = stored.get("model"), stored.get("normalizer"), stored.get("added_tokens") or []
    # files of before 2021 name no type
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not {"vocab", "merges"} <= model.keys():
        kind = model.get("type", "unnamed") if isinstance(model, dict) else "missing"
        raise ValueError(f"its model must be BPE with vocab and merges, and is {kind}")
    for name in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"its model has {name} {model[name]!r}, which ranks cannot tell")
    if normalizer and normalizer != {"type": "Sequence", "normalizers": []}:
        raise ValueError(f"its normalizer changes the text: {shown(normalizer)}")
    if not isinstance(added, list):
        raise ValueError(f"its added_tokens must be a list, and are {shown(added)}")
    pattern = _split_pattern(stored.get("pre_tokenizer"))
    specials = {token["content"]: token["id"] for token in sorted(added, key=lambda token: token["id"])}
    vocabulary = {text: rank for text, rank in model["vocab"].items() if text not in specials}
    early = next((name for name, i in specials.items() if i < len(vocabulary)), None)
    if early is not None:
        raise ValueError(f"its added token {early!r} has id {specials[early]}, and must follow the ordinary tokens")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError(f"its {len(vocabulary)} ordinary tokens must have the ids from 0 to {len(vocabulary) - 1}")
    if list(specials.values()) != list(range(len(vocabulary), len(vocabulary) + len(specials))):
        raise ValueError(f"its added tokens must have ids in a row from {len(vocabulary)}: {shown(specials)}")
    last = 0
    for left, right in _merges(model):
        rank = vocabulary.get(left + right)
        if rank is None or left not in vocabulary or right not in vocabulary:
            raise ValueError(f"its merge of {left!r} and {right!r} has parts or a result that are no tokens")
        if rank < last:
            raise ValueError(f"its merges are in another order than the ids: {left!r} and {right!r} come too late")
        last = rank
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    for text in vocabulary:
        if not byte_of.keys() >= set(text):
            raise ValueError(f"its token {text!r} is not spelled in the alphabet of bytes")
    ranks = {bytes(byte_of[character] for character in text): rank for text, rank in vocabulary.items()}
    return ranks, pattern, specials


def check_parsed(stored: Mapping[str, object], bpe: "rustbpe.Tokenizer") -> None:
    """Hold the file against the vocabulary made of it; raises ValueError where the two would give different ids.

    A vocabulary of ranks merges any two neighbours whose bytes are a token. That is what a list of merges does when
    it has, for every token, the pair in which lower ranks alone leave the token's bytes. A token without such a pair
    is refused even where the file takes whole words first: higher ranks may still make it, of a pair not listed.
    """
    model, pre_tokenizer = stored["model"], stored["pre_tokenizer"]
    assert isinstance(model, dict), type(model)
    alphabet = dict(enumerate(byte_alphabet()))
    listed = set(_merges(model))
    made = [tuple(part.decode("latin-1").translate(alphabet) for part in pair) for pair in bpe.get_merges()]
    for pair in made:
        if pair not in listed:
            raise ValueError(f"its merges lack {pair[0]!r} and {pair[1]!r}, of which ranks make {''.join(pair)!r}")
    longer = sum(len(token) > 1 for token, _ in bpe.get_mergeable_ranks())
    if longer > len(made):
        raise ValueError(f"ranks alone never make {longer - len(made)} of its tokens")
    keeps_all = '"Isolated"' in json.dumps(pre_tokenizer)
    texts = ["".join(some) for some in itertools.product(KINDS_OF_CHARACTERS, repeat=3)] if keeps_all else []
    for text, ids in zip(texts, bpe.batch_encode(texts, 1), strict=True):
        if bpe.decode_bytes(ids) != text.encode():
            raise ValueError(f"its split pattern leaves out a part of {text!r}, which only that library keeps")


def _merges(model: Mapping[str, Iterable[str | Sequence[str]]]) -> Iterator[tuple[str, str]]:
    """The pairs of a list of merges, whose items are "a b" in older files."""
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2:
            raise ValueError(f"its merge {merge!r} is no pair")
        yield pair[0], pair[1]


def _split_pattern(pre_tokenizer: object) -> str:
    """The regex of a pre-tokenizer that cuts as GPT-2 did, or by a regex of its own."""
    from rustbpe import PATTERNS

    if isinstance(pre_tokenizer, dict):
        steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
        *splits, last = steps or [{}]
        if last.get("type") == "ByteLevel" and not last.get("add_prefix_space", True):
            by_itself = last.get("use_regex", True)
            if by_itself and not splits:
                return PATTERNS["gpt2"]
            if not by_itself and len(splits) == 1 and splits[0].get("type") == "Split":
                cut = splits[0]["behavior"], splits[0]["invert"]
                regex = splits[0]["pattern"].get("Regex")
                if cut in {("Isolated", False), ("Removed", True)} and isinstance(regex, str):
                    return regex
    raise ValueError(
        "its pre-tokenizer must be ByteLevel without a prefix space, or one Split by a Regex before it, and is "
        + shown(pre_tokenizer)
    )


def shown(value: object) -> str:
    """A piece of JSON for a sentence, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:160]}..."


def read_given(path: Path) -> bytes:
    """A file that a person named. Raises UserError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as wrong:
        raise UserError(f"{path} cannot be read ({wrong.strerror}): give the path of a tokenizer's file") from wrong


def read_bytes(path: Path) -> bytes:
    """A file of a tokenizer. Raises UserError when it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError as missing:
        raise UserError(f"no tokenizer here, {path} is missing: train one with {TRAIN_COMMAND}") from missing


def read_json(plain: bytes, path: Path) -> dict[str, object]:
    """The object in it. Raises UserError for anything else."""
    try:
        value = json.loads(plain)
    except ValueError as wrong:
        raise UserError(f"{path} is damaged (no JSON): train again with {TRAIN_COMMAND}") from wrong
    if not isinstance(value, dict):
        raise UserError(f"{path} is no tokenizer of nanochat: train one with {TRAIN_COMMAND}")
    return value


def write_whole(path: Path, plain: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(plain)
    part.replace(path)
