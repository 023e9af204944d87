"""Lesson 18: data parallel by hand. Every rank has the whole model and a part of the batch; gradients are averaged."""

from collections.abc import Iterable
from typing import Protocol

import torch
import torch.distributed as dist


class Optimizer(Protocol):
    """Any: torch's, the product's, yours."""

    def step(self) -> object:
        """Update the parameters from their `.grad`."""


def my_rows(batch: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """The rows of batch (B, ...) that this rank works on: every `world_size`-th."""
    return batch[rank::world_size]


def all_reduce_ring(values: torch.Tensor, rank: int, world_size: int) -> None:
    """Put the sum over all ranks into `values` (N,), in place, by talking to the two neighbours only."""
    parts = values.tensor_split(world_size)  # views of values

    def pass_on(leaving: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Send a part to the next rank; the part that comes from the one before, and its place."""
        place = parts[(leaving - 1) % world_size]
        arrived = torch.empty_like(place)
        sending = dist.isend(parts[leaving % world_size].contiguous(), (rank + 1) % world_size)
        dist.recv(arrived, (rank - 1) % world_size)
        sending.wait()
        return arrived, place

    for step in range(world_size - 1):  # each part goes round and collects: whole at the rank before its own
        arrived, place = pass_on(rank - step)
        place += arrived
    for step in range(world_size - 1):  # and goes round once more, to be known to all
        arrived, place = pass_on(rank + 1 - step)
        place.copy_(arrived)


def same_start(parameters: Iterable[torch.Tensor]) -> None:
    """Give every rank the weights of rank 0."""
    for parameter in parameters:
        dist.broadcast(parameter.data, src=0)


def average_gradients(parameters: Iterable[torch.nn.Parameter], rank: int, world_size: int) -> None:
    """Replace every gradient by its mean over the ranks; all of them travel as one long tensor."""
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in found])
    all_reduce_ring(flat, rank, world_size)
    flat /= world_size
    for gradient, part in zip(found, flat.split([gradient.numel() for gradient in found]), strict=True):
        gradient.copy_(part.view_as(gradient))


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
    """
    inputs, targets = my_rows(inputs, rank, world_size), my_rows(targets, rank, world_size)
    count = (targets != -1).sum().float().view(1)
    total = count.clone()
    all_reduce_ring(total, rank, world_size)
    loss = model(inputs, targets) * (count / total * world_size).item()  # its mean over ranks is the batch's mean
    loss.backward()
    average_gradients(model.parameters(), rank, world_size)
    optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    mean = loss.detach().view(1) / world_size
    all_reduce_ring(mean, rank, world_size)
    return mean.item()
