"""The same interface by Hugging Face's `tokenizers`, an optional package: their vocabularies, and a peer for ours.

Our own vocabulary gives the same ids here. Training and serving use `tokenizer.RustBPETokenizer`.

Lesson: lessons/07_tokenizer_class
"""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from nanochat.command import UserError
from nanochat.tokenizer_base import SPECIAL_TOKENS, SPLIT_PATTERN, BaseTokenizer, check_vocab_size
from nanochat.tokenizer_files import byte_alphabet, read_bytes, write_whole

if TYPE_CHECKING:
    import tokenizers


class HuggingFaceTokenizer(BaseTokenizer):
    """A `tokenizers.Tokenizer` whose special tokens no text can spell; truncation and padding are switched off."""

    def __init__(self, library: "tokenizers.Tokenizer"):
        library.encode_special_tokens = True
        library.no_truncation()
        library.no_padding()
        self._library = library
        added = sorted(library.get_added_tokens_decoder().items())
        self._specials = {token.content: i for i, token in added if token.special}
        self._is_byte_level = isinstance(library.decoder, _import_library().decoders.ByteLevel)
        vocabulary = library.get_vocab()
        self._bytes: list[bytes | None] = [None] * (1 + max(vocabulary.values(), default=-1))
        byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
        names = {token.content for _, token in added}
        for text, i in vocabulary.items():
            spelled = self._is_byte_level and text not in names and byte_of.keys() >= set(text)
            self._bytes[i] = bytes(byte_of[character] for character in text) if spelled else text.encode()

    @classmethod
    def from_pretrained(cls, name: str) -> "HuggingFaceTokenizer":
        """Download the tokenizer of a repository on the hub, or take it from the hub's cache."""
        library = _import_library()
        try:
            return cls(library.Tokenizer.from_pretrained(name))
        except Exception as wrong:  # the library raises plain Exception, the hub's client anything
            raise UserError(
                f"no tokenizer called {name!r} came from the hub ({_first_line(wrong)}): give a repository's name "
                "as in 'openai-community/gpt2', or a folder to HuggingFaceTokenizer.from_directory"
            ) from wrong

    @classmethod
    def from_directory(cls, directory: str | Path) -> "HuggingFaceTokenizer":
        """Load the `tokenizer.json` of a folder, ours or another's. Raises UserError when it is missing or damaged."""
        library = _import_library()
        path = Path(directory) / "tokenizer.json"
        plain = read_bytes(path)
        try:
            return cls(library.Tokenizer.from_str(plain.decode()))
        except Exception as wrong:  # the library raises plain Exception
            raise UserError(
                f"{path} is no file that tokenizers {library.__version__} reads ({_first_line(wrong)}): "
                "write it again, or `pip install --upgrade tokenizers`"
            ) from wrong

    @classmethod
    def train_from_iterator(
        cls, iterator: Iterable[str], vocab_size: int, pattern: str = SPLIT_PATTERN
    ) -> "HuggingFaceTokenizer":
        """Train on texts cut by `pattern`; `vocab_size` counts the special tokens too, whose ids come last.

        Raises UserError when the size leaves no room for the 256 bytes or the pattern is no regex.
        """
        check_vocab_size(vocab_size)
        library = _import_library()
        try:
            regex = library.Regex(pattern)
        except Exception as wrong:  # the library raises plain Exception
            raise UserError(f"the split pattern is no valid regular expression: {wrong}") from wrong
        split = library.pre_tokenizers.Split(regex, behavior="isolated")
        byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([split, byte_level])
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS), initial_alphabet=list(byte_alphabet()), show_progress=False
        )
        tokenizer.train_from_iterator(iterator, trainer)
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        return cls(tokenizer)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` whole."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / "tokenizer.json", self._library.to_str().encode())

    def get_vocab_size(self) -> int:
        """Number of ids, special tokens and holes included."""
        return len(self._bytes)

    def token_bytes(self) -> list[int]:
        """Bytes of text that each id stands for, specials and holes 0. Raises UserError where tokens are no bytes."""
        if not self._is_byte_level:
            raise UserError("bytes per token are those of a byte-level vocabulary, and this one is another kind")
        specials = set(self._specials.values())
        return [0 if i in specials else len(token or b"") for i, token in enumerate(self._bytes)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, a special token by its name. Raises UserError for an id that is not there."""
        ids = list(ids)
        size = len(self._bytes)
        tokens = [self._bytes[i] if 0 <= i < size else None for i in ids]
        for wrong_id in (i for i, token in zip(ids, tokens, strict=True) if token is None):
            raise UserError(f"id {wrong_id} is not in the vocabulary, whose ids go from 0 to {size - 1}")
        if not self._is_byte_level:
            return self._library.decode(ids, skip_special_tokens=False).encode()
        return b"".join(token for token in tokens if token is not None)

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._library.encode(text, add_special_tokens=False).ids

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        # the library takes as many threads as RAYON_NUM_THREADS says
        return [row.ids for row in self._library.encode_batch_fast(texts, add_special_tokens=False)]


def _import_library() -> ModuleType:
    try:
        import tokenizers
    except ImportError as missing:
        raise UserError("the package tokenizers is not installed: `pip install tokenizers` installs it") from missing
    return tokenizers


def _first_line(wrong: Exception) -> str:
    return str(wrong).strip().partition("\n")[0] or type(wrong).__name__
