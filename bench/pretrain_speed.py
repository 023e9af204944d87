"""Speed and memory of training steps in `bench/pretrain.py`: ours and the peer's, row by row of its table.

Every contender first takes a step of each size of micro-batch, and then goes on with the smallest that is within 2 % of
its fastest; so does the peer, which also runs as it comes and with the allocator's setting. Compiled contenders are
measured once with an empty cache of compiled code, which gives the time of the first step, and then with a full one.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal

from pretrain_lines import Lines, run_worker
from pretrain_worker import Speed

from nanochat import paths
from nanochat.command import UserError

Dtype = Literal["bfloat16", "float32"]
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
OURS = ("compiled", "eager")
PEERS = ("kept", "plain")
Found = dict[str, dict[str, dict[str, Any]]]
"""By row and by contender."""


@dataclass(frozen=True)
class Row:
    """A row of the table: a model, rows of tokens per step, and how many of them a micro-batch may have."""

    depth: int
    vocab_size: int
    rows: int
    micro: tuple[int, ...]
    dtypes: tuple[Dtype, ...] = DTYPES
    peers: tuple[str, ...] = PEERS
    sequence_len: int = 512
    device: Literal["cpu", "cuda"] = "cpu"


def gpu_row(depth: int) -> Row:
    """Half a million tokens per step, beside the peer through torch.compile."""
    return Row(depth, 65_536, 256, (4, 8, 16, 32, 64), ("bfloat16",), ("compiled",), 2048, "cuda")


ROWS = {
    "d4": Row(4, 8192, 16, (4, 8, 16)),
    "d4_one_row": Row(4, 8192, 1, (1,), peers=("kept",)),
    "d4_accumulated": Row(4, 8192, 16, (1,), peers=("kept",)),
    "d6": Row(6, 32_768, 32, (4, 8), peers=("kept",)),
    "d8": Row(8, 8192, 16, (4, 8), ("bfloat16",), ()),
    "cuda_d12": gpu_row(12),
    "cuda_d20": gpu_row(20),
}
QUICK = {"d4": Row(4, 8192, 16, (4,), peers=("kept",))}


def contenders(row: Row) -> dict[str, Speed]:
    """By name, without the size of their micro-batch."""
    found = {}
    for dtype in row.dtypes:
        job = Speed(
            "ours", row.depth, row.vocab_size, row.rows, 0, dtype, sequence_len=row.sequence_len, device=row.device
        )
        for mode in OURS:
            found[f"ours.{dtype}.{mode}"] = replace(job, compiled=mode == "compiled")
        for setting in row.peers:
            found[f"transformers.{dtype}.{setting}"] = replace(
                job, contender="transformers", compiled=setting == "compiled", keeps_memory=setting != "plain"
            )
    return found


def measured(lines: Lines, rows: dict[str, Row], rounds: int, seconds: float) -> Found:
    """Medians by row and contender; the contenders of a row take turns."""
    found: Found = {}
    for name, row in rows.items():
        trials = {who: tried(lines, who, job, row.micro) for who, job in contenders(row).items()}
        chosen = {
            who: replace(
                job, micro=smallest_of_fast({micro: t["tokens_per_second"] for micro, t in trials[who].items()})
            )
            for who, job in contenders(row).items()
        }
        runs: dict[str, list[dict[str, Any]]] = {who: [] for who in chosen}
        for number in range(1, rounds + 1):
            for who, job in chosen.items():
                result = timed(lines, replace(job, seconds=seconds), number)
                runs[who].append(result)
                print(
                    f"{number}/{rounds}  {name:14} {who:26} {job.micro:2} rows {result['tokens_per_second']:8,.0f} "
                    f"tokens/s {result['memory_bytes'] / 1e9:5.2f} GB, {result['cpu_share']:.0%} of the cores",
                    flush=True,
                )
        found[name] = {
            who: {"micro": chosen[who].micro, "trials": trials[who], **medians(of_who)} for who, of_who in runs.items()
        }
        for dtype in row.dtypes:
            add_mfu([each for who, each in found[name].items() if f".{dtype}." in who])
            compiled, eager = f"ours.{dtype}.compiled", f"ours.{dtype}.eager"
            cold = cold_start(lines, chosen[compiled])
            found[name][compiled] |= {
                "cold_first_seconds": cold["first_seconds"],
                "cold_memory_bytes": cold["memory_bytes"],
                "pays_after_seconds": pays_after(
                    cold["first_seconds"],
                    found[name][compiled]["step_seconds"],
                    found[name][eager]["step_seconds"],
                ),
            }
    return found


def tried(lines: Lines, who: str, job: Speed, sizes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Speed and memory by the size of the micro-batch, from short trials."""
    kept = ("tokens_per_second", "memory_bytes")
    trials: dict[int, dict[str, Any]] = {}
    for size in sizes:
        trial = timed(lines, replace(job, micro=size, seconds=2.0), 0)
        if "out_of_memory" in trial:
            break
        trials[size] = {key: trial[key] for key in kept}
    if not trials:
        raise UserError(f"{who} runs out of memory with {sizes[0]} rows of depth {job.depth}: leave that row out")
    told = (f"{size}: {t['tokens_per_second']:,.0f} in {t['memory_bytes'] / 1e9:.2f} GB" for size, t in trials.items())
    print(f"{who:26} by rows of a micro-batch, tokens/s {', '.join(told)}", flush=True)
    return trials


