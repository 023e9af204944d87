"""Lesson 17: one device: which, how to time it, number formats, attention in blocks, nice sizes, accumulation."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

Batch = tuple[torch.Tensor, torch.Tensor]


def autodetect_device_type() -> str:
    """The best that is here: cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(device: torch.device) -> torch.dtype:
    """The format of matrix products: bfloat16 where the device multiplies it fast, else float32."""
    fast = False
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu" and Path("/proc/cpuinfo").exists():
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
        fast = "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words
    return torch.bfloat16 if fast else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """The median time of `work()`, after one call that is not counted."""
    work()
    found = []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def mixed_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (..., inputs) through weight (outputs, inputs), in the format of x; weight and its gradient stay float32."""
    return F.linear(x, weight.to(x.dtype))


def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: int) -> torch.Tensor:
    """Causal attention of q, k, v (B, H, T, D), a block of keys at a time: (B, H, T, D)."""
    tokens, channels = q.shape[-2:]
    total = torch.zeros_like(q)
    largest = torch.full_like(q[..., :1], -math.inf)  # of each query's scores so far
    weight = torch.zeros_like(largest)  # the sum of their exponentials, relative to the largest
    places = torch.arange(tokens, device=q.device)
    for first in range(0, tokens, block):
        seen = slice(first, first + block)
        scores = q @ k[..., seen, :].mT / math.sqrt(channels)  # (B, H, T, block)
        scores = scores.masked_fill(places[seen] > places.unsqueeze(1), -math.inf)
        new_largest = torch.maximum(largest, scores.amax(-1, keepdim=True))
        shrink = (largest - new_largest).exp()
        exponentials = (scores - new_largest).exp()
        total = total * shrink + exponentials @ v[..., seen, :]
        weight = weight * shrink + exponentials.sum(-1, keepdim=True)
        largest = new_largest
    return total / weight


def nice(number: int, multiple: int = 128) -> int:
    """The next multiple, or the number itself where it is one."""
    return -(-number // multiple) * multiple


def accumulate(model: torch.nn.Module, batches: Sequence[Batch]) -> float:
    """Gradients of the mean loss over all counted targets of all batches, one batch at a time; that loss."""
    counts = [int((targets != -1).sum()) for _, targets in batches]
    mean = 0.0
    for (inputs, targets), count in zip(batches, counts, strict=True):
        loss = model(inputs, targets) * (count / max(1, sum(counts)))
        loss.backward()
        mean += loss.item()
    return mean
