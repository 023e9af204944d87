"""How well a model predicts: mean loss per token, and bits per byte, which no vocabulary can flatter.

Lesson: lessons/19_validation
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy
import torch

from nanochat.gpt import GPT, IGNORED_TARGET
from nanochat.runtime import Runtime


@dataclass(frozen=True)
class LossResult:
    """`loss` in nats per counted token, `bpb` in bits per byte of their text, over `tokens` tokens of all ranks."""

    loss: float
    bpb: float
    tokens: int


def evaluate_loss(
    model: GPT,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    token_bytes: numpy.ndarray,
    runtime: Runtime,
    on_progress: Callable[[], object] = lambda: None,
) -> LossResult:
    """Mean loss and bits per byte over `batches`, of all ranks; targets of -1 do not count.

    `token_bytes` (V,) is each id's length in bytes; ids of length 0, the control tokens, count neither way in bpb.
    """
    lengths = torch.from_numpy(numpy.asarray(token_bytes, dtype=numpy.int64)).to(runtime.device)
    was_training = model.training
    model.eval()
    nats = counted = text_nats = text_bytes = 0.0
    for inputs, targets in batches:
        losses = model.token_losses(inputs, targets)  # (B, T)
        size = torch.where(targets == IGNORED_TARGET, 0, lengths[targets.clamp_min(0)])
        nats += float(losses.sum(dtype=torch.float32))
        counted += float((targets != IGNORED_TARGET).sum())
        text_nats += float((losses * (size > 0)).sum(dtype=torch.float32))
        text_bytes += float(size.sum())
        on_progress()
    model.train(was_training)
    nats, counted, text_nats, text_bytes = runtime.sum_over_ranks(nats, counted, text_nats, text_bytes)
    bpb = text_nats / math.log(2) / text_bytes if text_bytes else float("nan")
    return LossResult(nats / counted if counted else float("nan"), bpb, int(counted))
