"""Tokens a second on a CPU beside transformers' generate with the same weights. The last line is JSON.

    python bench/decode.py
    python bench/decode.py --quick
    python bench/decode.py --plot
    python bench/decode.py --depths 4 --ours bfloat16 int8 --rows 1 16 --no-peers --steps

Each contender's measurements are a process of their own (`decode_worker.py`), and the contenders take turns.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from decode_worker import Job, as_line

from nanochat import command, hardware
from nanochat.command import UserError
from nanochat.gpt_config import GPTConfig, Weights, config_for_depth

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {
    ("ours.bfloat16", 12, 1): 65, ("ours.int8", 12, 1): 105, ("ours.bfloat16", 12, 8): 350,
    ("ours.bfloat16", 12, 16): 550, ("ours.bfloat16", 4, 1): 600, ("ours.int8", 4, 1): 800,
    ("ours.bfloat16", 4, 16): 4000,
}  # fmt: skip
"""Tokens a second by contender, depth and rows, on two cores that read 22 GB/s."""
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5 + 2 * 2 / 32}
CONTEXTS = (64, 256, 512, 1024, 1900)
GROWING_ROWS = (1, 2, 4, 8, 16, 32, 64)

Result = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """What to measure, how often."""

    depths: tuple[int, ...] = (12, 4)
    ours: tuple[Weights, ...] = ("bfloat16", "int8", "int4", "float32")
    """Formats of our weights."""
    peers: bool = True
    """transformers in bfloat16 and float32 too."""
    rows: tuple[int, ...] = (1, 8, 16)
    prompt_tokens: int = 64
    new_tokens: int = 128
    vocab_size: int = 32_768
    rounds: int = 5
    """Processes of every contender; medians count."""
    repeats: int = 3
    """Generations of each shape in a process."""
    first_token_prompt: int = 512
    """Tokens of the prompt whose first answering id is timed."""
    steps: bool = False
    """Time the parts of a decode step too."""
    quick: bool = False
    """One round of depth 4, two generations."""
    plot: bool = False
    """Measure and draw how the speed depends on context and rows, at the smallest depth."""


def run_worker(job: Job) -> Result:
    """A job's result; `error` is the last line of what went wrong."""
    program = [sys.executable, str(Path(__file__).with_name("decode_worker.py")), as_line(job)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def medians(results: Sequence[Any]) -> Any:
    """Number by number, through dicts and lists of one form; of words the last. One that failed is all there is."""
    last = results[-1]
    if isinstance(last, dict):
        if failed := [result for result in results if "error" in result]:
            return failed[-1]
        return {key: medians([result[key] for result in results]) for key in last}
    if isinstance(last, list):
        return [medians(each) for each in zip(*results, strict=True)]
    return median(results) if isinstance(last, int | float) else last


def bytes_per_token(sizes: GPTConfig, weights: str, context: float) -> float:
    """What one row's step has to read: every matrix and the head, and the cache of so many tokens."""
    head = sizes.vocab_size * sizes.n_embd * (BYTES["int8"] if weights == "int4" else BYTES[weights])
    of_cache = 4 if weights == "float32" else 2
    return sizes.matrix_params * BYTES[weights] + head + sizes.kv_cache_bytes(1, 1, of_cache) * context


def found_speed(found: dict[str, Result], contender: str, depth: int, rows: int) -> float | None:
    """Tokens a second, the prompt's reading counted; None where it was not measured."""
    result = found.get(f"{contender}.d{depth}", {})
    for each in result.get("generations", ()):
        if each["rows"] == rows:
            return float(each["tokens_per_second"])
    return None


def summary(config: Config, found: dict[str, Result], facts: Result) -> Result:
    """Ratios, figures and machine of the last line; what was not measured is null."""

    def against_best(contender: str, depth: int, rows: int) -> float | None:
        mine = found_speed(found, contender, depth, rows)
        theirs = [found_speed(found, f"transformers.{dtype}", depth, rows) for dtype in ("bfloat16", "float32")]
        known = [speed for speed in theirs if speed is not None]
        return mine / max(known) if mine is not None and known else None

    shares = {}
    bandwidth = found["bandwidth"].get("bytes_per_second")
    for depth in config.depths:
        sizes = config_for_depth(depth, config.vocab_size, 2048)
        context = config.prompt_tokens + config.new_tokens / 2
        for weights in config.ours:
            speed = found_speed(found, f"ours.{weights}", depth, 1)
            if speed is not None and bandwidth:
                shares[f"{weights}.d{depth}"] = speed * bytes_per_token(sizes, weights, context) / bandwidth
    targets = {}
    for (contender, depth, rows), target in TARGETS.items():
        speed = found_speed(found, contender, depth, rows)
        if speed is not None:
            key = f"{contender}.d{depth}.rows{rows}"
            targets[key] = {"target": target, "measured": speed, "reached": speed >= target}
    ratios = {
        "d12_1row_vs_transformers": against_best("ours.bfloat16", 12, 1),
        "d12_1row_int8_vs_transformers": against_best("ours.int8", 12, 1),
        "d12_8rows_vs_transformers": against_best("ours.bfloat16", 12, 8),
        "d12_16rows_vs_transformers": against_best("ours.bfloat16", 12, 16),
        "d4_1row_vs_transformers": against_best("ours.bfloat16", 4, 1),
        "d4_16rows_vs_transformers": against_best("ours.bfloat16", 4, 16),
        "share_of_bandwidth_d12": shares.get("bfloat16.d12"),
    }
    figures = {"targets": targets, "share_of_bandwidth": shares, "contenders": found, **facts}
    return {"bench": "decode", "ratios": ratios, "figures": figures, "machine": hardware.describe()}


def jobs(config: Config) -> dict[str, Job]:
    """By the names under which their results are kept; in the order in which they take turns."""
    shapes = tuple((rows, config.prompt_tokens, config.new_tokens) for rows in config.rows)
    contenders = [f"ours.{weights}" for weights in config.ours]
    if config.peers:
        contenders += ["transformers.bfloat16", "transformers.float32"]
    made = {"bandwidth": Job("bandwidth", repeats=max(config.repeats, 3))}
    for depth in config.depths:
        for contender in contenders:
            is_ours = contender.startswith("ours.")
            made[f"{contender}.d{depth}"] = Job(
                contender, depth, config.vocab_size, shapes=shapes, repeats=config.repeats,
                first_token_prompt=config.first_token_prompt if is_ours else 0,
                step_rows=config.rows if is_ours and config.steps else (),
            )  # fmt: skip
    return made


def growth(config: Config, out: Path) -> Result:
    """Tokens decoded a second by context with one row, and by rows; ours and transformers, drawn beside each other."""
    import matplotlib as mpl

    depth = min(config.depths)
    shapes = tuple((1, context, 32) for context in CONTEXTS)
    shapes += tuple((rows, config.prompt_tokens, 32) for rows in GROWING_ROWS)
    contenders = [f"ours.{weights}" for weights in config.ours]
    contenders += ["transformers.bfloat16"] if config.peers else []
    curves: Result = {}
    for contender in contenders:
        result = run_worker(Job(contender, depth, config.vocab_size, shapes=shapes, repeats=config.repeats))
        if "error" in result:
            print(f"{contender} failed: {result['error']}", flush=True)
            continue
        curves[contender] = result["generations"]
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for contender, points in curves.items():
        split = len(CONTEXTS)
        for axis, part, key in ((axes[0], points[:split], "prompt_tokens"), (axes[1], points[split:], "rows")):
            axis.plot([p[key] for p in part], [p["decoded_per_second"] for p in part], "o-", label=contender)
    for axis, label in zip(axes, ("tokens of context, one row", "rows"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.set_ylabel(f"tokens/s at depth {depth}")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(out / "decode_growth.png", dpi=90)
    plt.close(figure)
    return curves


def tell(name: str, result: Result) -> None:
    """One line of progress."""
    if "error" in result:
        said = result["error"]
    elif name == "bandwidth":
        said = f"{result['bytes_per_second'] / 1e9:.1f} GB/s"
    else:
        said = ", ".join(f"{each['rows']} rows {each['tokens_per_second']:.0f}/s" for each in result["generations"])
        if "first_token" in result:
            said += f", first token {result['first_token']['ratio']:.2f} x a forward pass"
    print(f"{name:28} {said}   load {os.getloadavg()[0]:.1f}", flush=True)


def main(config: Config) -> None:
    """Run the rounds, tell."""
    if not config.depths or not config.rows or config.rounds < 1 or config.repeats < 1:
        raise UserError("--depths and --rows need a value each, --rounds and --repeats one of at least 1")
    if config.quick:
        depths = (min(config.depths),)
        config = Config(depths, config.ours, config.peers, config.rows, new_tokens=32, rounds=1, repeats=2)
    runs: dict[str, list[Result]] = {name: [] for name in jobs(config)}
    for _ in range(config.rounds):
        for name, job in jobs(config).items():
            runs[name].append(run_worker(job))
            tell(name, runs[name][-1])
    found = {name: medians(results) for name, results in runs.items()}
    for name, result in found.items():
        if "error" in result and name.startswith("ours."):
            raise UserError(f"{name} failed: {result['error']}")
    facts: Result = {"config": config.__dict__}
    if config.plot:
        facts["growth"] = growth(config, Path(__file__).parent)
    print(json.dumps(summary(config, found, facts)))


if __name__ == "__main__":
    command.run(main, Config)
