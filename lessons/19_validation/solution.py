"""Lesson 19: bits per byte, multiple choice by likelihood, an interval, metrics, and checkpoints one can trust."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file

from nanochat.gpt import GPT

Batch = tuple[torch.Tensor, torch.Tensor]
Facts = dict[str, int | float | str]


class Optimizer(Protocol):
    """What a checkpoint needs of one: its state as tensors by name."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...


# --- how well does it predict? ----------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model: GPT, batches: Iterable[Batch], token_bytes: torch.Tensor) -> tuple[float, float]:
    """Mean loss in nats per counted target, and bits per byte of the text that the targets stand for."""
    nats = counted = text_nats = text_bytes = 0.0
    for inputs, targets in batches:
        losses = model.token_losses(inputs, targets)
        sizes = token_bytes[targets.clamp_min(0)] * (targets != -1)
        nats += losses.sum().item()
        counted += (targets != -1).sum().item()
        text_nats += (losses * (sizes > 0)).sum().item()
        text_bytes += sizes.sum().item()
    return nats / counted, text_nats / math.log(2) / text_bytes


@torch.no_grad()
def option_losses(model: GPT, context: Sequence[int], options: Sequence[Sequence[int]]) -> list[float]:
    """The mean loss of each option's ids behind the context, all in one batch."""
    longest = max(map(len, options))
    inputs = torch.zeros(len(options), len(context) + longest - 1, dtype=torch.long)
    targets = torch.full_like(inputs, -1)
    for row, option in enumerate(options):
        ids = torch.tensor([*context, *option])
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, len(context) - 1 : len(ids) - 1] = ids[len(context) :]
    losses = model.token_losses(inputs, targets).sum(1)
    return (losses / torch.tensor([len(option) for option in options])).tolist()


def pick(model: GPT, context: Sequence[int], options: Sequence[Sequence[int]]) -> int:
    """The number of the option that the model finds likeliest."""
    losses = option_losses(model, context, options)
    return losses.index(min(losses))


def interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson): where the true share is when `correct` of `count` were right."""
    z = 1.959963984540054
    share, per = correct / count, z * z / count
    half = z * math.sqrt(share * (1 - share) / count + per / 4 / count)
    return (share + per / 2 - half) / (1 + per), (share + per / 2 + half) / (1 + per)


# --- what happened on the way? ----------------------------------------------------------------------------------------


def log_metrics(path: Path, record: Facts) -> None:
    """One line more."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[Facts]:
    """The records in the order of steps."""
    by_step = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        by_step[record["step"]] = record
    return [by_step[step] for step in sorted(by_step)]


# --- where were we? ---------------------------------------------------------------------------------------------------


def save(folder: Path, step: int, model: GPT, optimizer: Optimizer, facts: Facts) -> None:
    """Keep a step: written beside its place, and renamed when it is whole."""
    beside, place = folder / f"step_{step:06d}.part", folder / f"step_{step:06d}"
    beside.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.state_dict().items()}
    save_file(tensors, beside / "tensors.safetensors")
    kept = {"facts": facts, "sha256": digest(beside / "tensors.safetensors")}
    (beside / "facts.json").write_text(json.dumps(kept), encoding="utf-8")
    os.replace(beside, place)


def saved_steps(folder: Path) -> list[int]:
    """The steps that are there whole, in order."""
    names = [path.name.removeprefix("step_") for path in folder.glob("step_*")]
    return sorted(int(name) for name in names if name.isdigit())


def resume(folder: Path, model: GPT, optimizer: Optimizer) -> tuple[int, Facts]:
    """Put the last step's tensors into model and optimizer; the step and its facts. Raises ValueError for damage."""
    step = saved_steps(folder)[-1]
    place = folder / f"step_{step:06d}"
    kept = json.loads((place / "facts.json").read_text(encoding="utf-8"))
    if digest(place / "tensors.safetensors") != kept["sha256"]:
        raise ValueError(f"step {step} is damaged: its tensors are not those that were saved")
    tensors = load_file(place / "tensors.safetensors")
    of = {part: {name.removeprefix(part): t for name, t in tensors.items() if name.startswith(part)} for part in PARTS}
    model.load_state_dict(of["model."])
    optimizer.load_state_dict(of["optimizer."])
    return step, kept["facts"]


PARTS = ("model.", "optimizer.")


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
