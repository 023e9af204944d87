"""Keys and values of texts that were read before, kept for prompts that start with the same ids.

Lesson: lessons/20_sampling_and_cache
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

LEAST_SHARED = 16
"""Ids that two texts must have in common to be worth a copy."""

MOST_TEXTS = 256
"""Texts that are kept: each of them is looked at for every prompt."""


@dataclass(eq=False)
class Kept:
    """A text's ids with their keys and values (layers, 2, H, tokens, D)."""

    ids: list[int]
    data: torch.Tensor


class Prefixes:
    """The texts that were used last, as many as fit into so many bytes."""

    def __init__(self) -> None:
        self._kept: list[Kept] = []  # the one used last stands last
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, prompt: Sequence[int]) -> tuple[Kept | None, int]:
        """The text that shares the longest start with the prompt, and how long that is."""
        best, length = None, 0
        for kept in self._kept:
            if kept.ids[: length + 1] == prompt[: length + 1] and prompt:
                best, length = kept, common_length(kept.ids, prompt)
        return best, length

    def use(self, kept: Kept) -> None:
        """Note that a text was of use."""
        self._kept.remove(kept)
        self._kept.append(kept)

    def add(self, ids: list[int], data: torch.Tensor) -> None:
        """Keep a text; those that it starts with are not needed any more."""
        for kept in list(self._kept):
            if ids[: len(kept.ids)] == kept.ids:
                self._drop(kept)
        self._kept.append(Kept(ids, data))
        self.bytes += data.nbytes
        if len(self._kept) > MOST_TEXTS:
            self._drop(self._kept[0])

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether a text is kept that starts with these ids."""
        return any(common_length(kept.ids, ids) == len(ids) for kept in self._kept)

    def shrink(self, limit_bytes: int) -> None:
        """Forget the texts that were used longest ago until the others fit."""
        while self._kept and self.bytes > limit_bytes:
            self._drop(self._kept[0])

    def _drop(self, kept: Kept) -> None:
        self._kept.remove(kept)
        self.bytes -= kept.data.nbytes


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts start with alike, by halving: comparing slices is fast."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
