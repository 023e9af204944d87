"""The tables of the lessons: what positions, initialisation, optimizer and KV cache are worth in two layers.

    python bench/lesson_ablations.py                   # all runs, some 40 s each on one core; goes on where it was
    python bench/lesson_ablations.py --changes baseline none --seeds 1 2 3
    python bench/lesson_ablations.py --write           # measured.json of the lessons

Trained on `nanochat.tinyworld`, which every checkout makes alike, or with `--text=pydoc` on the reference of Python
that every installation carries. One JSON line a run, none is repeated. Seeds change the weights and the order of the
rows. What is varied stands in `lesson_variations`.
"""

import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from lesson_variations import CHANGES, Change, optimizers_of, varied_model

from lessons import learner
from lessons.counting import CountFlops
from nanochat import command, hardware, paths, tinyworld
from nanochat.command import UserError
from nanochat.gpt import GPT
from nanochat.gpt_config import config_for_depth
from nanochat.loss_eval import evaluate_loss
from nanochat.plan import plan_training
from nanochat.runtime import Runtime
from nanochat.schedule import lr_multiplier, muon_momentum
from nanochat.tokenizer import RustBPETokenizer

LESSONS = Path(__file__).resolve().parent.parent / "lessons"
SETTINGS = ("text", "depth", "vocab_size", "max_seq_len", "total_batch_size", "tokens", "eval_tokens", "dtype")
"""Flags whose runs can be compared when they are equal."""

STUDENT_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Half-widths of 95 % intervals in standard errors, by the number of seeds."""

TABLES = {
    "11_positions": ("positions", "rotary_qk", "q and k rotated, in every layer: nanochat"),
    "12_initialisation": ("initialisation", "zero_projections", "projections back into the stream zero: nanochat"),
    "15_muon": ("optimizer", "muon_0.02", "Muon at 0.02: nanochat"),
}
"""By the lesson that tells of it: the kind of change, and what the baseline is called there."""
BASELINE = "baseline"

CACHE_DEPTHS = (2, 8)
CACHE_LENGTHS = (16, 32, 64, 128, 256)
CACHE_PROMPT = 16


@dataclass(frozen=True)
class Config:
    """Flags of the lessons' ablations."""

    text: Literal["tinyworld", "pydoc"] = "tinyworld"
    """tinyworld: made by the repository. pydoc: Python's own reference, which differs from version to version."""
    changes: tuple[str, ...] = tuple(CHANGES)
    """Which, in this order."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run per change and seed."""
    depth: int = 2
    """Layers."""
    vocab_size: int = 1024
    """Of the tokenizer, which is trained on the training text."""
    max_seq_len: int = 256
    """Tokens per row."""
    total_batch_size: int = 2048
    """Tokens per step."""
    tokens: int = 300_000
    """Training tokens per run."""
    eval_tokens: int = 65_536
    """Validation tokens."""
    dtype: str = "float32"
    """Format of matrix products."""
    cache_rounds: int = 5
    """Rounds in which generation with and without the cache is timed in turn; 0: leave the cache out."""
    out: Path | None = None
    """Where the lines go; unset: lesson_ablations.jsonl under the base directory."""
    write: bool = False
    """Only write the tables of the lessons from what the file holds."""


@dataclass(frozen=True)
class Text:
    """Rows of training and validation ids (N, T + 1), and the bytes of each id."""

    train: torch.Tensor
    held_out: torch.Tensor
    token_bytes: numpy.ndarray


# running


def documents(text: str) -> tuple[list[str], list[str]]:
    """Texts to train on and texts to validate on."""
    if text == "tinyworld":
        return list(tinyworld.documents(seed=1, megabytes=1.2)), list(tinyworld.documents(seed=2, megabytes=0.3))
    from pydoc_data.topics import topics

    pages = [topics[name] for name in sorted(topics)]
    return [page for n, page in enumerate(pages) if n % 8], pages[::8]


