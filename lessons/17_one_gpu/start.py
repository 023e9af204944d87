"""Lesson 17: one device: which, how to time it, number formats, attention in blocks, nice sizes, accumulation.

The check calls these by name: autodetect_device_type, pick_dtype, synchronize, seconds_of, mixed_linear,
flash_attention, nice, accumulate. All of it runs on a CPU as on a GPU.

Shapes: B rows, H heads, T tokens, D channels per head.
"""

from collections.abc import Callable, Sequence

import torch

Batch = tuple[torch.Tensor, torch.Tensor]


def autodetect_device_type() -> str:
    """The best that is here: cuda, else mps, else cpu."""
    raise NotImplementedError("lesson 17: autodetect_device_type is yours to write")


def pick_dtype(device: torch.device) -> torch.dtype:
    """The format of matrix products: torch.bfloat16 where the device multiplies it fast, else torch.float32.

    Fast are GPUs of compute capability 8.0 and above, and CPUs whose /proc/cpuinfo names amx_bf16, or both avx512_bf16
    and the vendor AuthenticAMD: an Intel whose AMX is hidden is slower in bfloat16.
    """
    raise NotImplementedError("lesson 17: pick_dtype is yours to write")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a CPU always has."""
    raise NotImplementedError("lesson 17: synchronize is yours to write")


def seconds_of(work: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """The median time of `work()`, by time.perf_counter(), after one call that is not counted.

    A GPU works on while Python goes ahead: `synchronize(device)` before either look at the clock.
    """
    raise NotImplementedError("lesson 17: seconds_of is yours to write")


def mixed_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (..., inputs) through weight (outputs, inputs), in the format of x; weight and its gradient stay float32."""
    raise NotImplementedError("lesson 17: mixed_linear is yours to write")


def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: int) -> torch.Tensor:
    """Causal attention of q, k, v (B, H, T, D), `block` keys at a time: (B, H, T, D).

    No tensor of (T, T) scores is ever made: for each query keep the largest score so far, the sum of exponentials
    relative to it, and the values weighted by them; a larger score shrinks what was summed before.
    """
    raise NotImplementedError("lesson 17: flash_attention is yours to write")


def nice(number: int, multiple: int = 128) -> int:
    """The next multiple, or the number itself where it is one."""
    raise NotImplementedError("lesson 17: nice is yours to write")


def accumulate(model: torch.nn.Module, batches: Sequence[Batch]) -> float:
    """Gradients of the mean loss over all counted targets of all batches, one batch at a time; that loss.

    `model(inputs, targets)` gives the mean over the targets of one batch that are not -1, and 0 where there is none.
    Batches may count unequally many; all together must have the gradients that one large batch would have.
    """
    raise NotImplementedError("lesson 17: accumulate is yours to write")
