"""Which tricks pay: short pretraining runs of one change each, on real prose. Resumable; a JSON line a run.

    python bench/ablations.py --text=../shared/data/prose --tricks baseline smear --seeds 1 2 3
    python bench/ablations.py --text=../shared/data/prose --steps
    python bench/ablations.py --table

A run that stands in the file is not repeated: interrupt and start again as you like. Seeds change the weights and the
order of the documents. Losses do not depend on how busy the machine is, seconds do: `--steps` measures them afterwards,
every trick's beside the baseline's, and what it measured counts in the table.

Lesson: lessons/25_your_ablation
"""

import gc
import json
import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Literal

import torch

from nanochat import command, dataset, hardware, paths
from nanochat.checkpoint_manager import build_model
from nanochat.command import UserError
from nanochat.dataloader import DocumentLoader, one_epoch
from nanochat.gpt_config import ARCHITECTURES, config_for_depth
from nanochat.loss_eval import evaluate_loss
from nanochat.muon import MuonOptions
from nanochat.optim import MuonAdamW, Rates
from nanochat.plan import plan_training
from nanochat.runtime import Runtime
from nanochat.schedule import lr_multiplier, muon_momentum
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training import accumulate, compiled

SOURCE = "ablations"
SETTINGS = ("depth", "vocab_size", "max_seq_len", "total_batch_size", "tokens", "eval_tokens", "dtype", "compile")
"""Flags whose runs can be compared when they are equal."""

STUDENT_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Half-widths of 95 % intervals in standard errors, by the number of seeds."""
TURNS = 20
"""Steps of each trick for `--steps`."""


@dataclass(frozen=True)
class Trick:
    """One change: fields of GPTConfig, options of Muon, rates, length, schedule."""

    config: dict[str, Any] = field(default_factory=dict)
    muon: MuonOptions = field(default_factory=MuonOptions)
    rates: dict[str, Any] = field(default_factory=dict)
    longer: float = 1.0
    """Times the tokens."""
    average: float = 0.0
    """Share of the last steps whose weights are averaged."""
    shape: Literal["trapezoid", "cosine"] = "trapezoid"
    """Of the rates' schedule."""

    @property
    def same_work(self) -> bool:
        """Whether a step computes what the baseline's does, with other numbers."""
        return not self.config and self.muon == MuonOptions() and not self.average


TRICKS = {
    "baseline": Trick(),
    "longer": Trick(longer=1.25),  # what a second is worth: it prices the seconds that the others cost
    "value_embeddings": Trick({"value_embeddings": True}),
    "residual_scalars": Trick({"residual_scalars": True}),
    "smear": Trick({"smear": True}),
    "backout": Trick({"backout": True}),
    "windows": Trick({"window_pattern": "SSSL"}),
    "bigram": Trick({"bigram_rows": 32_768}),
    "average": Trick(average=0.1),
    "fast": Trick(ARCHITECTURES["fast"]),
    "fast_and_more": Trick({**ARCHITECTURES["fast"], "residual_scalars": True, "backout": True}),
    "swiglu": Trick({"mlp": "swiglu"}),
    "no_variance": Trick(muon=MuonOptions(variance_beta2=None)),
    "polar_express": Trick(muon=MuonOptions("polar_express")),
    "decay": Trick(rates={"weight_decay": 0.1}),
    "cautious_decay": Trick(muon=MuonOptions(cautious=True), rates={"weight_decay": 0.1}),
    "cosine": Trick(shape="cosine"),
    "matrix_rate": Trick(rates={"matrix_lr": 0.04}),
    "embedding_rate": Trick(rates={"embedding_lr": 0.4}),
}


@dataclass(frozen=True)
class Config:
    """Flags of the ablations."""

    text: Path | None = None
    """Folder of parquet shards with a column `text`, the last one for validation; unset: ../shared/data/prose."""
    tricks: tuple[str, ...] = tuple(TRICKS)
    """Which, in this order."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run per trick and seed."""
    depth: int = 4
    """Layers."""
    vocab_size: int = 8192
    """Of the tokenizer, which is trained on the training shards."""
    max_seq_len: int = 512
    """Tokens per row."""
    total_batch_size: int = 8192
    """Tokens per step."""
    device_batch_size: int = 4
    """Rows at a time."""
    tokens: int = 2_000_000
    """Training tokens per run."""
    eval_tokens: int = 262_144
    """Validation tokens."""
    dtype: str = "auto"
    """Format of matrix products: auto, bfloat16 or float32."""
    compile: bool = False
    """torch.compile; its time is not counted."""
    out: Path | None = None
    """Where the lines go; unset: ablations.jsonl under the base directory."""
    steps: bool = False
    """Only measure the seconds of a step: every trick in turn with the baseline."""
    table: bool = False
    """Only print the table of what the file holds."""
    quick: bool = False
    """65,536 tokens, the first seed, the baseline and `fast`: about a minute, and far too short to tell anything."""


