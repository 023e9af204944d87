"""Two processes that really talk to each other (gloo, CPU): started once, everything that needs them done in one go.

`results()` gives what each rank found; the tests of the modules compare it with what one rank computes alone.
"""

import os
import socket
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import torch
import torch.multiprocessing
from tiny import tiny_model, tiny_tokenizer

from nanochat.conversation import Conversation, Message
from nanochat.core_eval import CoreResult, CoreTask, evaluate_core_task
from nanochat.engine import Engine
from nanochat.loss_eval import LossResult, evaluate_loss
from nanochat.optim import MuonAdamW, Rates
from nanochat.report import Score
from nanochat.rollout import Rollout, learn
from nanochat.runtime import Runtime
from nanochat.task_eval import evaluate_task
from nanochat.training import Batch, accumulate, gradient_norm
from tasks.common import Task

STEPS = 5
SHAPES = {  # three equal matrices and an embedding of odd size: neither divides by two
    "a": ((6, 4), "matrix"), "b": ((6, 4), "matrix"), "c": ((6, 4), "matrix"), "d": ((3, 5), "matrix"),
    "wte": ((7, 3), "embedding"), "head": ((4, 3), "unembedding"),
}  # fmt: skip
RATES = Rates(matrix_lr=0.02, embedding_lr=0.1, unembedding_lr=0.05, weight_decay=0.1, adam_weight_decay=0.1)


class Found(TypedDict):
    """What one rank found."""

    sums: list[float]
    objects: list[object]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    loss: float
    gradients: dict[str, torch.Tensor]
    norms: list[float]
    evaluated: LossResult
    score: Score
    core: CoreResult
    learned: tuple[float, int]
    reinforced: dict[str, torch.Tensor]


def parameters() -> dict[str, torch.nn.Parameter]:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, (shape, _) in SHAPES.items()}


def optimizer_of(weights: dict[str, torch.nn.Parameter], runtime: Runtime) -> MuonAdamW:
    """The optimizer that is tested."""
    return MuonAdamW(weights, {name: role for name, (_, role) in SHAPES.items()}, RATES, runtime)


def gradient(name: str, step: int, rank: int) -> torch.Tensor:
    """Any gradient, another one on each rank."""
    shape = SHAPES[name][0]
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(map(ord, name)) * 1000 + step * 10 + rank))


def batches(rank: int) -> list[Batch]:
    """Two micro-batches; the ranks have unequal numbers of trained tokens."""
    generator = torch.Generator().manual_seed(rank)
    made = []
    for number in range(2):
        ids = torch.randint(0, tiny_tokenizer().get_vocab_size(), (2, 9), generator=generator)
        targets = ids[:, 1:].clone()
        targets[0, : 3 * rank + number] = -1
        made.append((ids[:, :-1], targets))
    return made


def rollouts(rank: int) -> list[Rollout]:
    """Three samples, one of which tells nothing."""
    generator = torch.Generator().manual_seed(10 + rank)
    made = []
    for number, advantage in enumerate((0.75, -0.5, 0.0)):
        ids = torch.randint(0, 290, (6 + number + rank,), generator=generator).tolist()
        made.append(Rollout(ids, [0, 0, 0] + [1] * (len(ids) - 3), number + 0.5 * rank, advantage))
    return made


CORE_TASK = CoreTask("five rows", "multiple_choice", Path(), 1, " ", 0.5)
CORE_ROWS = [{"query": f"Row {n} is", "choices": ["even", "odd"], "gold": n % 2} for n in range(5)]


class Numbers(Task):
    """Five problems; the score depends on the problem alone."""

    def num_examples(self) -> int:
        return 5

    def get_example(self, index: int) -> Conversation:
        return Conversation([Message("user", str(index)), Message("assistant", "yes")])

    def evaluate(self, problem: Conversation, completion: str) -> float:
        return int(problem.messages[0].text) / 4


def _work(rank: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with Runtime.start("cpu", "float32", threads=1) as runtime:
        weights = parameters()
        optimizer = optimizer_of(weights, runtime)
        for step in range(STEPS):
            for name, parameter in weights.items():
                parameter.grad = gradient(name, step, rank)
            optimizer.step(lr_multiplier=1 - 0.1 * step, momentum=0.9)
        model = tiny_model(n_layer=1)
        loss = accumulate(model, iter(batches(rank)), 2, runtime)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        norms = [gradient_norm(model, runtime)]
        if rank == 1:
            next(model.parameters()).grad[0, 0] = float("nan")  # type: ignore[index]
        norms.append(gradient_norm(model, runtime))
        model.zero_grad()
        learned = learn(model, rollouts(rank), 2, runtime)
        lengths = torch.tensor(tiny_tokenizer().token_bytes()).numpy()
        found: Found = {
            "sums": runtime.sum_over_ranks(rank + 1.0, 1e-9),
            "objects": runtime.gather_objects({"rank": rank}),
            "weights": {name: parameter.detach() for name, parameter in weights.items()},
            "optimizer": optimizer.state_dict(),
            "loss": loss,
            "gradients": gradients,
            "norms": norms,
            "evaluated": evaluate_loss(model, batches(rank)[: 2 - rank], lengths, runtime),
            "score": evaluate_task(Numbers(), "N", "sft", Engine(model, tiny_tokenizer()), runtime, max_tokens=2),
            "core": evaluate_core_task(model, tiny_tokenizer(), CORE_TASK, CORE_ROWS, runtime),
            "learned": learned,
            "reinforced": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        }
        runtime.barrier()
        torch.save(found, Path(folder) / str(rank))


@cache
def results() -> list[Found]:
    """Of rank 0 and of rank 1; they run at the first call."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (port, folder), nprocs=2)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(2)]


def averaged(kind: str) -> dict[str, torch.Tensor]:
    """The mean over the ranks of the gradients of that kind: what the optimizer takes."""
    first, second = (found[kind] for found in results())  # type: ignore[literal-required]
    return {name: (first[name] + second[name]) / 2 for name in first}
