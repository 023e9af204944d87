"""The machine of one process: device, number format, rank; started and ended by a context manager.

torch enters the house here. Nothing in this room knows a model.

Lessons: lessons/17_one_gpu, lessons/18_two_processes
"""

import contextlib
import ctypes
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy
import torch
import torch.distributed as dist

from nanochat import hardware
from nanochat.command import UserError

DEVICE_TYPES = ("cuda", "mps", "cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Runtime:
    """What a process runs on. `dtype` is the format of matrix products; master weights are float32 always."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world_size: int = 1

    @staticmethod
    @contextlib.contextmanager
    def start(
        device_type: str = "",
        dtype: str = "auto",
        seed: int = 42,
        threads: int | None = None,
        keeps_memory: bool = True,
    ) -> Iterator["Runtime"]:
        """Seed, take the device, join the other ranks when torchrun started us; leave them at the end.

        An empty `device_type` takes cuda, else mps, else cpu. Raises UserError for what the machine does not have.
        `keeps_memory` is for a CPU and tensors of few sizes, as steps of training make them; see `keep_freed_memory`.
        """
        kind = device_type or autodetect_device_type()
        if kind not in DEVICE_TYPES:
            raise UserError(f"--device_type={kind} is unknown; allowed are {', '.join(DEVICE_TYPES)}")
        if kind not in _present():
            raise UserError(f"--device_type={kind} is not on this machine; present: {', '.join(_present())}")
        rank, local_rank, world_size = (int(os.environ.get(k, d)) for k, d in _TORCHRUN.items())
        if kind == "cuda" and local_rank >= torch.cuda.device_count():
            raise UserError(
                f"local rank {local_rank} has no GPU of its own: this machine has {torch.cuda.device_count()}; "
                "start as many processes (--nproc_per_node) as there are GPUs"
            )
        _seed_everything(seed)
        if kind == "cpu":
            torch.set_num_threads(threads or _fair_threads(world_size))
            if keeps_memory:
                keep_freed_memory()
        device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
            torch.set_float32_matmul_precision("high")
        runtime = Runtime(device, pick_dtype(dtype, device), rank, world_size)
        if world_size > 1:
            _join_ranks("nccl" if kind == "cuda" else "gloo")
        try:
            yield runtime
        except BaseException:
            # nccl would wait for the other ranks here, and torchrun, which ends them, for the end of this process
            if dist.is_initialized() and kind != "cuda":
                dist.destroy_process_group()
            raise
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """The name that a report gives the device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def synchronize(self) -> None:
        """Wait until the device has done what it was given: without this a clock lies."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def sum_over_ranks(self, *values: float) -> list[float]:
        """The sums over all ranks of a few numbers, in float64."""
        if self.world_size == 1:
            return list(values)
        wide = self.device if self.device.type == "cuda" else "cpu"  # mps has no float64
        tensor = torch.tensor(values, dtype=torch.float64, device=wide)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gather_objects(self, value: object) -> list[object]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[object] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def peak_memory_bytes(self) -> int:
        """The most memory that this process has held: on the device for cuda, else resident."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return hardware.peak_memory_bytes()


_TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def _join_ranks(backend: str) -> None:
    """Meet the other ranks that torchrun has started.

    The store in which it lets them meet outlives a restart, so that the first to come would find the addresses of the
    dead. Every restart of one machine has names of its own there; restarts of several machines are not counted alike,
    and need a fresh store: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which `runs/multinode.sh` sets.
    """
    timeout = timedelta(minutes=10)
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    fresh = dist.PrefixStore(f"restart{restarts}", store)
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=world_size, timeout=timeout)


def _fair_threads(world_size: int) -> int:
    """This rank's share of the cores; for a single process OMP_NUM_THREADS is heeded (torchrun sets it to 1 itself)."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if world_size == 1 and asked.isdigit() and int(asked) > 0:
        return int(asked)
    return max(1, hardware.available_cores() // world_size)


def autodetect_device_type() -> str:
    """The best kind of device on this machine."""
    return _present()[0]


def _present() -> list[str]:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind in DEVICE_TYPES if there[kind]]


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The format of matrix products: `auto` is bfloat16 where the machine multiplies it fast, else float32."""
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"--dtype={name} is unknown; allowed are auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = device.type == "cpu" and _cpu_multiplies_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """AMX, or AVX512-BF16 on an AMD: elsewhere torch is slower in bfloat16 than in float32.

    On an Intel whose AMX is hidden, as some virtual machines do, oneDNN's AVX512-BF16 products took 1.1 to 3 times the
    seconds of float32's. A rule and no measurement, so that ranks agree and a resumed run repeats the same bits.
    """
    if not cpuinfo.is_file():
        return False
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    said = {name.strip(): value.split() for name, _, value in (line.partition(":") for line in reversed(lines))}
    flags, vendor = said.get("flags", []), said.get("vendor_id", [])
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == ["AuthenticAMD"])


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(runtime: Runtime) -> dict[str, object]:
    """The states of the global generators, as values that JSON can hold."""
    version, words, gauss = random.getstate()
    name, numpy_words, position, has_gauss, numpy_gauss = numpy.random.get_state(legacy=True)
    states: dict[str, object] = {
        "python": [version, list(words), gauss],
        "numpy": [name, [int(word) for word in numpy_words], position, has_gauss, numpy_gauss],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if runtime.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(runtime.device).numpy().tobytes().hex()
    return states


def restore_random_states(states: dict[str, object], runtime: Runtime) -> None:
    """Set the global generators to what `random_states` gave."""
    python_state = states["python"]
    assert isinstance(python_state, list), f"no state of Python's generator but {python_state!r}"
    version, words, gauss = python_state
    random.setstate((version, tuple(words), gauss))
    numpy_state = states["numpy"]
    assert isinstance(numpy_state, list), f"no state of numpy's generator but {numpy_state!r}"
    numpy.random.set_state(tuple(numpy_state))
    torch.set_rng_state(_bytes_tensor(states["torch"]))
    if runtime.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_bytes_tensor(states["cuda"]), runtime.device)


def _bytes_tensor(hexadecimal: object) -> torch.Tensor:
    assert isinstance(hexadecimal, str), f"expected bytes in hexadecimal, got {hexadecimal!r}"
    return torch.frombuffer(bytearray.fromhex(hexadecimal), dtype=torch.uint8)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: page faults on large buffers cost half of a CPU training step.

    A server, whose tensors have any size, would hold 450 MB more (depth 4) and answer no faster. No effect where the C
    library is another one. Constants from glibc's malloc.h.
    """
    mallopt = _of_c_library("mallopt")
    if mallopt is None:
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 << 20)


def give_back_freed_memory() -> None:
    """Tell glibc to give pages that nothing is left in back to the system, those between others too."""
    malloc_trim = _of_c_library("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_c_library(name: str) -> Callable[..., int] | None:
    """A function that only glibc has; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
