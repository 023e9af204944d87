"""Lesson 1: byte-pair encoding as a toy, on the bytes of one text.

The check calls these six by name: count_pairs, merge, train, vocabulary, encode, decode. Any design of your own is
welcome behind them. Ids below 256 are bytes; merge number i makes the id 256 + i.
"""

Pair = tuple[int, int]


def count_pairs(ids: list[int]) -> dict[Pair, int]:
    """How often each two neighbours occur: [7, 7, 7] has (7, 7) twice."""
    raise NotImplementedError("lesson 1: count_pairs is yours to write")


def merge(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """A new list in which `new_id` stands for every occurrence of the pair, taken from left to right.

    [7, 7, 7] with (7, 7) becomes [new_id, 7]. The list that was given stays as it is.
    """
    raise NotImplementedError("lesson 1: merge is yours to write")


def train(text: str, vocab_size: int) -> list[Pair]:
    """The merges that make a vocabulary of `vocab_size` ids, in order, learned from a text's UTF-8 bytes.

    Each step merges the commonest pair; of several it takes the smallest, (97, 98) before (97, 99) before (98, 97).
    It ends early when no pair is left.
    """
    raise NotImplementedError("lesson 1: train is yours to write")


def vocabulary(merges: list[Pair]) -> list[bytes]:
    """The bytes that each id stands for: 256 single bytes, then one entry a merge."""
    raise NotImplementedError("lesson 1: vocabulary is yours to write")


def encode(text: str, merges: list[Pair]) -> list[int]:
    """The ids of a text: its bytes, with the merges made in the order in which they were learned."""
    raise NotImplementedError("lesson 1: encode is yours to write")


def decode(ids: list[int], merges: list[Pair]) -> str:
    """The text of some ids. Bytes that are no UTF-8 become U+FFFD; an unknown id raises ValueError with its number."""
    raise NotImplementedError("lesson 1: decode is yours to write")
