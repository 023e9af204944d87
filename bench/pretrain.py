"""Pretraining beside a plain loop around transformers: speed, memory, quality by token, quality by minute.

    python bench/pretrain.py
    python bench/pretrain.py --quick
    python bench/pretrain.py --only=speed --rows d4 d8
    python bench/pretrain.py --only=speed --rows cuda_d12 cuda_d20
    python bench/pretrain.py --only=time --train="--depth=4 --arch=fast --num_iterations=1000" --plot

Every measurement is a process of its own and a line in `<part>.jsonl`; a second call goes on where the first ended.
Speeds and minutes want a quiet machine, quality by token does not care. The last line is JSON, and tells parts that
were measured earlier too.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pretrain_plot
import pretrain_quality as quality
import pretrain_speed as speed
from pretrain_lines import ROOT, Lines, MissingError
from pretrain_worker import SOURCE

from nanochat import command, dataset, hardware, paths
from nanochat.command import UserError
from nanochat.tokenizer import RustBPETokenizer

TARGET_BPB = 1.434
"""What a well-known peer reaches after 10 million tokens and 21.6 minutes of training on two cores with AMX."""
TARGET_SECONDS = 600.0
Part = Literal["speed", "quality", "time"]
SHORT_RUN = "--depth=4 --max_seq_len=512 --arch=fast --device_batch_size=4 --total_batch_size=8192 --num_iterations=16"


@dataclass(frozen=True)
class Config:
    """Flags of the bench."""

    only: Part | None = None
    """One part: speed and memory of steps, quality by token, or quality by minute; unset: all."""
    rows: tuple[str, ...] = ()
    """Of the table of speeds; unset: those of the GPU where there is one, else those of the CPU."""
    dtypes: tuple[speed.Dtype, ...] = speed.DTYPES
    """Formats of the matrix products in that table."""
    rounds: int = 3
    """Processes of each contender; medians count."""
    seconds: float = 10.0
    """Timed in each, at least."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the shorter trainings; the longer ones have the first."""
    short_tokens: int = 2_000_000
    """Of our shorter trainings; the peer's are half as long again."""
    long_tokens: int = 10_000_000
    """Of our longer one."""
    train: str = (
        "--depth=4 --max_seq_len=512 --arch=fast --device_batch_size=8 --total_batch_size=8192 --num_iterations=850 "
        "--warmdown_ratio=0.6 --compile=on"
    )
    """The run whose bpb is drawn over minutes: flags of base_train."""
    every: int = 100
    """Steps between two points of that curve."""
    text: Path | None = None
    """Folder of parquet shards with a column `text`, the last one for validation; unset: ../shared/data/prose."""
    vocab_size: int = 8192
    """Of the tokenizer, which is trained on the training shards."""
    eval_tokens: int = 262_144
    """Of the validation shard, from its beginning."""
    quick: bool = False
    """One round of one row, and trainings too short to tell anything: some fifteen minutes."""
    fresh: bool = False
    """Forget what the parts that are asked for have measured."""
    plot: bool = False
    """Draw the curves of what was measured."""
    out: Path | None = None
    """Where the lines are; unset: bench/pretrain under the base directory."""


def prepared(text: Path, vocab_size: int) -> None:
    """The text as a source of the base directory that now counts, and the tokenizer trained on it."""
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
    if not (paths.tokenizer_dir() / "tokenizer.json").exists():
        tokenizer = RustBPETokenizer.train_from_iterator(dataset.iterate_documents("train", SOURCE), vocab_size)
        tokenizer.save(paths.tokenizer_dir())


def rows_of(config: Config) -> tuple[str, ...]:
    """The names of the rows. Raises UserError for one that is not known or not for this machine."""
    device = "cuda" if hardware.gpu_names() else "cpu"
    for name in config.rows:
        if name not in speed.ROWS:
            raise UserError(f"no row is called {name!r}; there are {', '.join(speed.ROWS)}")
        if speed.ROWS[name].device not in ("cpu", device):
            raise UserError(f"the row {name!r} is measured on an NVIDIA GPU, and nvidia-smi shows none here")
    return config.rows or tuple(name for name, row in speed.ROWS.items() if row.device == device)


