"""What this device can do at most, measured in about a second: its matrix products and its memory.

The figures are shown beside a run's own and stored with it; they never decide what is computed.

Lesson: lessons/17_one_gpu
"""

import statistics
import time
from collections.abc import Callable

import torch

from nanochat import hardware
from nanochat.runtime import Runtime

SIDES = (1024, 2048)  # of square matrices: the smaller is fastest in some libraries, the larger in others


def peak_flops(runtime: Runtime, seconds: float = 0.5) -> float:
    """FLOPs per second of one rank: its maker's figure for a known GPU in bfloat16, else what a product reaches here.

    The measurement is that of the format the run multiplies in, with the threads the run has.
    """
    known = hardware.peak_flops(runtime.device_name)
    if known is not None and runtime.dtype == torch.bfloat16:
        return known
    return max(matmul_flops(side, runtime, seconds / len(SIDES)) for side in SIDES)


def matmul_flops(side: int, runtime: Runtime, seconds: float) -> float:
    """FLOPs per second of square products, the best of as many as fit into `seconds` and three at least."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(runtime.device, runtime.dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / min(time_calls(lambda: torch.mm(left, right, out=out), runtime, seconds))


def copied_bytes_per_second(runtime: Runtime, seconds: float = 0.3, megabytes: int = 256) -> float:
    """Bytes read and written per second by a copy that no cache holds."""
    source = torch.ones(megabytes << 18, device=runtime.device)  # four bytes each
    target = torch.empty_like(source)
    return 2 * (megabytes << 20) / statistics.median(time_calls(lambda: target.copy_(source), runtime, seconds))


def time_calls(call: Callable[[], object], runtime: Runtime, seconds: float, at_least: int = 3) -> list[float]:
    """Seconds of each call after a first one that is not counted."""
    call()
    runtime.synchronize()
    taken: list[float] = []
    while len(taken) < at_least or sum(taken) < seconds:
        started = time.perf_counter()
        call()
        runtime.synchronize()
        taken.append(time.perf_counter() - started)
    return taken
