"""What every tokenizer here can do, whoever does the work: control tokens, batches, decoding, conversations.

A room beside gives `encode` of ordinary text and the bytes of ids; everything else follows from these. Which control
token stands where in a conversation is `chat_format`'s; here they are names with ids that no text can spell.

Lesson: lessons/07_tokenizer_class
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, overload

from nanochat import chat_format
from nanochat.command import UserError
from nanochat.conversation import Conversation

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray

SPECIAL_TOKENS = [
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
]

# GPT-4's pattern with at most two digits a token instead of three: a small vocabulary has no thousand slots to spare
# for numbers. `?+` and `++` never give back what they took, which every engine that we feed understands alike.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

GPT2_BOS = "<|endoftext|>"

AllowedSpecial = Collection[str] | Literal["all"]


def check_vocab_size(vocab_size: int) -> None:
    """Raises UserError when the size leaves no room for the 256 bytes and the special tokens."""
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UserError(f"vocab_size must be at least {smallest} (256 bytes, special tokens), got {vocab_size}")


def check_unicode(text: str) -> None:
    """Raises UserError for a text with a lone surrogate, in the words of the crate."""
    for place, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise UserError(
                f"the text is no valid Unicode: a lone surrogate stands at character {place}; "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') repairs it"
            )


def _conversation(given: Conversation | Mapping[str, object] | Sequence[object]) -> Conversation:
    return given if isinstance(given, Conversation) else Conversation.from_dict(given)


class BaseTokenizer(ABC):
    """A vocabulary and its special tokens, which only `encode_special` and `allowed_special` give."""

    _specials: dict[str, int]

    @abstractmethod
    def get_vocab_size(self) -> int:
        """Number of ids, special tokens included."""

    @abstractmethod
    def token_bytes(self) -> list[int]:
        """Bytes of text that each id stands for, specials 0: the denominator of bits per byte."""

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, a special token by its name. Raises UserError for an id that is not there."""

    @abstractmethod
    def _encode_ordinary(self, text: str) -> list[int]:
        """Ids of a text, whatever it spells. Raises ValueError or TypeError for a lone surrogate."""

    @abstractmethod
    def _encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        """The same for many texts."""

    # --- the vocabulary -----------------------------------------------------------------------------------------------

    def get_special_tokens(self) -> set[str]:
        """The names of the special tokens."""
        return set(self._specials)

    def encode_special(self, name: str) -> int:
        """The id of a special token. Raises UserError for a name that is none."""
        if name not in self._specials:
            raise UserError(f"no special token is called {name!r}; there are {', '.join(self._specials)}")
        return self._specials[name]

    def get_bos_token_id(self) -> int:
        """The id of `<|bos|>`, which starts every document and conversation; where GPT-2's stands alone, of that."""
        gpt2_alone = chat_format.BOS not in self._specials and GPT2_BOS in self._specials
        return self.encode_special(GPT2_BOS if gpt2_alone else chat_format.BOS)

    def id_to_token(self, id: int) -> str:
        """The text of one id; a part of a character shows as U+FFFD."""
        return self.decode([id])

    # --- text <-> ids -------------------------------------------------------------------------------------------------

    @overload
    def encode(
        self,
        text: str,
        prepend: int | str | None = None,
        append: int | str | None = None,
        num_threads: int = 8,
        allowed_special: AllowedSpecial = (),
    ) -> list[int]: ...

    @overload
    def encode(
        self,
        text: list[str],
        prepend: int | str | None = None,
        append: int | str | None = None,
        num_threads: int = 8,
        allowed_special: AllowedSpecial = (),
    ) -> list[list[int]]: ...

    def encode(
        self,
        text: str | list[str],
        prepend: int | str | None = None,
        append: int | str | None = None,
        num_threads: int = 8,
        allowed_special: AllowedSpecial = (),
    ) -> list[int] | list[list[int]]:
        """Ids of a text, or of each text of a list (by at most `num_threads` threads, no more than there are cores).

        Whatever a text spells, its ids are ordinary ones, except for the special tokens named in `allowed_special`
        ("all": any). `prepend` and `append` are ids or names of special tokens. Raises UserError for a text with a
        lone surrogate, which is no valid Unicode.
        """
        before, after = self._extra(prepend), self._extra(append)
        texts = [text] if isinstance(text, str) else text
        try:
            if allowed_special:
                rows = [self._encode_allowed(one, allowed_special) for one in texts]
            elif isinstance(text, str):
                rows = [self._encode_ordinary(text)]
            else:
                rows = self._encode_batch(text, num_threads)
        except (ValueError, TypeError) as wrong:
            for one in texts:
                check_unicode(one)
            raise UserError(f"the text cannot be encoded: {wrong}") from wrong
        rows = [[*before, *row, *after] for row in rows] if before or after else rows
        return rows[0] if isinstance(text, str) else rows

    def encode_arrays(self, texts: "pyarrow.Array") -> "tuple[NDArray[np.integer], NDArray[np.integer]]":
        """Ids of an array of strings by one thread: text i is `ids[offsets[i]:offsets[i + 1]]`.

        Raises UserError for bytes that are no UTF-8.
        """  # (ids,), (texts + 1,)
        import numpy as np

        try:
            rows = self._encode_batch(texts.to_pylist(), 1)
        except UnicodeDecodeError as wrong:
            raise UserError(f"a text is no UTF-8: {wrong}") from wrong
        offsets = np.cumsum([0, *map(len, rows)])
        return np.fromiter((i for row in rows for i in row), dtype=np.uint32, count=offsets[-1]), offsets

    def _encode_allowed(self, text: str, allowed: AllowedSpecial) -> list[int]:
        names = self._specials.keys() if allowed == "all" else allowed
        ids = {name: self.encode_special(name) for name in names}
        pieces = re.split(f"({'|'.join(re.escape(name) for name in ids)})", text)
        return [i for piece in pieces for i in ([ids[piece]] if piece in ids else self._encode_ordinary(piece))]

    __call__ = encode

    def _extra(self, token: int | str | None) -> list[int]:
        if token is None:
            return []
        return [self.encode_special(token) if isinstance(token, str) else token]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, a special token by its name; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # --- conversations ------------------------------------------------------------------------------------------------

    def render_conversation(
        self, conversation: Conversation | Mapping[str, object] | Sequence[object], max_tokens: int = 2048
    ) -> tuple[list[int], list[int]]:
        """Ids and mask (1 = trained on) of a conversation or its plain form, cropped at `max_tokens`."""
        return chat_format.render_conversation(_conversation(conversation), self, max_tokens)

    def render_for_completion(self, conversation: Conversation | Mapping[str, object] | Sequence[object]) -> list[int]:
        """Ids up to where the assistant's answer starts; a trailing assistant message is dropped."""
        return chat_format.render_prompt(_conversation(conversation), self)

    def visualize_tokenization(self, ids: Sequence[int], mask: Sequence[int]) -> str:
        """The tokens between bars for a terminal: green is trained on, red is not."""
        colors = {1: "\033[92m", 0: "\033[91m"}
        return "|".join(f"{colors[bit]}{self.id_to_token(i)}\033[0m" for i, bit in zip(ids, mask, strict=True))
