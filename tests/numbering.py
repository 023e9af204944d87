"""For the loaders' tests: a tokenizer whose ids tell where they come from, rows of batches, epochs of states."""

from collections.abc import Iterator, Sequence

import numpy
import pyarrow
import torch

from nanochat.dataloader import State
from nanochat.tokenizer import SPECIAL_TOKENS

BOS, FIRST = 0, len(SPECIAL_TOKENS)


class Numbering:
    """A tokenizer whose ids tell where they come from: the text "3:5" has the ids 3000 to 3004 (and nine more)."""

    def encode(self, text: str | list[str]) -> list:  # type: ignore[type-arg]
        if not isinstance(text, str):
            return [self.encode(one) for one in text]
        number, _, length = text.partition(":")
        return [FIRST + 1000 * int(number) + i for i in range(int(length))]

    def encode_arrays(self, texts: pyarrow.Array) -> tuple[numpy.ndarray, numpy.ndarray]:
        rows = self.encode(texts.to_pylist())
        return numpy.array([i for row in rows for i in row], numpy.uint32), numpy.cumsum([0, *map(len, rows)])

    def encode_special(self, name: str) -> int:
        return SPECIAL_TOKENS.index(name)

    def get_bos_token_id(self) -> int:
        return BOS


def pairs(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of inputs and targets."""
    for inputs, targets in batches:
        yield from zip(inputs.tolist(), targets.tolist(), strict=True)


def epochs_begun(states: Sequence[State], count: int) -> int:
    """By any rank of any run."""
    return 1 + max(n for state in states for n in [state["position"], *state["done"]]) // count  # type: ignore[misc, operator]
