"""Our document loader beside its peers, in one run: tokens a second, the first batch, padding. The last line is JSON.

    python bench/dataloader.py
    python bench/dataloader.py --text=shards/ --rounds=9 --plot

Each measurement is at most one epoch in a process of its own (`dataloader_worker.py`); the contenders take turns.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import peers
from dataloader_worker import Job

from nanochat import command, dataset, hardware, paths
from nanochat.command import UserError
from nanochat.shard_writer import write_shards
from nanochat.text_import import Imported, import_documents, list_text_files
from nanochat.tokenizer import RustBPETokenizer

OURS = ("ours", "ours.no_thread", "training")
PEERS = ("tiktoken.loop", "tiktoken.batch", "tiktoken.workers", "tokenizers.batch", "tokenizers.workers")
TARGETS = {"tokens_per_second": 5_000_000, "first_batch_seconds": 0.5, "wasted_share": 0.03}
ROW_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)

Result = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """On which text, in which shape, how often."""

    text: Path | None = None
    """Folder of parquet shards (the last one is left out), or of any files that --import takes; by default
    ../shared/data/prose."""
    rows: int = 16
    tokens: int = 512
    vocab_size: int = 8192
    rounds: int = 5
    """Epochs of every contender; the median counts."""
    quick: bool = False
    """Three rounds of two million tokens at most."""
    plot: bool = False
    """Also measure and draw how our loader's speed depends on the length of rows."""


def prepared(text: Path, vocab_size: int) -> Path:
    """A base directory with the text as a source, and a vocabulary trained on it in the forms that all read."""
    names = [(path.name, path.stat().st_size) for path in sorted(text.rglob("*"))]
    origin = json.dumps([str(text.resolve()), names, vocab_size])
    folder = paths.base_dir() / "peers" / f"dataloader-{hashlib.sha256(origin.encode()).hexdigest()[:12]}"
    os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    done = folder / "tokenizer" / "tiktoken.json"
    if done.exists():
        return folder
    print("making the shards and the vocabulary", flush=True)
    source = paths.data_dir("text")
    if len(list(text.glob("*.parquet"))) > 1:
        source.parent.mkdir(parents=True, exist_ok=True)
        source.unlink(missing_ok=True)
        source.symlink_to(text.resolve())
    else:
        write_shards(import_documents(list_text_files([text]), Imported()), "text")
    tokenizer = RustBPETokenizer.train_from_iterator(dataset.iterate_documents("train", "text"), vocab_size)
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(f"{text} is too little text for --vocab_size={vocab_size}: name more by --text")
    tokenizer.save(paths.tokenizer_dir())
    given = tokenizer.tiktoken_parameters()
    ranks = [token.hex() for token in given["mergeable_ranks"]]
    done.write_text(json.dumps({"pattern": given["pat_str"], "ranks": ranks}), encoding="utf-8")
    return folder


