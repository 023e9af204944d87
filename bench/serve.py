"""The server under load: many streams beside the same requests one after another, and two minutes of abuse.

    python bench/serve.py
    python bench/serve.py --quick
    python bench/serve.py --depth=12 --vocab_size=32768 --plot

Server, workers and this client share the machine's cores. The last line is JSON.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from serve_abuse import abuse
from serve_client import Load, load, request
from serve_guidellm import ask

from nanochat import command, hardware
from nanochat.command import UserError

ROOT = Path(__file__).resolve().parent.parent
TARGET = 4.0  # tokens/s at 32 streams, by those of one after another
PARTS = 4  # of the abuse

Figures = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """What is served, and how it is asked."""

    depth: int = 4
    vocab_size: int = 8192
    prompt_tokens: int = 64
    """Of each question, all different."""
    new_tokens: int = 128
    streams: tuple[int, ...] = (1, 8, 32, 128)
    rounds: int = 3
    """In each, all numbers of streams take turns; medians count."""
    abuse_connections: int = 1000
    abuse_seconds: float = 120.0
    """0 leaves it out."""
    serve: tuple[str, ...] = ()
    """Further flags of `scripts.chat_web`, such as --serve --weights=int8."""
    guidellm: Path | None = None
    """Its executable, in an environment of its own (`uv tool install guidellm`): asks the same once more."""
    quick: bool = False
    """One round, half a minute of abuse by 200."""
    plot: bool = False
    """Draw tokens/s and waiting by streams."""


def make_checkpoint(base: Path, config: Config) -> None:
    """A random model in the format of an sft checkpoint, and a tokenizer of the built-in corpus."""
    os.environ["NANOCHAT_BASE_DIR"] = str(base)
    import torch

    from nanochat import paths, tinyworld
    from nanochat.checkpoint_files import save_checkpoint
    from nanochat.checkpoint_manager import tokenizer_sha256
    from nanochat.gpt import GPT
    from nanochat.gpt_config import config_for_depth
    from nanochat.tokenizer import RustBPETokenizer

    texts = tinyworld.documents(seed=1, megabytes=8)
    RustBPETokenizer.train_from_iterator(texts, config.vocab_size).save(paths.tokenizer_dir())
    sizes = config_for_depth(config.depth, vocab_size=config.vocab_size, sequence_len=2048)
    model = GPT(sizes, torch.float32)
    model.init_weights()
    with torch.no_grad():  # the projections begin at zero: without this every token is equally likely
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    meta = {"model": sizes.to_dict(), "tokenizer_sha256": tokenizer_sha256()}
    save_checkpoint(paths.checkpoints_dir("sft", f"d{config.depth}"), 0, model.state_dict(), meta)


def questions(config: Config, count: int) -> list[str]:
    """No two alike, of about so many tokens each."""
    from nanochat.tokenizer import get_tokenizer

    tokenizer, chance = get_tokenizer(), random.Random(7)
    words = [tokenizer.id_to_token(id) for id in range(400, min(4000, tokenizer.get_vocab_size() - 9))]
    words = [word for word in words if word.startswith(" ") and word.strip().isalpha()]
    made = []
    for number in range(count):
        text = str(number)
        while len(tokenizer.encode(text)) < config.prompt_tokens:
            text += chance.choice(words)
        made.append(text)
    return made


def requests(config: Config, count: int) -> list[bytes]:
    """The same as requests."""
    return [
        request({"messages": [{"role": "user", "content": text}], "max_tokens": config.new_tokens, "seed": number})
        for number, text in enumerate(questions(config, count))
    ]


@contextmanager
def server(base: Path, config: Config) -> Iterator[tuple[int, psutil.Process]]:
    """`scripts.chat_web` in a process of its own; its port. Raises UserError with what it said if it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # the cache is full soon, so that growing memory is a leak
    flags = ["--cache_gb=0.25", "--limits.requests_per_minute=0", "--limits.requests_at_once=0", *config.serve]
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.chat_web", f"--port={port}", *flags],
        env={**os.environ, "NANOCHAT_BASE_DIR": str(base), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise UserError(f"the server does not start: {process.communicate()[1].strip()}")
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def enough(config: Config, streams: int) -> int:
    """How many requests so many streams share."""
    return max(8 if config.quick else 32, 2 * streams)


def measure(port: int, config: Config) -> dict[int, Load]:
    """Medians over the rounds, field by field, by number of streams."""
    runs: dict[int, list[Load]] = {streams: [] for streams in config.streams}
    asked = requests(config, 2 * max(config.streams))
    rounds = 1 if config.quick else config.rounds
    asyncio.run(load(port, asked[:8], 8))  # the first of all loads what is loaded late
    for number in range(rounds):
        for streams, found in runs.items():
            one = asyncio.run(load(port, asked[: enough(config, streams)], streams))
            found.append(one)
            first = f"first token {one.first_token_p50_ms:7.1f} / {one.first_token_p99_ms:7.1f} ms"
            between = f"between tokens {one.between_tokens_p50_ms:6.1f} / {one.between_tokens_p99_ms:6.1f} ms"
            rate = f"{one.tokens_per_second:9,.0f} tokens/s"
            print(f"{number + 1}/{rounds}  {streams:4} streams {rate}, {first}, {between} (p50 / p99)", flush=True)
    return {
        streams: Load(*(median(getattr(one, field.name) for one in found) for field in fields(Load)))  # type: ignore[arg-type]
        for streams, found in runs.items()
    }


def measure_by_guidellm(executable: Path, port: int, config: Config) -> Figures:
    """What it tells of the same numbers of streams and requests, by number of streams."""
    found: Figures = {}
    for streams in config.streams:
        asked = questions(config, enough(config, streams))
        one = ask(executable, port, asked, config.new_tokens, streams)
        found[str(streams)] = one
        print(
            f"guidellm {streams:4} streams {one['tokens_per_second']:9,.0f} tokens/s, first token "
            f"{one['first_token_p50_ms']:7.1f} / {one['first_token_p99_ms']:7.1f} ms", flush=True,
        )  # fmt: skip
    return found


def endure(port: int, front: psutil.Process, config: Config) -> Figures:
    """Abuse, and what is left of it: memory and rows as before, and everybody answered or refused."""
    raise_file_limit()
    connections = min(200, config.abuse_connections) if config.quick else config.abuse_connections
    seconds = min(30.0, config.abuse_seconds) if config.quick else config.abuse_seconds
    asked = requests(config, 200)
    asyncio.run(abuse(port, asked, connections, min(30.0, seconds), seed=2))  # so that "before" has seen it all
    before = state(port, front)
    pids = {process.pid for process in [front, *front.children(recursive=True)]}
    told: Counter[str] = Counter()
    grown = [before]
    for part in range(PARTS):  # what grows in each of them is a leak, what only grew at first is not
        told += asyncio.run(abuse(port, asked, connections, seconds / PARTS, seed=3 + part))
        grown.append(state(port, front))
    after = grown[-1]
    same = {process.pid for process in [front, *front.children(recursive=True)]} == pids
    answered = {key.removeprefix("status "): count for key, count in told.items() if key.startswith("status ")}
    wrong = {
        key: count
        for key, count in told.items()
        if key.startswith(("unanswered", "rubbish was"))
        or (key.startswith("status ") and key[7:] not in ("200", "429", "503"))
    }
    return {
        "connections": connections, "seconds": seconds, "told": dict(told), "answered": answered, "wrong": wrong,
        "nobody_died": same, "before": before, "after": after,
        "front_mb": [each["front_mb"] for each in grown], "workers_mb": [each["workers_mb"] for each in grown],
        "rows_left": after["running"] + after["waiting"],
    }  # fmt: skip


def state(port: int, front: psutil.Process) -> Figures:
    """Memory in MB and what is under way, once the server has come to rest."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as web:
        for _ in range(100):
            stats = web.get("/stats").json()
            if not stats["running"] and not stats["waiting"]:
                break
            time.sleep(0.1)
    workers = [process.memory_info().rss for process in front.children(recursive=True)]
    return {
        "front_mb": round(front.memory_info().rss / 2**20, 1),
        "workers_mb": [round(each / 2**20, 1) for each in workers],
        "files": front.num_fds(), "running": stats["running"], "waiting": stats["waiting"],
        "engines": [worker["engine"] for worker in stats["workers"]],
    }  # fmt: skip


def raise_file_limit() -> None:
    """A thousand connections are more open files than most shells allow."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def summary(loads: dict[int, Load], guidellm: Figures | None, endured: Figures | None, config: Config) -> Figures:
    """The last line."""
    rates = {streams: one.tokens_per_second for streams, one in loads.items()}
    ratios = {
        f"streams_{streams}_vs_one_after_another": rate / rates[1] for streams, rate in rates.items() if streams != 1
    }
    told = {str(streams): {**asdict(one), "tokens_per_second": one.tokens_per_second} for streams, one in loads.items()}
    reached = ratios.get("streams_32_vs_one_after_another", 0.0) >= TARGET
    figures: Figures = {
        "depth": config.depth, "vocab_size": config.vocab_size, "streams": told, "guidellm": guidellm,
        "abuse": endured,
        "targets": {"streams_32_vs_one_after_another": {"target": TARGET, "reached": reached}},
    }  # fmt: skip
    return {"bench": "serve", "ratios": ratios, "figures": figures, "machine": hardware.describe()}


def draw(loads: dict[int, Load], path: Path) -> None:
    """Tokens/s and waiting, by number of streams."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    streams = list(loads)
    left.plot(streams, [one.tokens_per_second for one in loads.values()], "o-")
    left.set_ylabel("tokens/s, all streams together")
    lines: Sequence[tuple[str, str]] = (("first_token", "until the first token"), ("between_tokens", "between tokens"))
    for name, text in lines:
        for part, style in (("p50", "o-"), ("p99", "o:")):
            right.plot(
                streams, [getattr(one, f"{name}_{part}_ms") for one in loads.values()], style, label=f"{text}, {part}"
            )
    right.set_ylabel("ms")
    right.set_yscale("log")
    right.legend(fontsize=7)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(streams, [str(each) for each in streams])
        axis.set_xlabel("streams")
        axis.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(config: Config) -> None:
    """Serve, measure, abuse, tell."""
    if 1 not in config.streams or min(config.streams) < 1 or config.rounds < 1:
        raise UserError(
            "--streams must name 1, which the others are compared with, and none below; --rounds at least 1"
        )
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_checkpoint(base, config)
        with server(base, config) as (port, front):
            loads = measure(port, config)
            guidellm = measure_by_guidellm(config.guidellm, port, config) if config.guidellm else None
            endured = endure(port, front, config) if config.abuse_seconds else None
    if config.plot:
        draw(loads, Path(__file__).parent / "serve_growth.png")
    print(json.dumps(summary(loads, guidellm, endured, config)))


if __name__ == "__main__":
    command.run(main, Config)
