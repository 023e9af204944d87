"""Lesson 12: what the weights are before the first step: names, shapes, first values, and the meta device.

Shapes: V vocabulary, C width. Names and shapes of the weights are those in lesson 10.

The check calls these by name: GPT, parameter_count, init_weights, forgotten, build. Any design of your own is welcome
behind them.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from lessons.learner import load


class Matrix(nn.Module):
    """A weight (outputs, inputs) that nobody has filled yet, and no bias."""

    def __init__(self, outputs: int, inputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))


def layer_of(width: int) -> nn.ModuleDict:
    """The six matrices of a layer."""
    attention = {f"c_{part}": Matrix(width, width) for part in ("q", "k", "v", "proj")}
    mlp = {"c_fc": Matrix(4 * width, width), "c_proj": Matrix(width, 4 * width)}
    return nn.ModuleDict({"attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)})


class GPT(nn.Module):
    """The weights of lesson 10 as one module. Its constructor says what there is; the values come from init_weights."""

    def __init__(self, vocab_size: int, width: int, layers: int, heads: int):
        super().__init__()
        self.heads = heads
        table = Matrix(vocab_size, width)
        self.transformer = nn.ModuleDict({"wte": table, "h": nn.ModuleList(layer_of(width) for _ in range(layers))})
        self.lm_head = Matrix(vocab_size, width)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Lesson 10's forward: logits (B, T, V) of ids (B, T), or the loss."""
        result: torch.Tensor = load(10).forward(dict(self.named_parameters()), ids, self.heads, targets)
        return result


def parameter_count(vocab_size: int, width: int, layers: int) -> int:
    """How many numbers there are to learn, on paper: two tables, and in each layer four matrices and two wide ones."""
    return 2 * vocab_size * width + layers * (4 + 2 * 4) * width**2


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Give every parameter its first values, the same for the same seed, whatever was drawn elsewhere before.

    The embedding: normal, deviation 1. The head: normal, deviation 0.001. What projects back into the stream (names
    ending with c_proj.weight): zero. The others: uniform, deviation 1/sqrt(C), so from -sqrt(3/C) to sqrt(3/C).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.zeros(parameter.shape)
        if name == "transformer.wte.weight":
            values.normal_(0.0, 1.0, generator=generator)
        elif name == "lm_head.weight":
            values.normal_(0.0, 0.001, generator=generator)
        elif not name.endswith("c_proj.weight"):
            bound = math.sqrt(3.0 / parameter.size(1))
            values.uniform_(-bound, bound, generator=generator)
        parameter.copy_(values)


@torch.no_grad()
def forgotten(model: nn.Module, initialise: Callable[[nn.Module], None]) -> list[str]:
    """The names of the parameters of which `initialise` leaves any value as it was: poison all with NaN, then look."""
    for parameter in model.parameters():
        parameter.fill_(math.nan)
    initialise(model)
    return [name for name, parameter in model.named_parameters() if parameter.isnan().any()]


def build(vocab_size: int, width: int, layers: int, heads: int, seed: int, device: str = "cpu") -> GPT:
    """A model with its first values: made on the meta device, then given memory on `device`, then filled, once."""
    with torch.device("meta"):
        model = GPT(vocab_size, width, layers, heads)
    model.to_empty(device=device)
    init_weights(model, seed)
    return model