def prepared(config: Config) -> Text:
    """The text as rows of ids: documents one behind the other, each led by <|bos|>."""
    train, held_out = documents(config.text)
    tokenizer = RustBPETokenizer.train_from_iterator(train, config.vocab_size)
    lengths = numpy.array(tokenizer.token_bytes(), dtype=numpy.int64)
    found = []
    for texts in (train, held_out):
        ids = [token for text in texts for token in (tokenizer.get_bos_token_id(), *tokenizer.encode(text))]
        width = config.max_seq_len + 1
        found.append(torch.tensor(ids[: len(ids) // width * width]).view(-1, width))
    return Text(found[0], found[1][: max(1, config.eval_tokens // config.max_seq_len)], lengths)


def batches(rows: torch.Tensor, count: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets (count, T) for ever, every row once an epoch in an order of the seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < count:
            order = torch.cat((order, torch.randperm(len(rows), generator=generator)))
        drawn, order = rows[order[:count]], order[count:]
        yield drawn[:, :-1], drawn[:, 1:]


def run(config: Config, change: Change, seed: int, text: Text, runtime: Runtime) -> dict[str, Any]:
    """Train one model; its bits per byte, and its losses at every tenth of the way."""
    rows = config.total_batch_size // config.max_seq_len
    model_config = config_for_depth(config.depth, len(text.token_bytes), config.max_seq_len)
    plan = plan_training(
        model_config, device_batch_size=rows, world_size=1, total_batch_size=config.total_batch_size,
        num_iterations=max(1, config.tokens // config.total_batch_size), target_param_data_ratio=20.0,
        matrix_lr=change.matrix_lr, embedding_lr=0.2, unembedding_lr=0.004,
    )  # fmt: skip
    model = varied_model(model_config, change, seed)
    optimizers = optimizers_of(model, change, plan, runtime)
    loader = batches(text.train, rows, seed)
    losses = []
    started = time.perf_counter()
    for step in range(plan.num_iterations):
        loss = model(*next(loader))
        loss.backward()
        losses.append(loss.item())
        optimizers.step(lr_multiplier(step, plan.num_iterations, 0, plan.warmdown_ratio), muon_momentum(step))
    seconds = time.perf_counter() - started
    held_out = text.held_out.split(16)
    measured = evaluate_loss(model, ((b[:, :-1], b[:, 1:]) for b in held_out), text.token_bytes, runtime)
    tenth = max(1, len(losses) // 10)
    curve = [statistics.mean(losses[start : start + tenth]) for start in range(0, len(losses), tenth)]
    return {
        "bpb": measured.bpb,
        "loss": measured.loss,
        "first_loss": losses[0],
        "curve": [round(value, 4) for value in curve],
        "curve_tokens": tenth * config.total_batch_size,
        "seconds": round(seconds, 1),
    }


# the cache


def cache_line(config: Config, depth: int, tokens: int) -> dict[str, Any]:
    """What `tokens` ids cost lesson 20 with its cache and without: FLOPs counted, seconds as medians in turn."""
    lesson = learner.load(20)
    model_config = config_for_depth(depth, config.vocab_size, CACHE_PROMPT + max(CACHE_LENGTHS))
    model = GPT(model_config)
    model.init_weights(1)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    prompt = torch.randint(config.vocab_size, (1, CACHE_PROMPT), generator=torch.Generator().manual_seed(1))

    def generate(cached: bool, tokens: int) -> None:
        lesson.generate(weights, model_config.n_head, prompt, tokens, cached=cached)

    flops = {}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for cached in (True, False):
        generate(cached, 8)
        with CountFlops() as counted:
            generate(cached, tokens)
        flops[cached] = counted.flops
    for number in range(2 * config.cache_rounds):
        started = time.perf_counter()
        generate(number % 2 == 0, tokens)
        seconds[number % 2 == 0].append(time.perf_counter() - started)
    return {
        "flops_cached": flops[True],
        "flops_plain": flops[False],
        "seconds_cached": statistics.median(seconds[True]),
        "seconds_plain": statistics.median(seconds[False]),
        "cache_bytes": model_config.kv_cache_bytes(1, CACHE_PROMPT + tokens, 4),
    }


# telling


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def row_of(lines: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One change beside the baseline, paired by seed; `gain` in bpb is above 0 where it is better than that."""
    by_seed = {line["seed"]: line for line in base}
    paired = sorted((line for line in lines if line["seed"] in by_seed), key=lambda line: line["seed"])
    gains = [by_seed[line["seed"]]["bpb"] - line["bpb"] for line in paired]
    count = len(gains)
    half = STUDENT_95.get(count, 1.96) * statistics.stdev(gains) / math.sqrt(count) if count > 1 else None
    return {
        "seeds": [line["seed"] for line in paired],
        "bpb": [round(line["bpb"], 4) for line in paired],
        "mean_bpb": round(statistics.mean(line["bpb"] for line in paired), 4),
        "gain": round(statistics.mean(gains), 4),
        "half_width": None if half is None else round(half, 4),
        "first_loss": round(statistics.mean(line["first_loss"] for line in paired), 4),
        "curve": [
            round(statistics.mean(column), 4) for column in zip(*(line["curve"] for line in paired), strict=True)
        ],
    }


def tables(config: Config, lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tables of the lessons, by the folder."""
    settings = {name: getattr(config, name) for name in SETTINGS}
    runs = [line for line in lines if "change" in line and settings.items() <= line.items()]
    by_change: dict[str, list[dict[str, Any]]] = {}
    for line in runs:
        by_change.setdefault(line["change"], []).append(line)
    head = {"made_by": "python bench/lesson_ablations.py", "settings": settings}
    found: dict[str, dict[str, Any]] = {}
    for lesson, (kind, name, what) in TABLES.items():
        if BASELINE not in by_change:
            break
        base = by_change[BASELINE]
        rows = [{"name": name, "what": what, **row_of(base, base)}]
        rows += [
            {"name": other, "what": change.what, **row_of(by_change[other], base)}
            for other, change in CHANGES.items()
            if change.kind == kind and other in by_change
        ]
        machines = sorted({line["machine"] for line in runs})
        found[lesson] = {**head, "machine": machines, "curve_tokens": base[0]["curve_tokens"], "rows": rows}
    cache = [line for line in lines if "flops_cached" in line]
    if cache:
        machines = sorted({line["machine"] for line in cache})
        found["20_sampling_and_cache"] = {
            "made_by": head["made_by"], "machine": machines, "prompt_tokens": CACHE_PROMPT,
            "rows": sorted(cache, key=lambda line: (line["depth"], line["tokens"])),
        }  # fmt: skip
    return found


def machine() -> str:
    """In a few words."""
    return f"{torch.get_num_threads()} thread of a {hardware.cpu_model()}, torch {torch.__version__.split('+')[0]}"


def main(config: Config) -> None:
    """Run what is missing, or write the tables."""
    out = config.out or paths.base_dir() / "bench" / "lesson_ablations.jsonl"
    lines = read_lines(out)
    if config.write:
        for lesson, table in tables(config, lines).items():
            path = LESSONS / lesson / "measured.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
            print(path)
        return
    for name in config.changes:
        if name not in CHANGES:
            raise UserError(f"no change is called {name!r}; there are {', '.join(CHANGES)}")
    if config.total_batch_size % config.max_seq_len or config.tokens < config.total_batch_size:
        raise UserError(
            f"a step has whole rows and a run at least one step, got {config.tokens} tokens in steps of "
            f"{config.total_batch_size} and rows of {config.max_seq_len}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    text = prepared(config)
    settings = {name: getattr(config, name) for name in SETTINGS}

    def keep(line: dict[str, Any]) -> None:
        lines.append(line)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({key: value for key, value in line.items() if key not in settings}), flush=True)

    for seed in config.seeds:
        for name in config.changes:
            key = {"change": name, "seed": seed, **settings, "varied": asdict(CHANGES[name])}
            if any(key.items() <= line.items() for line in lines):
                continue
            with Runtime.start("cpu", config.dtype, seed) as runtime:
                keep({**key, **run(config, CHANGES[name], seed, text, runtime), "machine": machine()})
    for depth, tokens in itertools.product(CACHE_DEPTHS, CACHE_LENGTHS if config.cache_rounds else ()):
        key = {"depth": depth, "tokens": tokens, "vocab_size": config.vocab_size, "rounds": config.cache_rounds}
        if not any("flops_cached" in line and key.items() <= line.items() for line in lines):
            keep({**key, **cache_line(config, depth, tokens), "machine": machine()})


if __name__ == "__main__":
    command.run(main, Config)
