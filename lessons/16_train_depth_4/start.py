"""Lesson 16: train depth 4, leaving out nearly everything.

Your loader (9), model (12), schedule (14) and optimizer (15), put together: the loop, what it is judged by, and text.

Shapes: B rows, T tokens, V vocabulary. A model is lesson 12's: `model(x)` gives logits (B, T, V), `model(x, y)` the
mean loss in nats.

The check calls these by name: sizes, rates, muon_momentum, train, bits_per_byte, sample. Any design of your own is
welcome behind them.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from lessons.learner import load

fourteen = load(14)
Batch = tuple[torch.Tensor, torch.Tensor]


def sizes(depth: int) -> tuple[int, int]:
    """The one dial: width and heads of a model of `depth` layers. 64 channels a layer, and heads of 64 channels."""
    raise NotImplementedError("lesson 16: sizes is yours to write")


def rates(width: int, matrix: float = 0.02) -> dict[str, float]:
    """Rates by lesson 15's roles: "matrix", "embedding", "unembedding".

    That of matrices is `matrix` at every width. The tables' are 0.2 and 0.004 at width 768, and go with width^-1/2.
    """
    raise NotImplementedError("lesson 16: rates is yours to write")


def muon_momentum(step: int) -> float:
    """From 0.85 to 0.95 over the first 300 steps: early gradients are soon out of date."""
    raise NotImplementedError("lesson 16: muon_momentum is yours to write")


def train(
    model: nn.Module,
    batches: Iterator[Batch],
    optimizer: object,
    steps: int,
    on_step: Callable[[int, float], object] = lambda step, loss: None,
) -> list[float]:
    """Take `steps` batches and steps; the loss of each. `on_step(step, loss)` is called behind each step.

    The optimizer is lesson 15's: step(lr_multiplier, momentum) and zero_grad(). The multiplier is lesson 14's
    trapezoid, `fourteen.trapezoid`, with a warm-down of 0.4.
    """
    raise NotImplementedError("lesson 16: train is yours to write")


@torch.no_grad()
def bits_per_byte(model: nn.Module, batches: Iterable[Batch], token_bytes: torch.Tensor) -> float:
    """Bits that the model needs for a byte of the targets' text: their losses in nats, over ln 2, over their bytes.

    `token_bytes` (V,) is how many bytes of text each id stands for. Targets of 0 bytes, as <|bos|>, count neither as
    loss nor as text.
    """
    raise NotImplementedError("lesson 16: bits_per_byte is yours to write")


@torch.no_grad()
def sample(
    model: nn.Module,
    ids: list[int],
    count: int,
    context: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | None = None,
) -> list[int]:
    """Up to `count` ids that go on from `ids`, which must hold one at least; the end comes early before the id `stop`.

    Each is drawn by the softmax of the last logits over `temperature`; at temperature 0 it is the likeliest. The model
    sees the last `context` ids at most, since it was trained on no more.
    """
    raise NotImplementedError("lesson 16: sample is yours to write")