# running


def prepared(text: Path, vocab_size: int) -> RustBPETokenizer:
    """The shards copied to a source of their own, and the tokenizer trained on them (both once)."""
    shards = sorted(text.glob("*.parquet"))
    if len(shards) < 2:
        raise UserError(f"{text} holds {len(shards)} parquet shards, two are needed: name a folder by --text")
    folder = paths.data_dir(SOURCE)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        target = folder / shard.name
        if not target.exists() or target.stat().st_size != shard.stat().st_size:
            shutil.copyfile(shard, target.with_suffix(".part"))
            target.with_suffix(".part").replace(target)
    kept = paths.base_dir() / "bench" / f"tokenizer-{vocab_size}"
    if not (kept / "tokenizer.json").exists():
        RustBPETokenizer.train_from_iterator(dataset.iterate_documents("train", SOURCE), vocab_size).save(kept)
    return RustBPETokenizer.from_directory(kept)


class Training:
    """One model in training, step by step."""

    def __init__(self, config: Config, name: str, seed: int, tokenizer: RustBPETokenizer, runtime: Runtime):
        self.trick, self.runtime = TRICKS[name], runtime
        sizes = config_for_depth(config.depth, tokenizer.get_vocab_size(), config.max_seq_len)
        self.plan = plan_training(
            replace(sizes, **self.trick.config), device_batch_size=config.device_batch_size, world_size=1,
            total_batch_size=config.total_batch_size,
            num_iterations=max(1, round(config.tokens * self.trick.longer) // config.total_batch_size),
            target_param_data_ratio=20.0, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004,
        )  # fmt: skip
        self.model = build_model(replace(sizes, **self.trick.config), runtime)
        self.model.init_weights(seed)
        compiled(self.model, "on" if config.compile else "off", self.plan, runtime)
        planned = Rates(self.plan.matrix_lr, self.plan.embedding_lr, self.plan.unembedding_lr, muon=self.trick.muon)
        rates = replace(planned, **self.trick.rates)
        self.optimizer = MuonAdamW(dict(self.model.named_parameters()), self.model.roles(), rates, runtime)
        self.loader = DocumentLoader(
            tokenizer, config.device_batch_size, config.max_seq_len, runtime, "train", SOURCE, seed=seed
        )  # fmt: skip

    def step(self, number: int, averaged: bool) -> float:
        """Step `number` of the plan, its weights counted in the average or not; its seconds, without the loader's."""
        batches = [next(self.loader) for _ in range(self.plan.grad_accum_steps)]
        self.runtime.synchronize()
        started = time.perf_counter()
        accumulate(self.model, iter(batches), self.plan.grad_accum_steps, self.runtime)
        steps, warmdown = self.plan.num_iterations, self.plan.warmdown_ratio
        multiplier = lr_multiplier(number, steps, 0, warmdown, shape=self.trick.shape)
        self.optimizer.step(multiplier, muon_momentum(number))
        self.optimizer.zero_grad()
        if averaged:
            self.optimizer.average.add()
        self.runtime.synchronize()
        return time.perf_counter() - started


def run(config: Config, name: str, seed: int, tokenizer: RustBPETokenizer, runtime: Runtime) -> dict[str, Any]:
    """Train one model; its record. Seconds are those of the steps, the first two scaled to a later one."""
    one = Training(config, name, seed, tokenizer, runtime)
    steps = one.plan.num_iterations
    seconds = [one.step(number, number >= steps * (1 - one.trick.average)) for number in range(steps)]
    total = mean(seconds[2:] or seconds) * steps
    batches = config.eval_tokens // (16 * config.max_seq_len)
    held_out = DocumentLoader(tokenizer, 16, config.max_seq_len, runtime, "val", SOURCE)
    with one.optimizer.average.applied():
        measured = evaluate_loss(one.model, one_epoch(held_out, max(1, batches)), _lengths(tokenizer), runtime)
    return {
        "bpb": measured.bpb,
        "loss": measured.loss,
        "seconds": total,
        "tokens_per_second": one.plan.total_tokens / total,
        "num_params": one.model.config.num_params,
        "flops_per_token": one.model.config.flops_per_token,
    }


def timed(config: Config, name: str, tokenizer: RustBPETokenizer, runtime: Runtime) -> dict[str, Any]:
    """Steps of the baseline and of a trick in turn: the median of the one's seconds and of the other's over them.

    An average is added to in every step, more often than in a training, and so its price is an upper bound.
    """
    pair = [Training(config, each, 1, tokenizer, runtime) for each in ("baseline", name)]
    averaged = [one.trick.average > 0 for one in pair]
    seconds = [[one.step(turn, add) for one, add in zip(pair, averaged, strict=True)] for turn in range(2 + TURNS)][2:]
    return {
        "baseline_step_seconds": median(of_baseline for of_baseline, _ in seconds),
        "slower": median(of_trick / of_baseline for of_baseline, of_trick in seconds),
    }


def _lengths(tokenizer: RustBPETokenizer) -> Any:
    import numpy

    return numpy.array(tokenizer.token_bytes(), dtype=numpy.int64)


def key_of(config: Config, name: str, seed: int | None) -> dict[str, Any]:
    """What tells a run from others: flags, the trick's name and what it stands for. Timed steps have no seed."""
    settings = {key: getattr(config, key) for key in SETTINGS}
    return {"trick": name, "seed": seed, **settings, "change": asdict(TRICKS[name])}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


# telling


@dataclass(frozen=True)
class Found:
    """A trick against the baseline of the same settings and seeds. Gains are in bpb, above 0 where it is better."""

    trick: str
    by_seed: dict[int, float]
    """Its bpb by seed."""
    bpb: float
    gain: float
    half_width: float | None
    """Of the gain's 95 % interval over the seeds (Student); None with one seed."""
    seconds: float
    slower: float
    """Its seconds over the baseline's."""
    net: float | None
    """The gain less what the baseline gains by as many more seconds; None where `longer` has not been run."""

    def row(self) -> list[str]:
        """Cells of the table."""
        interval = "" if self.half_width is None else f" ± {self.half_width:.4f}"
        net = "-" if self.net is None else f"{self.net:+.4f}"
        return [
            self.trick, ", ".join(f"{bpb:.4f}" for bpb in self.by_seed.values()), f"{self.gain:+.4f}{interval}",
            f"{self.seconds:.0f}", f"{self.slower:.3f}", net, f"{1000 * self.gain / self.seconds:+.3f}",
        ]  # fmt: skip


def compared(lines: list[dict[str, Any]]) -> list[Found]:
    """Every trick of one setting that shares seeds with the baseline; the last line of a trick and seed counts."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    timings: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["seed"] is None:
            timings[line["trick"]] = line
        else:
            runs.setdefault(line["trick"], {})[line["seed"]] = line
    baseline, longer = runs.get("baseline", {}), runs.get("longer", {})
    both = baseline.keys() & longer.keys()
    slope = None  # bpb gained per unit of the logarithm of time
    if both:
        slope = mean(baseline[s]["bpb"] - longer[s]["bpb"] for s in both) / math.log(TRICKS["longer"].longer)
    found = []
    for trick, of_trick in runs.items():
        seeds = sorted(baseline.keys() & of_trick.keys())
        if not seeds:
            continue
        gains = [baseline[s]["bpb"] - of_trick[s]["bpb"] for s in seeds]
        half = STUDENT_95.get(len(seeds), 1.96) * stdev(gains) / math.sqrt(len(seeds)) if len(seeds) > 1 else None
        by_seed = {s: of_trick[s]["bpb"] for s in seeds}
        if timings and (trick in timings or TRICKS[trick].same_work):
            slower = TRICKS[trick].longer * (timings[trick]["slower"] if trick in timings else 1.0)
            steps = of_trick[seeds[0]]["tokens"] // of_trick[seeds[0]]["total_batch_size"]
            seconds = slower * steps * median(timing["baseline_step_seconds"] for timing in timings.values())
        else:
            slower = median(of_trick[s]["seconds"] / baseline[s]["seconds"] for s in seeds)
            seconds = median(of_trick[s]["seconds"] for s in seeds)
        gain = mean(gains)
        net = None if slope is None else gain - slope * math.log(slower)
        found.append(Found(trick, by_seed, mean(by_seed.values()), gain, half, seconds, slower, net))
    first = [one for one in found if one.trick == "baseline"]
    return first + sorted((one for one in found if one.trick != "baseline"), key=lambda one: -(one.net or one.gain))


def by_setting(lines: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The lines of runs that can be compared."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[name] for name in SETTINGS), []).append(line)
    return groups


def table(lines: list[dict[str, Any]]) -> str:
    """What the lines say, as Markdown; dev/ABLATIONS.md tells it."""
    head = ["trick", "bpb by seed", "gain", "seconds", "slower", "gain at equal seconds", "gain per 1000 s"]
    text = [
        "# Ablations",
        "",
        "Written by `python bench/ablations.py --table`. Validation bits per byte of one change each against the "
        "baseline; gains above 0 are better, with 95 % intervals over the seeds. `longer` is the baseline with a "
        "quarter more tokens: it tells what a second is worth, and by that `gain at equal seconds` charges a trick "
        "for the time that it takes. A trick pays where that is above 0 and the interval excludes 0. How much slower a "
        "step is was measured in turn with the baseline's, where `--steps` did.",
    ]
    for setting, of_setting in by_setting(lines).items():
        named = ", ".join(f"{name} {value}" for name, value in zip(SETTINGS, setting, strict=True))
        devices = ", ".join(sorted({f"{line['device']}" for line in of_setting}))
        text += ["", f"## {named}", "", f"On {devices}.", "", f"| {' | '.join(head)} |"]
        text += [f"| --- |{' ---: |' * (len(head) - 1)}"]
        text += [f"| {' | '.join(one.row())} |" for one in compared(of_setting)]
    return "\n".join(text)


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The last line, of runs of one setting: the baseline's bpb over each trick's, and what was measured."""
    found = compared(lines)
    return {
        "bench": "ablations",
        "ratios": {one.trick: round((one.bpb + one.gain) / one.bpb, 5) for one in found},
        "figures": {one.trick: asdict(one) for one in found},
        "machine": hardware.describe(),
    }


def main(config: Config) -> None:
    """Run what is missing, or print the table."""
    out = config.out or paths.base_dir() / "bench" / "ablations.jsonl"
    lines = read_lines(out)
    if config.table:
        if not lines:
            raise UserError(f"{out} holds no runs yet: `python bench/ablations.py` makes them")
        print(table(lines))
        return
    if config.quick:
        config = replace(config, tokens=65_536, seeds=config.seeds[:1], tricks=("baseline", "fast"), eval_tokens=16_384)
    for name in config.tricks:
        if name not in TRICKS:
            raise UserError(f"no trick is called {name!r}; there are {', '.join(TRICKS)}")
    if not config.seeds or config.tokens < config.total_batch_size:
        raise UserError(
            f"a run has a seed and at least one step, got {len(config.seeds)} seeds and {config.tokens} tokens in "
            f"steps of {config.total_batch_size}"
        )
    tokenizer = prepared(config.text or Path(__file__).resolve().parents[2] / "shared/data/prose", config.vocab_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    wanted: list[tuple[int | None, str]] = [(seed, name) for seed in config.seeds for name in config.tricks]
    if config.steps:
        wanted = [(None, name) for name in config.tricks if not TRICKS[name].same_work]
    for seed, name in wanted:
        key = json.loads(json.dumps(key_of(config, name, seed)))
        if any(all(line.get(what, "") == value for what, value in key.items()) for line in lines):
            continue
        with Runtime.start("", config.dtype, seed or 0) as runtime:
            if seed is None:
                found = timed(config, name, tokenizer, runtime)
                told = f"{name:18} a step takes {found['slower']:.3f} times the baseline's"
            else:
                found = run(config, name, seed, tokenizer, runtime)
                told = f"{name:18} seed {seed}: bpb {found['bpb']:.4f}, {found['tokens_per_second']:,.0f} tokens/s"
            device = runtime.device_name
        lines.append({**key, **found, "device": device, **hardware.git_facts()})
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(told, flush=True)
        gc.collect()
        if config.compile:
            torch.compiler.reset()
    print(json.dumps(summary(by_setting(lines).get(tuple(getattr(config, name) for name in SETTINGS), []))))


if __name__ == "__main__":
    command.run(main, Config)
