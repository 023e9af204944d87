"""Memory and time of a training step against depth, rows, vocabulary and length: measured, beside what is foretold.

    python bench/plan_curve.py [--quick] [--plot] [--out DIR]

Every point is two processes, one that trains and one that only rehearses, and one JSON line in `plan_curve.jsonl`; a
second call goes on where the first one ended. Memory is counted above the process after its imports.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from nanochat import command, hardware  # noqa: E402
from nanochat.command import UserError  # noqa: E402

TOKENS_PER_STEP = 8192


@dataclass(frozen=True)
class Point:
    """What is trained, 8,192 tokens per step."""

    depth: int
    rows: int
    vocab_size: int
    activation_checkpointing: bool = False
    sequence_len: int = 512


@dataclass(frozen=True)
class Config:
    """Flags of the bench."""

    quick: bool = False
    """Six small points instead of all."""
    plot: bool = False
    """Draw `plan_curve.png` too."""
    out: Path = Path("bench_out")
    """Where the lines and the picture go."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Format of matrix products."""
    threads: int | None = None
    """Threads of both processes; unset: all cores."""
    worker: Literal["measure", "foretell"] | None = None
    """Set by the bench itself: do one point's part, and print it as JSON."""
    point: str = ""
    """The worker's point as JSON."""


