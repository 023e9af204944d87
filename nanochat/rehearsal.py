"""A run rehearsed before it starts: a few micro-steps of the same width and vocabulary with few layers and rows.

From what these take `forecast` says what the run will take. The number of rows per micro-batch is found here too: on a
GPU by trying, from many downwards, until one does not run out of memory; elsewhere, where nothing raises when memory
runs out, from the forecast and the free memory.

Not in this room: data, schedules, and any decision about what is computed besides the rows per micro-batch.

Lesson: lessons/17_one_gpu
"""

import gc
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat import calibration, hardware
from nanochat.command import UserError
from nanochat.forecast import Corner, forecast, row_candidates, rows_that_fit
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.optim import MuonAdamW, Rates
from nanochat.plan import TrainPlan
from nanochat.runtime import Runtime

# Tokens of a micro-batch beyond which more rows only take memory: matrix products are as fast as they get.
MOST_TOKENS = {"cpu": 16_384, "cuda": 131_072, "mps": 16_384}
REHEARSED_TOKENS = {"cpu": 2_048, "cuda": 65_536, "mps": 4_096}
SECONDS = 2.0


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that were made while it is entered and are still held; `peak` is the most.

    What an operation takes and gives back inside is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not hidden from torch.compile, for which its machinery would be imported: seconds, and 150 MB."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, storage.nbytes()).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class Peak:
    """The most bytes of tensors held on the device since it was entered or last asked."""

    def __init__(self, device: torch.device):
        self.device = device
        self._counter = LiveBytes()

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            self._before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._counter.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.device.type != "cuda":
            self._counter.__exit__(kind, error, at)

    def take(self) -> int:
        """The peak until now; the next one starts at what is held now."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) - self._before
            torch.cuda.reset_peak_memory_stats(self.device)
            return peak
        peak, self._counter.peak = self._counter.peak, self._counter.live
        return peak


class Stage:
    """A model, its optimizer and a batch of ids, on one rank: what is rehearsed with."""

    def __init__(self, config: GPTConfig, rows: int, runtime: Runtime, activation_checkpointing: bool):
        with torch.random.fork_rng(devices=[]):  # torch's embedding draws numbers when it is made
            self.model = GPT(config, runtime.dtype).to(runtime.device)
        generator = torch.Generator(runtime.device).manual_seed(0)
        for parameter in self.model.parameters():  # equal ones make gradients so small that products are denormal
            torch.nn.init.uniform_(parameter, -0.05, 0.05, generator=generator)
        self.model.activation_checkpointing = activation_checkpointing
        alone = replace(runtime, rank=0, world_size=1)
        self.optimizer = MuonAdamW(dict(self.model.named_parameters()), self.model.roles(), Rates(), alone)
        ids = torch.arange(rows * config.sequence_len, device=runtime.device) * 31 % config.vocab_size
        self.ids = ids.view(rows, -1)  # (B, T)

    def micro_step(self, rows: int) -> None:
        """Forward and backward of so many rows."""
        ids = self.ids[:rows]
        weights = torch.full(ids.shape, 1.0 / ids.numel(), device=ids.device)
        self.model(ids, ids, weights).backward()

    def update(self) -> None:
        """The optimizer's step."""
        self.optimizer.step(0.0)


def state_bytes(config: GPTConfig) -> int:
    """Bytes of optimizer state over all ranks: a momentum for matrices, two moments for the rest, in float32.

    Muon's variances, a value per row or column, are left out.
    """
    return 4 * config.matrix_params + 8 * (config.num_params - config.matrix_params)


