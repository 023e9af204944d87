"""Lesson 19: bits per byte, multiple choice by likelihood, an interval, metrics, and checkpoints one can trust.

The check calls these by name: evaluate, option_losses, pick, interval, log_metrics, read_metrics, save, saved_steps,
resume. Of the model they need `model.token_losses(inputs, targets)`: the loss (B, T) in nats of each target, 0 where it
is -1 (your lesson 10 with the mean left out); of the optimizer a state of tensors by name, as the product's has.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from nanochat.gpt import GPT

Batch = tuple[torch.Tensor, torch.Tensor]
Facts = dict[str, int | float | str]


class Optimizer(Protocol):
    """What a checkpoint needs of one: its state as tensors by name."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...


def evaluate(model: GPT, batches: Iterable[Batch], token_bytes: torch.Tensor) -> tuple[float, float]:
    """Mean loss in nats per counted target, and bits per byte of the text that the targets stand for.

    `token_bytes` (V,) is the length in bytes of each id's text. Control tokens have 0 bytes: they count in the loss,
    and in bits per byte neither above nor below the line. Targets of -1 count nowhere. The mean is over all batches
    together, not of their means.
    """
    raise NotImplementedError("lesson 19: evaluate is yours to write")


def option_losses(model: GPT, context: Sequence[int], options: Sequence[Sequence[int]]) -> list[float]:
    """The mean loss in nats of each option's ids behind the context, all in one batch.

    Options may be of different lengths: pad with any id, and let no padding count.
    """
    raise NotImplementedError("lesson 19: option_losses is yours to write")


def pick(model: GPT, context: Sequence[int], options: Sequence[Sequence[int]]) -> int:
    """The number of the option that the model finds likeliest, by the mean loss of its ids."""
    raise NotImplementedError("lesson 19: pick is yours to write")


def interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson): low and high, from `correct` of `count`.

    With z = 1.959963984540054, n = count and p = correct / n, the middle is (p + z²/2n) / (1 + z²/n) and the half-width
    z √(p (1 - p) / n + z²/4n²) / (1 + z²/n).
    """
    raise NotImplementedError("lesson 19: interval is yours to write")


def log_metrics(path: Path, record: Facts) -> None:
    """One JSON line more; each record has a `step`."""
    raise NotImplementedError("lesson 19: log_metrics is yours to write")


def read_metrics(path: Path) -> list[Facts]:
    """The records in the order of steps.

    A run that was resumed has logged some steps twice: the last line of a step counts. A line that was cut off by a
    crash is left out.
    """
    raise NotImplementedError("lesson 19: read_metrics is yours to write")


def save(folder: Path, step: int, model: GPT, optimizer: Optimizer, facts: Facts) -> None:
    """Keep a step of a run in `folder`, so that a crash at any moment leaves it whole or not there at all.

    Tensors go into safetensors files, `facts` into JSON; a hash tells later whether the tensors are those.
    """
    raise NotImplementedError("lesson 19: save is yours to write")


def saved_steps(folder: Path) -> list[int]:
    """The steps that are there whole, in order; none where the folder is not there."""
    raise NotImplementedError("lesson 19: saved_steps is yours to write")


def resume(folder: Path, model: GPT, optimizer: Optimizer) -> tuple[int, Facts]:
    """Put the last saved step's tensors into model and optimizer; that step and its facts.

    Raises ValueError where the hash says that the tensors are damaged.
    """
    raise NotImplementedError("lesson 19: resume is yours to write")
