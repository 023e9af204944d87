"""Lesson 18: data parallel by hand. Every rank has the whole model and a part of the batch; gradients are averaged.

The check calls these by name: my_rows, all_reduce_ring, same_start, average_gradients, train_step, in three processes
that `torch.distributed` has joined (gloo). Write them for any number of ranks. Of torch.distributed use isend and recv
for the ring, and broadcast; not all_reduce, which is what you write.
"""

from collections.abc import Iterable
from typing import Protocol

import torch


class Optimizer(Protocol):
    """Any: torch's, the product's, yours."""

    def step(self) -> object:
        """Update the parameters from their `.grad`."""


def my_rows(batch: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """The rows of batch (B, ...) that this rank works on: all ranks' together are all rows, each once."""
    raise NotImplementedError("lesson 18: my_rows is yours to write")


def all_reduce_ring(values: torch.Tensor, rank: int, world_size: int) -> None:
    """Put the sum over all ranks into `values` (N,), in place, by talking to the two neighbours only.

    Cut into `world_size` parts, each rank sends about 2 N numbers in all, however many ranks there are. N may be less
    than `world_size`.
    """
    raise NotImplementedError("lesson 18: all_reduce_ring is yours to write")


def same_start(parameters: Iterable[torch.Tensor]) -> None:
    """Give every rank the weights of rank 0."""
    raise NotImplementedError("lesson 18: same_start is yours to write")


def average_gradients(parameters: Iterable[torch.nn.Parameter], rank: int, world_size: int) -> None:
    """Replace every gradient by its mean over the ranks; all of them travel as one long tensor.

    A parameter without a gradient is left out.
    """
    raise NotImplementedError("lesson 18: average_gradients is yours to write")


def train_step(
    model: torch.nn.Module,
    optimizer: Optimizer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    rank: int,
    world_size: int,
) -> float:
    """One update on the whole batch, of which every rank computes its rows; the mean loss of the whole batch.

    `inputs` and `targets` (B, T) are the whole batch; targets of -1 do not count, and ranks may count unequally many.
    `model(inputs, targets)` is the mean over counted targets, 0 where there is none. The update is to be the one that a
    single process makes of the whole batch; afterwards no gradient is left.
    """
    raise NotImplementedError("lesson 18: train_step is yours to write")
