"""Lesson 12: what the weights are before the first step: names, shapes, first values, and the meta device.

Shapes: V vocabulary, C width. Names and shapes of the weights are those in lesson 10.

The check calls these by name: GPT, parameter_count, init_weights, forgotten, build. Any design of your own is welcome
behind them.
"""

from collections.abc import Callable

import torch
from torch import nn


class Matrix(nn.Module):
    """A weight (outputs, inputs) that nobody has filled yet, and no bias."""

    def __init__(self, outputs: int, inputs: int):
        raise NotImplementedError("lesson 12: Matrix.__init__ is yours to write")


def layer_of(width: int) -> nn.ModuleDict:
    """The six matrices of a layer."""
    raise NotImplementedError("lesson 12: layer_of is yours to write")


class GPT(nn.Module):
    """The weights of lesson 10 as one module. Its constructor says what there is; the values come from init_weights."""

    def __init__(self, vocab_size: int, width: int, layers: int, heads: int):
        raise NotImplementedError("lesson 12: GPT.__init__ is yours to write")

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Lesson 10's forward: logits (B, T, V) of ids (B, T), or the loss."""
        raise NotImplementedError("lesson 12: GPT.forward is yours to write")


def parameter_count(vocab_size: int, width: int, layers: int) -> int:
    """How many numbers there are to learn, on paper: two tables, and in each layer four matrices and two wide ones."""
    raise NotImplementedError("lesson 12: parameter_count is yours to write")


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Give every parameter its first values, the same for the same seed, whatever was drawn elsewhere before.

    The embedding: normal, deviation 1. The head: normal, deviation 0.001. What projects back into the stream (names
    ending with c_proj.weight): zero. The others: uniform, deviation 1/sqrt(C), so from -sqrt(3/C) to sqrt(3/C).
    """
    raise NotImplementedError("lesson 12: init_weights is yours to write")


@torch.no_grad()
def forgotten(model: nn.Module, initialise: Callable[[nn.Module], None]) -> list[str]:
    """The names of the parameters of which `initialise` leaves any value as it was: poison all with NaN, then look."""
    raise NotImplementedError("lesson 12: forgotten is yours to write")


def build(vocab_size: int, width: int, layers: int, heads: int, seed: int, device: str = "cpu") -> GPT:
    """A model with its first values: made on the meta device, then given memory on `device`, then filled, once."""
    raise NotImplementedError("lesson 12: build is yours to write")