def points(quick: bool) -> dict[str, list[Point]]:
    """The curves by what grows along them."""
    if quick:
        return {
            "depth": [Point(2, 4, 8192), Point(4, 4, 8192), Point(6, 4, 8192)],
            "rows": [Point(4, 1, 8192), Point(4, 4, 8192)],
            "vocabulary": [Point(4, 4, 8192), Point(4, 4, 32_768)],
            "length": [Point(4, 4, 8192), Point(4, 4, 8192, sequence_len=2048)],
        }
    return {
        "depth": [Point(depth, 4, 32_768) for depth in (2, 4, 6, 8, 10, 12)] + [Point(12, 4, 32_768, True)],
        "rows": [Point(4, rows, 8192) for rows in (1, 2, 4, 8, 16)],
        "vocabulary": [Point(4, 4, size) for size in (4096, 8192, 16_384, 32_768, 65_536)],
        "length": [Point(4, 8192 // tokens, 8192, sequence_len=tokens) for tokens in (128, 256, 512, 1024, 2048)],
    }


def main(config: Config) -> None:
    """Measure what is missing, then print the table, and last one JSON object."""
    if config.worker is not None:
        print(json.dumps(work(config)))
        return
    config.out.mkdir(parents=True, exist_ok=True)
    lines = config.out / "plan_curve.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in read(lines)), encoding="utf-8")  # without a torn end
    curves = points(config.quick)
    rows = []
    for point in dict.fromkeys(point for curve in curves.values() for point in curve):
        asked = {**asdict(point), "dtype": config.dtype, "threads": config.threads}
        row = next((row for row in read(lines) if row["asked"] == asked), None)
        if row is None:
            row = {"asked": asked, **run("foretell", config, point), **run("measure", config, point)}
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(
            f"depth {point.depth:2} rows {point.rows:2} of {point.sequence_len:4} vocabulary {point.vocab_size:6} "
            f"{'twice ' if point.activation_checkpointing else ''}"
            f"memory {row['bytes'] / 1e6:7,.0f} MB foretold {row['foretold_bytes'] / row['bytes'] - 1:+.0%}  "
            f"step {row['seconds']:6.2f} s foretold {row['foretold_seconds'] / row['seconds'] - 1:+.0%}",
            flush=True,
        )
    if config.plot:
        draw(curves, rows, config.out / "plan_curve.png")
    off = {of: [abs(row[f"foretold_{of}"] / row[of] - 1) for row in rows] for of in ("bytes", "seconds")}
    figures = {
        f"{name}_off_{kind}": round(take(off[of]), 3)
        for of, name in (("bytes", "memory"), ("seconds", "time"))
        for kind, take in (("median", statistics.median), ("at_most", max))
    }
    figures["points"] = len(rows)
    print(json.dumps({"bench": "plan_curve", "ratios": {}, "figures": figures, "machine": hardware.describe()}))


def read(lines: Path) -> list[dict]:
    """The points that were measured already; a torn last line counts for nothing."""
    found = []
    for line in lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def run(part: str, config: Config, point: Point) -> dict:
    """One part of one point, in a process of its own."""
    arguments = ["--worker", part, "--point", json.dumps(asdict(point)), "--dtype", config.dtype]
    threads = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False, env=os.environ | threads
    )
    if done.returncode:
        raise UserError(f"{part} of {point} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def work(config: Config) -> dict[str, float]:
    """What a worker finds: bytes and seconds of a step."""
    import torch

    from nanochat.forecast import forecast
    from nanochat.gpt import GPT
    from nanochat.gpt_config import config_for_depth
    from nanochat.optim import MuonAdamW, Rates
    from nanochat.plan import plan_training
    from nanochat.rehearsal import rehearse, state_bytes
    from nanochat.runtime import Runtime
    from nanochat.training import accumulate

    point = Point(**json.loads(config.point))
    model_config = config_for_depth(point.depth, point.vocab_size, point.sequence_len)
    with Runtime.start("cpu", config.dtype) as runtime:
        before = resident()
        plan = plan_training(
            model_config, device_batch_size=point.rows, world_size=1, total_batch_size=TOKENS_PER_STEP,
            num_iterations=100, target_param_data_ratio=0.0, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004,
        )  # fmt: skip
        if config.worker == "foretell":
            started = time.perf_counter()
            corners = rehearse(model_config, point.rows, runtime, point.activation_checkpointing)
            found = forecast(plan, point.depth, state_bytes(model_config), corners, "cpu")
            took = time.perf_counter() - started
            return {
                "foretold_bytes": found.memory_bytes,
                "foretold_seconds": found.step_seconds,
                "rehearsal_seconds": took,
            }
        model = GPT(model_config, runtime.dtype)
        model.init_weights()
        model.activation_checkpointing = point.activation_checkpointing
        optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(), runtime)
        ids = torch.randint(point.vocab_size, (point.rows, point.sequence_len + 1))
        batches = iter(lambda: (ids[:, :-1], ids[:, 1:]), None)
        taken: list[float] = []
        while len(taken) < 4 or (sum(taken) < 6 and len(taken) < 12):
            started = time.perf_counter()
            accumulate(model, batches, plan.grad_accum_steps, runtime)
            optimizer.step()
            optimizer.zero_grad()
            taken.append(time.perf_counter() - started)
        return {"bytes": resident("VmHWM") - before, "seconds": statistics.median(taken[1:])}


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory now, or at most so far (VmHWM), which unlike ru_maxrss no parent lends."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise UserError("memory is read from /proc/self/status, which this system does not have: run it on Linux")


def draw(curves: dict[str, list[Point]], rows: list[dict], path: Path) -> None:
    """Memory above, time below; measured as points, foretold as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), dpi=100, layout="constrained")
    found = {tuple(row["asked"][field.name] for field in fields(Point)): row for row in rows}
    units = (("bytes", 1e9, "GB above imports"), ("seconds", 1.0, "seconds a step"))
    for column, (name, of_curve) in enumerate(curves.items()):
        plain = [point for point in of_curve if not point.activation_checkpointing]
        along = {"depth": "depth", "rows": "rows", "vocabulary": "vocab_size", "length": "sequence_len"}[name]
        xs = [getattr(point, along) for point in plain]
        for line, (field, scale, label) in enumerate(units):
            axes = figure.add_subplot(2, len(curves), 1 + column + line * len(curves))
            kept = [found[tuple(asdict(point).values())] for point in plain]
            axes.plot(xs, [row[f"foretold_{field}"] / scale for row in kept], "--", label="foretold")
            axes.plot(xs, [row[field] / scale for row in kept], "o", label="measured")
            axes.set_xlabel(name)
            axes.set_ylabel(label)
            axes.set_ylim(0, 1.1 * max(row[f"{of}{field}"] / scale for row in kept for of in ("", "foretold_")))
            axes.grid(alpha=0.3)
    figure.axes[0].legend()
    FigureCanvasAgg(figure).print_png(path)


if __name__ == "__main__":
    command.run(main, Config)
