"""Checks of lesson 18: three processes, against torch's all_reduce and against one process that does all the work."""

from functools import cache

import pytest
import torch
import torch.distributed as dist

from lessons.compare import same
from lessons.learner import load
from lessons.oracle import model_of
from lessons.ranks import run
from nanochat.command import UserError
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

mine = load(18)
RANKS = 3
LENGTHS = (12, 13, 3, 2, 1)
STEPS = 3


class Descent:
    """Plain gradient descent."""

    def __init__(self, model: torch.nn.Module):
        self.model = model

    @torch.no_grad()
    def step(self) -> None:
        """Against the gradient."""
        for parameter in self.model.parameters():
            assert parameter.grad is not None, "step() was called before there were gradients"
            parameter -= 0.5 * parameter.grad


def model(seed: int) -> GPT:
    return model_of(GPTConfig(sequence_len=8, vocab_size=11, n_layer=1, n_head=2, n_kv_head=2, n_embd=16), seed)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Six rows that count unequally many targets."""
    ids = torch.randint(11, (6, 9), generator=torch.Generator().manual_seed(step))
    targets = ids[:, 1:].clone()
    for row in range(6):
        targets[row, : row + step] = -1
    return ids[:, :-1], targets


def own(length: int, rank: int) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(100 * length + rank))


def weights(of: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.named_parameters()}


# --- what each of the processes does, part by part: one that fails leaves the others to be judged ---------------------


def sums(rank: int, world_size: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    found = {}
    for length in LENGTHS:
        values, expected = own(length, rank), own(length, rank)
        mine.all_reduce_ring(values, rank, world_size)
        dist.all_reduce(expected)
        found[length] = values, expected
    return found


def starts(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    one = model(seed=rank)
    mine.same_start(one.parameters())
    return weights(one)


def averages(rank: int, world_size: int) -> dict[str, torch.Tensor | None]:
    one = model(seed=0)
    last = list(one.parameters())[-1]
    for number, parameter in enumerate(one.parameters()):
        if parameter is not last:
            parameter.grad = own(parameter.numel() + number, rank)[number:].view_as(parameter)
    mine.average_gradients(one.parameters(), rank, world_size)
    return {name: parameter.grad for name, parameter in one.named_parameters()}


def training(rank: int, world_size: int) -> tuple[list[float], dict[str, torch.Tensor], bool]:
    one = model(seed=0)
    losses = [mine.train_step(one, Descent(one), *batch(step), rank, world_size) for step in range(STEPS)]
    return (
        losses,
        weights(one),
        all(parameter.grad is None or not parameter.grad.any() for parameter in one.parameters()),
    )


def all_parts(rank: int, world_size: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for part in (sums, starts, averages, training):
        try:
            found[part.__name__] = part(rank, world_size)
        except Exception as problem:
            found[part.__name__] = f"{type(problem).__name__}: {problem}"
    return found


@cache
def results() -> list[dict[str, object]] | UserError:
    """Of all ranks, or why there are none."""
    try:
        return run(__file__, "all_parts", RANKS)  # type: ignore[return-value]
    except UserError as problem:
        return problem


def part(name: str) -> list:
    """What every rank found; a failure of any is this test's."""
    of_all = results()
    assert not isinstance(of_all, UserError), str(of_all)
    found = [result[name] for result in of_all]
    for rank, one in enumerate(found):
        assert not isinstance(one, str), f"on rank {rank}: {one}"
    return found


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_row_belongs_to_one_rank(world_size: int) -> None:
    rows = torch.arange(12).view(12, 1) * torch.ones(1, 2, dtype=torch.long)
    shares = [mine.my_rows(rows, rank, world_size) for rank in range(world_size)]
    found = sorted(row for share in shares for row in share[:, 0].tolist())
    assert found == list(range(12)), f"12 rows of {world_size} ranks: together they have {found}"
    sizes = [len(share) for share in shares]
    assert max(sizes) == min(sizes), f"12 rows of {world_size} ranks are shared as {sizes}"


def test_the_ring_sums_as_torch_does() -> None:
    for rank, found in enumerate(part("sums")):
        for length, (values, expected) in found.items():
            same(values, expected, f"all_reduce_ring of {length} numbers, on rank {rank} of {RANKS}")


def test_the_ring_uses_no_sum_of_torchs() -> None:
    named = {"all_reduce", "reduce", "all_gather", "reduce_scatter", "all_reduce_coalesced"}
    found = named & set(mine.all_reduce_ring.__code__.co_names)
    assert not found, f"all_reduce_ring calls {' and '.join(found)}: write it with isend and recv"


def test_all_start_with_the_weights_of_rank_0() -> None:
    expected = weights(model(seed=0))
    for rank, found in enumerate(part("starts")):
        for name, values in found.items():
            same(values, expected[name], f"{name} on rank {rank} after same_start")


def test_gradients_are_means_over_the_ranks() -> None:
    shapes = [(name, parameter.shape) for name, parameter in model(seed=0).named_parameters()]
    for rank, found in enumerate(part("averages")):
        for number, (name, shape) in enumerate(shapes[:-1]):
            gradients = [own(shape.numel() + number, other)[number:].view(shape) for other in range(RANKS)]
            same(found[name], torch.stack(gradients).mean(0), f"the gradient of {name} on rank {rank}")
        assert found[shapes[-1][0]] is None, "a parameter that had no gradient has one now"


def test_training_is_that_of_one_process() -> None:
    alone = model(seed=0)
    expected = []
    for step in range(STEPS):
        loss = alone(*batch(step))
        loss.backward()
        Descent(alone).step()
        alone.zero_grad()
        expected.append(loss.item())
    for rank, (losses, found, _) in enumerate(part("training")):
        same(torch.tensor(losses), torch.tensor(expected), f"the losses of {STEPS} steps on rank {rank}")
        for name, values in weights(alone).items():
            same(found[name], values, f"{name} after {STEPS} steps on rank {rank}")


def test_no_gradient_is_left_behind() -> None:
    assert all(clean for _, _, clean in part("training")), (
        "after train_step gradients are left: the next step adds to them"
    )