def speeds(config: Config, lines: Lines) -> speed.Found:
    """The rows that are asked for."""
    rows = speed.QUICK if config.quick else {name: speed.ROWS[name] for name in rows_of(config)}
    rows = {
        name: replace(row, dtypes=tuple(dtype for dtype in row.dtypes if dtype in config.dtypes))
        for name, row in rows.items()
    }
    rounds, seconds = (1, 2.0) if config.quick else (config.rounds, config.seconds)
    return speed.measured(lines, rows, rounds, seconds)


def qualities(config: Config, lines: Lines) -> dict[str, Any]:
    """Beside the peer, at both lengths."""
    if config.quick:
        size = quality.Size(vocab_size=config.vocab_size, eval_tokens=16_384, compile="off")
        return quality.compared(lines, size, {"short": 32_768}, {"short": config.seeds[:1]})
    size = quality.Size(vocab_size=config.vocab_size, eval_tokens=config.eval_tokens)
    lengths = {"short": config.short_tokens, "long": config.long_tokens}
    return quality.compared(lines, size, lengths, {"short": config.seeds, "long": config.seeds[:1]})


def over_minutes(config: Config, lines: Lines) -> dict[str, Any]:
    """One run's curve, and when it was good enough."""
    flags, every = (SHORT_RUN, 8) if config.quick else (config.train, config.every)
    eval_tokens = 16_384 if config.quick else config.eval_tokens
    asked = {"flags": flags, "every": every, "eval_tokens": eval_tokens}
    found = lines.get("time", asked, lambda: quality.timed_run(flags, every, eval_tokens))
    for point in found["curve"]:
        print(f"{point['seconds'] / 60:6.2f} minutes {point['tokens']:12,} tokens: bpb {point['bpb']:.4f}", flush=True)
    seconds = quality.seconds_to(found["curve"], TARGET_BPB)
    reached = seconds is not None and seconds <= TARGET_SECONDS
    return {"flags": flags, "target_bpb": TARGET_BPB, "seconds_to_target": seconds, "reached": reached, **found}


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The last line; what was not measured is null. Ours in its best format counts against both of the peer's."""
    by_token = found["quality"]
    ratios = {
        "tokens_vs_transformers_float32": speed.ratio(found["speed"], "ours.", "transformers.float32."),
        "tokens_vs_transformers_bfloat16": speed.ratio(found["speed"], "ours.", "transformers.bfloat16."),
        "float32_tokens_vs_transformers_float32": speed.ratio(found["speed"], "ours.float32.", "transformers.float32."),
        **{
            f"{row}_tokens_vs_transformers": speed.ratio(found["speed"], "ours.", "transformers.", row)
            for row in found["speed"]
            if row.startswith("cuda")
        },
        **{
            f"bpb_at_two_thirds_of_the_tokens_{length}_{arch}": by_token.get(length, {}).get(arch, {}).get("ratio")
            for length in ("short", "long")
            for arch in quality.ARCHITECTURES
        },
    }
    figures = {"targets": speed.targets(found["speed"]), **found}
    return {"bench": "pretrain", "ratios": ratios, "figures": figures, "machine": hardware.describe()}


def main(config: Config) -> None:
    """Measure what is missing, then tell."""
    rows_of(config)  # refuses what is not there before anything is measured
    if config.rounds < 1 or not config.seeds:
        raise UserError(f"there is one round and one seed at least, got {config.rounds} and {len(config.seeds)}")
    folder = (config.out or paths.base_dir() / "bench" / "pretrain").resolve()
    os.environ["NANOCHAT_BASE_DIR"] = str(folder)  # also of the processes that are started
    if config.only != "speed":
        prepared(config.text or ROOT.parent / "shared" / "data" / "prose", config.vocab_size)
    parts: dict[str, Callable[[Config, Lines], dict[str, Any]]]
    parts = {"speed": speeds, "quality": qualities, "time": over_minutes}
    found: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        path, asked = folder / f"{name}.jsonl", config.only in (None, name)
        if config.fresh and asked:
            path.unlink(missing_ok=True)
        try:
            found[name] = part(config, Lines(path, measures=asked))
        except MissingError:
            found[name] = {}
    if config.plot:
        pretrain_plot.draw(found, folder if config.quick else Path(__file__).parent)
    print(json.dumps(summary(found)))


if __name__ == "__main__":
    command.run(main, Config)