def run_worker(python: Path, job: Job) -> Result:
    """The result of one job; `error` is the last line of what went wrong."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(peers.ROOT) if python == Path(sys.executable) else "",
        "TOKENIZERS_PARALLELISM": "false" if job.contender.endswith(".workers") else "true",
    }
    program = [str(python), str(Path(__file__).with_name("dataloader_worker.py")), json.dumps(asdict(job))]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def medians(runs: list[Result]) -> Result:
    """Field by field; of words and of failures the last."""
    if failed := [run for run in runs if "error" in run]:
        return failed[-1]
    return {
        key: median(run[key] for run in runs) if isinstance(value, float | int) else value
        for key, value in runs[-1].items()
    }


def summary(found: dict[str, Result], facts: dict[str, Any]) -> dict[str, Any]:
    """Ratios, figures and machine of the last line."""
    ours = found["ours"]

    def best(library: str) -> float | None:
        rates = [
            found[name]["tokens_per_second"]
            for name in PEERS
            if name.startswith(library) and "error" not in found[name]
        ]
        return ours["tokens_per_second"] / max(rates) if rates else None

    figures = {
        "tokens_per_second": ours["tokens_per_second"],
        "first_batch_seconds": ours["first_batch_seconds"],
        "wasted_share": ours["padding_share"] + ours["cropped_share"],
        "contenders": found,
        **facts,
    }
    reached = {
        "tokens_per_second": figures["tokens_per_second"] >= TARGETS["tokens_per_second"],
        "first_batch_seconds": figures["first_batch_seconds"] <= TARGETS["first_batch_seconds"],
        "wasted_share": figures["wasted_share"] < TARGETS["wasted_share"],
    }
    figures["targets"] = {key: {"target": TARGETS[key], "reached": value} for key, value in reached.items()}
    ratios = {
        "loader_vs_training": ours["tokens_per_second"] / found["training"]["tokens_per_second"],
        "loader_vs_tiktoken": best("tiktoken"),
        "loader_vs_tokenizers": best("tokenizers"),
        "thread_vs_none": ours["tokens_per_second"] / found["ours.no_thread"]["tokens_per_second"],
    }
    return {"bench": "dataloader", "ratios": ratios, "figures": figures, "machine": hardware.describe()}


def growth(python: Path, job: Job, rounds: int, out: Path) -> list[Result]:
    """Our speed by the length of rows, as many tokens in a batch each time; JSON lines and a plot."""
    import matplotlib as mpl

    rows: list[Result] = []
    for tokens in ROW_LENGTHS:
        shape = replace(job, tokens=tokens, rows=max(1, job.rows * job.tokens // tokens))
        runs = [run_worker(python, shape) for _ in range(rounds)]
        rows.append({"row_tokens": tokens, **medians(runs)})
        print(f"rows of {tokens}: {rows[-1].get('tokens_per_second', 0) / 1e6:.1f} million tokens/s", flush=True)
    (out / "dataloader_growth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    good = [row for row in rows if "error" not in row]
    axis.plot([row["row_tokens"] for row in good], [row["tokens_per_second"] / 1e6 for row in good], "o-")
    axis.axhline(TARGETS["tokens_per_second"] / 1e6, linestyle=":", color="grey")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ROW_LENGTHS, [str(each) for each in ROW_LENGTHS])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("tokens of a row")
    axis.set_ylabel("million tokens/s")
    axis.grid(alpha=0.3)
    figure.savefig(out / "dataloader_growth.png", dpi=80)
    plt.close(figure)
    return rows


def main(config: Config) -> None:
    """Install, prepare, run the rounds, tell."""
    text = config.text or peers.ROOT.parent / "shared" / "data" / "prose"
    if not text.is_dir():
        raise UserError(f"there is no folder {text}: name one with text by --text")
    if config.rounds < 1:
        raise UserError(f"--rounds is {config.rounds}: it must be at least 1")
    wanted = peers.requirements("bench-dataloader")
    peer, refused = peers.install("dataloader", wanted)
    facts: dict[str, Any] = {"versions": peers.versions(peer, wanted), "refused": refused}
    folder = prepared(text, config.vocab_size)
    ours = Path(sys.executable)
    runs: dict[str, list[Result]] = {name: [] for name in (*OURS, *PEERS)}
    rounds = min(3, config.rounds) if config.quick else config.rounds
    for number in range(rounds):
        for name, results in runs.items():
            job = Job(name, str(folder), config.rows, config.tokens, config.vocab_size)
            job = replace(job, most_tokens=2_000_000) if config.quick else job
            result = run_worker(ours if name in OURS else peer, job)
            results.append(result)
            rate = result.get("error") or f"{result['tokens_per_second'] / 1e6:8.3f} million tokens/s"
            first = f", first batch {result['first_batch_seconds']:.3f} s" if "first_batch_seconds" in result else ""
            print(f"{number + 1}/{rounds}  {name:20} {rate}{first}", flush=True)
    found = {name: medians(results) for name, results in runs.items()}
    for name in OURS:
        if "error" in found[name]:
            raise UserError(f"{name} failed: {found[name]['error']}")
    if config.plot:
        job = Job("ours", str(folder), config.rows, config.tokens, config.vocab_size)
        facts["growth"] = growth(ours, job, rounds, folder if config.quick else Path(__file__).parent)
    print(json.dumps(summary(found, facts)))


if __name__ == "__main__":
    command.run(main, Config)
