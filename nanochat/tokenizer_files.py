"""What stands on disk of a tokenizer: Hugging Face's JSON, read with one sentence for every fault, written whole."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nanochat.command import UserError

TRAIN_COMMAND = "`python -m scripts.tok_train`"


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
    """The content of a `tokenizer.json`: tokens in the order of their ids, merges in order, the split, the specials."""
    alphabet = dict(enumerate(byte_alphabet()))

    def text(token: bytes) -> str:
        return token.decode("latin-1").translate(alphabet)

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
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