def rehearse(
    config: GPTConfig, rows: int, runtime: Runtime, activation_checkpointing: bool = False, seconds: float = SECONDS
) -> list[Corner]:
    """Measure four corners: one and three layers, with at most `rows` rows and half as many.

    Fewer rows are taken where so many would take too long, but two numbers of them wherever the run has more than one:
    from one alone nothing follows for others. About `seconds` on a machine that the model suits; never less than two
    rounds.
    """
    most = min(rows, max(2, REHEARSED_TOKENS[runtime.device.type] // config.sequence_len))
    counts = sorted({max(1, most // 2), most})
    stages: dict[int, Stage] = {}
    peaks: dict[tuple[int, int], tuple[int, int, int]] = {}
    for layers in sorted({1, min(config.n_layer, 3)}):
        with Peak(runtime.device) as peak:
            sized = replace(config, n_layer=layers)
            stage = stages[layers] = Stage(sized, most, runtime, activation_checkpointing)
            for count in counts:
                stage.optimizer.zero_grad()
                peak.take()
                stage.micro_step(count)
                first = peak.take()
                stage.micro_step(count)
                again = peak.take()
                stage.update()
                peaks[layers, count] = (first, again, peak.take())
    micro: dict[tuple[int, int], list[float]] = {shape: [] for shape in peaks}
    update: dict[int, list[float]] = {layers: [] for layers in stages}
    started = time.perf_counter()
    while len(update[1]) < 2 or time.perf_counter() - started < seconds:  # in turn, so that noise meets all alike
        for layers, stage in stages.items():
            for count in counts:
                micro[layers, count].append(_clock(lambda: stage.micro_step(count), runtime))  # noqa: B023 (called now)
            update[layers].append(_clock(stage.update, runtime))
    return [
        Corner(layers, count, statistics.median(micro[layers, count]), statistics.median(update[layers]), *peak_bytes)
        for (layers, count), peak_bytes in peaks.items()
    ]


def _clock(call: Callable[[], None], runtime: Runtime) -> float:
    runtime.synchronize()
    started = time.perf_counter()
    call()
    runtime.synchronize()
    return time.perf_counter() - started


def free_memory_bytes(runtime: Runtime) -> float:
    """Bytes that one rank may still take: the GPU's, or its share of the machine's."""
    if runtime.device.type == "cuda":
        return float(torch.cuda.mem_get_info(runtime.device)[0])
    ranks_here = runtime.world_size  # processes without a GPU share one machine's memory
    return hardware.available_memory_bytes() / ranks_here


def auto_rows(config: GPTConfig, rows_per_step: int, runtime: Runtime, activation_checkpointing: bool = False) -> int:
    """Rows per micro-batch for `rows_per_step` rows per rank and step: the most that fit, the same on every rank.

    Raises UserError when not even one row fits.
    """
    most = max(1, MOST_TOKENS[runtime.device.type] // config.sequence_len)
    candidates = row_candidates(rows_per_step, most)
    if runtime.device.type == "cuda":
        found = probe_downwards(candidates, lambda rows: _try_rows(config, rows, runtime, activation_checkpointing))
    else:
        corners = rehearse(config, candidates[0], runtime, activation_checkpointing, seconds=0.0)
        found = rows_that_fit(
            corners, candidates, config.n_layer, rows_per_step, runtime.world_size, state_bytes(config),
            free_memory_bytes(runtime), runtime.device.type,
        )  # fmt: skip
    on_ranks = runtime.gather_objects(found)
    fitting = [rows for rows in on_ranks if isinstance(rows, int)]
    if len(fitting) < len(on_ranks):
        raise UserError(
            f"not even one row of {config.sequence_len} tokens fits into the {free_memory_bytes(runtime) / 1e9:.1f} GB "
            "that are free: try --activation_checkpointing, a smaller --max_seq_len or a smaller --depth"
        )
    return min(fitting)


def foretell(
    config: GPTConfig, plan: TrainPlan, runtime: Runtime, activation_checkpointing: bool, price_per_hour: float | None
) -> str:
    """Memory, time and cost of a run, as lines to read; the price of one device is the table's where none is given."""
    free = free_memory_bytes(runtime)
    peak = calibration.peak_flops(runtime)
    corners = rehearse(config, plan.device_batch_size, runtime, activation_checkpointing)
    found = forecast(plan, config.n_layer, state_bytes(config), corners, runtime.device.type)
    price = price_per_hour if price_per_hour is not None else hardware.dollars_per_hour(runtime.device_name)
    return found.lines(free, peak, price, runtime.world_size)


def probe_downwards(candidates: Iterable[int], attempt: Callable[[int], None]) -> int | None:
    """The first of `candidates` whose attempt does not run out of memory."""
    for rows in candidates:
        try:
            attempt(rows)
        except torch.OutOfMemoryError:
            pass
        else:
            return rows
        finally:
            gc.collect()  # outside of `except`, whose traceback holds the tensors
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return None


def _try_rows(config: GPTConfig, rows: int, runtime: Runtime, activation_checkpointing: bool) -> None:
    """Two micro-steps and an update at full depth, while a twentieth of the device is held for what else comes."""
    total = torch.cuda.get_device_properties(runtime.device).total_memory
    ballast = torch.empty(total // 20, dtype=torch.uint8, device=runtime.device)
    stage = Stage(config, rows, runtime, activation_checkpointing)
    stage.micro_step(rows)
    stage.micro_step(rows)
    stage.update()
    del ballast