def smallest_of_fast(rates: dict[int, float], slack: float = 0.02) -> int:
    """The smallest micro-batch that is within `slack` of the fastest: it takes the least memory."""
    return min(size for size, rate in rates.items() if rate >= (1 - slack) * max(rates.values()))


def timed(lines: Lines, job: Speed, number: int) -> dict[str, Any]:
    """One process; what it compiles is kept for the next one."""
    cache = str(paths.base_dir() / "compiled")
    return lines.get("speed", {**asdict(job), "round": number}, lambda: run_worker(job, TORCHINDUCTOR_CACHE_DIR=cache))


def cold_start(lines: Lines, job: Speed) -> dict[str, Any]:
    """One process that finds nothing compiled."""
    job = replace(job, seconds=1.0)

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="pretrain-") as cache:
            return run_worker(job, TORCHINDUCTOR_CACHE_DIR=cache)

    return lines.get("cold", asdict(job), measure)


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Field by field, and the range of the speed."""
    rates = [run["tokens_per_second"] for run in runs]
    ends = {"slowest": min(rates), "fastest": max(rates), "highest_peak": max(run["peak_flops"] for run in runs)}
    numbers = {key: median(run[key] for run in runs) for key in runs[0] if key != "attention"}
    return {**numbers, **ends, "attention": runs[-1]["attention"]}


def add_mfu(of_dtype: list[dict[str, Any]]) -> None:
    """The share of the highest peak that any process of a format measured: a busy moment only lowers a peak."""
    peak = max(each["highest_peak"] for each in of_dtype)
    for each in of_dtype:
        each["mfu"] = each["flops_per_token"] * each["tokens_per_second"] / peak


def pays_after(first_seconds: float, compiled_step: float, eager_step: float) -> float | None:
    """After how much training a compiled run is ahead of an eager one; None: never.

    In T seconds the one makes 1 + (T - first) / compiled steps and the other T / eager.
    """
    if compiled_step >= eager_step:
        return None
    return max(0.0, (first_seconds / compiled_step - 1) / (1 / compiled_step - 1 / eager_step))


def ratio(found: Found, ours: str, theirs: str, row: str = "d4") -> float | None:
    """The fastest of ours over the fastest of the peer's settings, by how their names begin; None without one."""
    speeds = {who: result["tokens_per_second"] for who, result in found.get(row, {}).items()}
    us, them = ([rate for who, rate in speeds.items() if who.startswith(start)] for start in (ours, theirs))
    return max(us) / max(them) if us and them else None


def targets(found: Found) -> dict[str, dict[str, Any]]:
    """What was aimed at, and what was measured of it, in bfloat16."""

    def of(row: str, mode: str, key: str) -> float | None:
        value = found.get(row, {}).get(f"ours.bfloat16.{mode}", {}).get(key)
        return None if value is None else float(value)

    at_least = {
        "d4_compiled": (16_700, of("d4", "compiled", "tokens_per_second")),
        "d4_eager": (12_000, of("d4", "eager", "tokens_per_second")),
        "d4_one_row": (5_500, of("d4_one_row", "compiled", "tokens_per_second")),
        "d4_accumulated": (8_300, of("d4_accumulated", "compiled", "tokens_per_second")),
        "d6_compiled": (3_800, of("d6", "compiled", "tokens_per_second")),
        "d8_mfu": (0.35, of("d8", "compiled", "mfu")),
        "cuda_d12_mfu": (0.5, of("cuda_d12", "compiled", "mfu")),
        "cuda_d20_mfu": (0.5, of("cuda_d20", "compiled", "mfu")),
        "vs_transformers_float32": (3.0, ratio(found, "ours.", "transformers.float32.")),
        "vs_transformers_bfloat16": (1.8, ratio(found, "ours.", "transformers.bfloat16.")),
    }
    at_most = {
        "d4_memory_bytes": (0.7e9, of("d4", "compiled", "cold_memory_bytes")),
        "d4_eager_memory_bytes": (0.7e9, of("d4", "eager", "memory_bytes")),
        "d6_memory_bytes": (2.0e9, of("d6", "compiled", "cold_memory_bytes")),
        "d4_compilation_pays_after_seconds": (120.0, of("d4", "compiled", "pays_after_seconds")),
    }
    reached = {
        name: {"target": target, "measured": value, "reached": value >= target}
        for name, (target, value) in at_least.items()
        if value is not None
    }
    return reached | {
        name: {"target": target, "measured": value, "reached": value <= target}
        for name, (target, value) in at_most.items()
        if value is not None
    }
