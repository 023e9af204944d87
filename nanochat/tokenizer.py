"""Text <-> ids: a byte-level BPE vocabulary with nine control tokens, trained, kept on disk, loaded.

The work is done by our Rust crate `rustbpe`. On disk stands `tokenizer.json`, a valid Hugging Face file, beside
`meta.json` (pattern, Unicode version, hash, bytes per token). `HuggingFaceTokenizer` does the same by another library.

Lessons: lessons/01_toy_bpe, lessons/06_tiktoken_object, lessons/07_tokenizer_class
"""

import base64
import binascii
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from nanochat import paths
from nanochat.command import UserError
from nanochat.huggingface_tokenizer import HuggingFaceTokenizer
from nanochat.tokenizer_base import SPECIAL_TOKENS, SPLIT_PATTERN, BaseTokenizer, check_vocab_size
from nanochat.tokenizer_files import (
    TRAIN_COMMAND,
    byte_alphabet,
    check_parsed,
    huggingface_json,
    merges_of_ranks,
    parse_huggingface,
    read_bytes,
    read_given,
    read_json,
    shown,
    write_whole,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    import tiktoken
    from numpy.typing import NDArray

    import rustbpe

__all__ = [
    "SPECIAL_TOKENS",
    "SPLIT_PATTERN",
    "HuggingFaceTokenizer",
    "RustBPETokenizer",
    "get_token_bytes",
    "get_tokenizer",
]


class TiktokenParameters(TypedDict):
    """What `tiktoken.Encoding` takes."""

    name: str
    pat_str: str
    mergeable_ranks: dict[bytes, int]
    special_tokens: dict[str, int]


class RustBPETokenizer(BaseTokenizer):
    """A vocabulary of byte strings, and after them the special tokens, which only `encode_special` gives."""

    def __init__(self, bpe: "rustbpe.Tokenizer", special_tokens: Sequence[str] = SPECIAL_TOKENS):
        self._bpe = bpe
        self._specials = {name: bpe.vocab_size + i for i, name in enumerate(special_tokens)}
        self._ranks = [token for token, _ in bpe.get_mergeable_ranks()]

    # --- make, keep, load ---------------------------------------------------------------------------------------------

    @classmethod
    def train_from_iterator(
        cls,
        iterator: Iterable[str],
        vocab_size: int,
        pattern: str = SPLIT_PATTERN,
        progress: Callable[[int, int], object] | None = None,
        num_threads: int | None = None,
    ) -> "RustBPETokenizer":
        """Train on texts cut by `pattern`; `vocab_size` counts the special tokens too, whose ids come last.

        A corpus that has no more pairs ends with fewer tokens. `progress(merges done, merges wanted)` is called now
        and then. Raises UserError when the size leaves no room for the 256 bytes or the pattern is no regex.
        """
        check_vocab_size(vocab_size)
        bpe = check_pattern(pattern)
        size = vocab_size - len(SPECIAL_TOKENS)
        bpe.train_from_iterator(iterator, size, pattern=pattern, progress=progress, num_threads=num_threads)
        return cls(bpe)

    @classmethod
    def from_directory(cls, directory: str | Path) -> "RustBPETokenizer":
        """Load what `save` wrote. Raises UserError when a file is missing, damaged, changed or foreign."""
        directory = Path(directory)
        plain, meta = read_bytes(directory / "tokenizer.json"), read_bytes(directory / "meta.json")
        path = directory / "tokenizer.json"
        stored = read_json(meta, directory / "meta.json")
        if stored.get("sha256") != hashlib.sha256(plain).hexdigest():
            raise UserError(f"{path} is not the file that meta.json was written for: train again with {TRAIN_COMMAND}")
        try:
            tokenizer = cls._from_json(read_json(plain, path), stored)
        except (KeyError, TypeError, ValueError, AttributeError) as wrong:
            raise UserError(f"{path} is no tokenizer of nanochat ({wrong}): train one with {TRAIN_COMMAND}") from wrong
        from rustbpe import UNICODE_VERSION

        if (made_with := stored.get("unicode_version")) != UNICODE_VERSION:
            message = f"{path} was made with Unicode {made_with}, this build has {UNICODE_VERSION}"
            warnings.warn(f"{message}: texts with very new letters may split differently", stacklevel=2)
        return tokenizer

    @classmethod
    def _from_json(cls, stored: Mapping[str, object], meta: Mapping[str, object]) -> "RustBPETokenizer":
        model, added, pattern = stored["model"], stored["added_tokens"], meta["pattern"]
        if not isinstance(model, dict) or not isinstance(added, list) or not isinstance(pattern, str):
            raise ValueError("the model, its added tokens or its pattern are missing")
        bytes_of = {ord(character): byte for byte, character in enumerate(byte_alphabet())}
        ranks = {text.translate(bytes_of).encode("latin-1"): rank for text, rank in model["vocab"].items()}
        tokenizer = cls(_engine().from_ranks(ranks, pattern), [token["content"] for token in added])
        if [token["id"] for token in added] != list(tokenizer._specials.values()):
            raise ValueError("the special tokens do not follow the others")
        if meta["token_bytes"] != tokenizer.token_bytes():
            raise ValueError("the bytes per token in meta.json are not those of its tokens")
        return tokenizer

    @classmethod
    def from_tiktoken_file(
        cls, path: str | Path, pattern: str = SPLIT_PATTERN, special_tokens: Sequence[str] = SPECIAL_TOKENS
    ) -> "RustBPETokenizer":
        """Load tiktoken's text (a line is a token in base64 and its rank); the pattern is not in such a file."""
        ranks = []
        for number, line in enumerate(read_given(Path(path)).splitlines(), start=1):
            try:
                token, rank = line.split()
                ranks.append((base64.b64decode(token, validate=True), int(rank)))
            except (ValueError, binascii.Error) as wrong:
                shown = line[:40].decode("utf-8", "replace")
                raise UserError(
                    f"{path} line {number}: expected a token in base64 and its rank, got {shown!r}"
                ) from wrong
        try:
            return cls(_engine().from_ranks(ranks, pattern), special_tokens)
        except (ValueError, OverflowError) as wrong:
            raise UserError(f"{path} cannot be used: {wrong}") from wrong

    @classmethod
    def from_huggingface_file(cls, path: str | Path) -> "RustBPETokenizer":
        """Load a byte-level BPE `tokenizer.json` that others wrote, as GPT-2's or Llama 3's.

        All its added tokens become special tokens; what it puts around, cuts from or pads the ids of a text is left
        out. Raises UserError for a file to which ranks and a split pattern cannot be true.
        """
        engine, path = _engine(), Path(path)
        try:
            stored = json.loads(read_given(path))
            if not isinstance(stored, dict):
                raise ValueError(f"it must be a JSON object, and is {shown(stored)}")
            ranks, pattern, specials = parse_huggingface(stored)
            bpe = engine.from_ranks(ranks, pattern)
            check_parsed(stored, bpe)
        except (json.JSONDecodeError, UnicodeDecodeError) as wrong:
            raise UserError(f"{path} is damaged (no JSON): {wrong}") from wrong
        except (ValueError, OverflowError) as wrong:
            reason = str(wrong).partition("\n")[0]  # the second line of a regex's fault points at the place
            raise UserError(f"{path} cannot be used: {reason}") from wrong
        except (KeyError, TypeError, AttributeError) as wrong:
            raise UserError(f"{path} is no tokenizer.json of Hugging Face's ({wrong!r})") from wrong
        return cls(bpe, list(specials))

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `meta.json`, each whole."""
        from rustbpe import UNICODE_VERSION

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        merges = merges_of_ranks(self._ranks, self._bpe.get_merges())
        plain = json.dumps(
            huggingface_json(self._ranks, merges, self._bpe.get_pattern(), self._specials),
            ensure_ascii=False,
        ).encode()
        meta = {
            "pattern": self._bpe.get_pattern(),
            "unicode_version": UNICODE_VERSION,
            "sha256": hashlib.sha256(plain).hexdigest(),
            "token_bytes": self.token_bytes(),
        }
        write_whole(directory / "tokenizer.json", plain)
        write_whole(directory / "meta.json", json.dumps(meta).encode())

    def save_tiktoken_file(self, path: str | Path) -> None:
        """Write the ranks as tiktoken's text, without pattern and special tokens."""
        lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(self._ranks)]
        write_whole(Path(path), "".join(lines).encode())

    def tiktoken_parameters(self, name: str = "nanochat") -> TiktokenParameters:
        """What `tiktoken.Encoding` needs to give the same ids."""
        ranks = {token: rank for rank, token in enumerate(self._ranks)}
        pattern = self._bpe.get_pattern()
        return {"name": name, "pat_str": pattern, "mergeable_ranks": ranks, "special_tokens": dict(self._specials)}

    def to_tiktoken(self, name: str = "nanochat") -> "tiktoken.Encoding":
        """The same vocabulary as a tiktoken encoding."""
        import tiktoken

        return tiktoken.Encoding(**self.tiktoken_parameters(name))

    # --- the vocabulary -----------------------------------------------------------------------------------------------

    def get_vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self._ranks) + len(self._specials)

    def token_bytes(self) -> list[int]:
        """Bytes of text that each id stands for, specials 0: the denominator of bits per byte."""
        return [len(token) for token in self._ranks] + [0] * len(self._specials)

    # --- text <-> ids -------------------------------------------------------------------------------------------------

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._bpe.encode(text)

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        return self._bpe.batch_encode(texts, num_threads)

    def encode_arrays(self, texts: "pyarrow.Array") -> "tuple[NDArray[np.integer], NDArray[np.integer]]":
        """Ids of an array of strings by this thread, without a Python object for a text or an id."""
        try:
            return self._bpe.batch_encode_to_numpy(texts, 1)
        except ValueError as wrong:
            raise UserError(f"a text cannot be encoded: {wrong}") from wrong

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, a special token by its name. Raises UserError for an id that is not there."""
        ids = list(ids)
        first = len(self._ranks)
        if not ids or (max(ids) < first and min(ids) >= 0):
            return self._bpe.decode_bytes(ids)
        names = [name.encode() for name in self._specials]
        size = self.get_vocab_size()
        for wrong_id in (i for i in ids if not 0 <= i < size):
            raise UserError(f"id {wrong_id} is not in the vocabulary, whose ids go from 0 to {size - 1}")
        return b"".join(names[i - first] if i >= first else self._ranks[i] for i in ids)


def get_tokenizer() -> RustBPETokenizer:
    """The tokenizer of the base directory. Raises UserError naming the command that makes one."""
    return RustBPETokenizer.from_directory(paths.tokenizer_dir())


def get_token_bytes() -> "NDArray[np.int64]":
    """Bytes of text per id of that tokenizer, specials 0."""  # (vocab_size,)
    import numpy as np

    return np.array(get_tokenizer().token_bytes(), dtype=np.int64)


def check_pattern(pattern: str) -> "rustbpe.Tokenizer":
    """An untrained vocabulary, the 256 bytes, that splits by `pattern`; raises UserError where it is no regex."""
    try:
        return _engine().from_ranks([(bytes([byte]), byte) for byte in range(256)], pattern)
    except ValueError as wrong:
        raise UserError(str(wrong)) from wrong


def _engine() -> "type[rustbpe.Tokenizer]":
    try:
        from rustbpe import Tokenizer
    except ImportError as missing:
        raise UserError(
            "the tokenizer's Rust part is not built: `maturin develop --release -m rustbpe/Cargo.toml` builds it"
        ) from missing
    return Tokenizer
