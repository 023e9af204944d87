"""Our tokenizer beside its peers, in one run: training, encoding, decoding. The last line is JSON.

    python bench/tokenizer.py
    python bench/tokenizer.py --text=books/ --rounds=9 --plot

Each measurement has a process of its own (`tokenizer_worker.py`); the contenders take turns.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import peers
import tokenizer_texts
from tokenizer_contenders import Job, as_json
from tokenizer_growth import growth

from nanochat import command, hardware, paths
from nanochat.command import UserError
from nanochat.tokenizer import SPLIT_PATTERN

# cl100k's, as tiktoken had it first.
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
PATTERNS = {"nanochat": SPLIT_PATTERN, "cl100k": CL100K_PATTERN}

MIXED = Job("train", "", threads=2, texts="mixed", vocab_size=32_768)
BOOKS = Job("train", "", threads=2, texts="books", vocab_size=65_536)
ENCODE = Job("encode", "", call="lists")
BATCH = Job("batch", "", pattern_name="cl100k")
BATCH_2 = replace(BATCH, threads=2)
DECODE = Job("decode", "", call="str", pattern_name="cl100k")

JOBS = {
    **{f"train_mixed.{who}": replace(MIXED, contender=who) for who in ("ours", "rustbpe", "tokenizers")},
    **{f"train_books.{who}": replace(BOOKS, contender=who) for who in ("ours", "rustbpe", "tokenizers")},
    "encode.ours.arrays": replace(ENCODE, contender="ours", call="arrays"),
    "encode.ours.lists": replace(ENCODE, contender="ours"),
    "encode.tiktoken.arrays": replace(ENCODE, contender="tiktoken", call="arrays"),
    "encode.tiktoken.lists": replace(ENCODE, contender="tiktoken"),
    "encode.fastokens.arrays": replace(ENCODE, contender="fastokens", call="arrays"),
    "encode.fastokens.lists": replace(ENCODE, contender="fastokens"),
    "encode.tokenizers.lists": replace(ENCODE, contender="tokenizers"),
    **{f"batch_1.{who}": replace(BATCH, contender=who) for who in ("ours", "gigatoken", "fastokens", "tiktoken")},
    "batch_1.gigatoken.imported": replace(BATCH, contender="gigatoken", call="imported"),
    **{f"batch_2.{who}": replace(BATCH_2, contender=who) for who in ("ours", "gigatoken", "fastokens", "tiktoken")},
    "decode.ours.str": replace(DECODE, contender="ours"),
    "decode.ours.bytes": replace(DECODE, contender="ours", call="bytes"),
    "decode.tiktoken.str": replace(DECODE, contender="tiktoken"),
    "decode.gigatoken.bytes": replace(DECODE, contender="gigatoken", call="bytes"),
}

# Whose ids, merges or text are the right ones; without it, ours.
ORACLES = {
    "train_mixed": "train_mixed.rustbpe",
    "train_books": "train_books.rustbpe",
    "encode": "encode.tiktoken.lists",
    "batch_1": "batch_1.tiktoken",
    "batch_2": "batch_1.tiktoken",
    "decode": "decode.tiktoken.str",
}


@dataclass(frozen=True)
class Ratio:
    """The peer's seconds (or bytes) over ours."""

    ours: str
    peers: tuple[str, ...]
    """The calls of one peer: its best counts."""
    target: float | None = None
    field: str = "seconds"


RATIOS = {
    "train_100mb_vs_rustbpe": Ratio("train_mixed.ours", ("train_mixed.rustbpe",), 4.0),
    "train_10mb_vs_rustbpe": Ratio("train_books.ours", ("train_books.rustbpe",), 4.0),
    "train_memory_vs_rustbpe": Ratio("train_mixed.ours", ("train_mixed.rustbpe",), 1.0, "memory_bytes"),
    "encode_vs_tiktoken": Ratio("encode.ours.arrays", ("encode.tiktoken.arrays", "encode.tiktoken.lists"), 12.0),
    "encode_batch_vs_gigatoken": Ratio("batch_1.ours", ("batch_1.gigatoken",), 1.0),
    "encode_two_threads_vs_one": Ratio("batch_2.ours", ("batch_1.ours",), 1.7),
    # 300 MB/s where tiktoken has 137
    "decode_vs_tiktoken": Ratio("decode.ours.str", ("decode.tiktoken.str",), 300 / 137),
    "encode_cold_vs_tiktoken": Ratio(
        "encode.ours.arrays", ("encode.tiktoken.arrays", "encode.tiktoken.lists"), 6.0, "cold_seconds"
    ),
    "encode_lists_vs_tiktoken": Ratio("encode.ours.lists", ("encode.tiktoken.lists",), 5.0),
    "encode_batch_cold_vs_gigatoken": Ratio("batch_1.ours", ("batch_1.gigatoken",), 5.0, "cold_seconds"),
    "encode_batch_cold_vs_gigatoken_imported": Ratio(
        "batch_1.ours", ("batch_1.gigatoken.imported",), None, "cold_seconds"
    ),
    "encode_vs_fastokens": Ratio("encode.ours.arrays", ("encode.fastokens.arrays", "encode.fastokens.lists")),
    "encode_vs_tokenizers": Ratio("encode.ours.arrays", ("encode.tokenizers.lists",)),
    "encode_batch_vs_fastokens": Ratio("batch_1.ours", ("batch_1.fastokens",)),
    "encode_batch_vs_tiktoken": Ratio("batch_1.ours", ("batch_1.tiktoken",)),
    "encode_batch_two_threads_vs_gigatoken": Ratio("batch_2.ours", ("batch_2.gigatoken",)),
    "encode_batch_two_threads_vs_fastokens": Ratio("batch_2.ours", ("batch_2.fastokens",)),
    "decode_bytes_vs_gigatoken": Ratio("decode.ours.bytes", ("decode.gigatoken.bytes",)),
}

# Megabytes a second that the table of the README asks for, beside the ratios.
RATES = {"encode.ours.arrays": 200.0, "decode.ours.str": 300.0}

Results = dict[str, dict[int, dict[str, Any]]]
"""By the job's name and the round."""


@dataclass(frozen=True)
class Config:
    """On which text, how often, and what is kept."""

    text: Path | None = None
    """Folder of prose: parquet, jsonl (both with a field `text`) or txt; by default ../shared/data/prose."""
    rounds: int = 5
    """Runs of every measurement; the median counts."""
    quick: bool = False
    """A few megabytes, three rounds at most: about a minute, rough."""
    plot: bool = False
    """Also measure and draw how training grows with the text and with the vocabulary."""
    resume: bool = False
    """Go on with an interrupted run of the same texts and versions."""


# running


def run_worker(python: Path, job: Job) -> dict[str, Any]:
    """The result of one job; `error` is the last line of what went wrong."""
    worker = Path(__file__).with_name("tokenizer_worker.py")
    threads = str(job.threads)
    environment = {
        **os.environ,
        "RAYON_NUM_THREADS": threads,
        "FASTOKENS_BPE_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "true" if job.threads > 1 else "false",
        "PYTHONPATH": "",
    }
    program = [str(python), str(worker), as_json(job)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_rounds(jobs: dict[str, Job], pythons: dict[str, Path], rounds: int, log: Path) -> Results:
    """Every job once a round, in turn; each result is appended to `log`, and what stands there is not run again."""
    results: Results = {name: {} for name in jobs}
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["job"] in results and record["round"] < rounds and "error" not in record["result"]:
                results[record["job"]][record["round"]] = record["result"]
    for number in range(rounds):
        for name, job in jobs.items():
            if number in results[name]:
                continue
            result = run_worker(pythons["ours" if job.contender == "ours" else "peers"], job)
            results[name][number] = result
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"job": name, "round": number, "load": load(), "result": result}) + "\n")
            print(f"{number + 1}/{rounds}  {name:28} {describe(result)}", flush=True)
    return results


def load() -> float | None:
    """Processes that wait for a core, averaged over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe(result: dict[str, Any]) -> str:
    """One result for the terminal."""
    if "error" in result:
        return result["error"]
    if "memory_bytes" in result:
        return f"{result['seconds']:.2f} s, {result['cpu_seconds']:.2f} CPU s, {result['memory_bytes'] / 1e6:.0f} MB"
    cold = result["cold_bytes"] / result["cold_seconds"] / 1e6
    return f"{result['bytes'] / result['seconds'] / 1e6:.1f} MB/s, cold {cold:.1f} MB/s"


# judging


def is_right(name: str, results: Results) -> bool | None:
    """Whether a contender gave the right ids, merges or text in every round; None when it did not run."""
    runs = results.get(name, {})
    if not runs or any("error" in run for run in runs.values()):
        return None
    row = name.split(".")[0]
    oracle = ORACLES[row]
    if is_missing(oracle, results):
        oracle = next(other for other in results if other.startswith(f"{row}.ours"))
        if is_missing(oracle, results):
            return None
    expected = next(iter(results[oracle].values()))["digest"]
    return all(run["digest"] == expected for run in runs.values())


def is_missing(name: str, results: Results) -> bool:
    """Whether a contender has no result in some round."""
    runs = results.get(name, {})
    return not runs or any("error" in run for run in runs.values())


def ratio_of(ratio: Ratio, results: Results) -> float | None:
    """Median over the rounds; the peer's call that leaves ours the smallest; None where one is missing or wrong."""
    if not is_right(ratio.ours, results):
        return None
    ratios = []
    for peer in ratio.peers:
        if is_right(peer, results):
            own = results[ratio.ours]
            rounds = own.keys() & results[peer].keys()
            ratios.append(median(results[peer][n][ratio.field] / max(own[n][ratio.field], 1e-9) for n in rounds))
    return round(min(ratios), 3) if ratios else None


def median_rate(runs: Iterable[dict[str, Any]], prefix: str = "") -> float:
    """Megabytes a second."""
    return round(median(run[f"{prefix}bytes"] / run[f"{prefix}seconds"] / 1e6 for run in runs), 1)


def figures_of(results: Results) -> dict[str, dict[str, Any]]:
    """The medians of every job that ran."""
    figures: dict[str, dict[str, Any]] = {}
    for name, runs in results.items():
        if is_missing(name, results):
            errors = [run["error"] for run in runs.values() if "error" in run]
            figures[name] = {"error": errors[0] if errors else "not run"}
            continue
        figure: dict[str, Any] = {"mb_per_second": median_rate(runs.values())}
        if "memory_bytes" in next(iter(runs.values())):
            for field in ("seconds", "cpu_seconds", "memory_bytes"):
                figure[field] = round(median(run[field] for run in runs.values()), 3)
        else:
            figure["cold_mb_per_second"] = median_rate(runs.values(), "cold_")
        figures[name] = {**figure, "right": is_right(name, results), "runs": len(runs)}
    return figures


def summary(results: Results, facts: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """What the last line says."""
    ratios = {key: ratio_of(ratio, results) for key, ratio in RATIOS.items()}
    figures = figures_of(results)
    targets = {
        key: {"target": round(ratio.target, 3), "reached": (ratios[key] or 0) >= ratio.target}
        for key, ratio in RATIOS.items()
        if ratio.target is not None
    }
    for name, target in RATES.items():
        rate = figures.get(name, {}).get("mb_per_second", 0)
        targets[f"{name}.mb_per_second"] = {"target": target, "reached": rate >= target}
    figures = {**figures, "targets": targets, **facts}
    return {"bench": "tokenizer", "ratios": ratios, "figures": figures, "machine": machine}


def print_tables(told: dict[str, Any]) -> None:
    """The medians and the ratios, for a person."""
    print(f"\n{'':30}{'MB/s':>8}{'cold':>8}{'s':>8}{'CPU s':>8}{'MB':>8}")
    for name in JOBS:
        figure = told["figures"].get(name, {"error": "not run"})
        if "error" in figure:
            print(f"{name:30}{figure['error']}")
            continue
        memory = f"{figure['memory_bytes'] / 1e6:.0f}" if "memory_bytes" in figure else ""
        cells = [figure.get(field, "") for field in ("mb_per_second", "cold_mb_per_second", "seconds", "cpu_seconds")]
        cells = [f"{cell:.1f}" if n < 2 and cell else f"{cell:.2f}" if cell else "" for n, cell in enumerate(cells)]
        wrong = "" if figure["right"] else "   differs from its oracle: not counted"
        print(f"{name:30}" + "".join(f"{cell:>8}" for cell in [*cells, memory]) + wrong)
    print(f"\n{'ratio':44}{'':>8}{'target':>8}")
    for key, ratio in told["ratios"].items():
        target = told["figures"]["targets"].get(key)
        asked = f"{target['target']:8.2f}  {'reached' if target['reached'] else 'not reached'}" if target else ""
        print(f"{key:44}{'-' if ratio is None else f'{ratio:.2f}':>8}{asked}")


# the machine


def machine_facts() -> dict[str, Any]:
    """The machine, what its cores can do, and how busy it is before the first run."""
    flags: set[str] = set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    return {
        **hardware.describe(),
        "avx512": "avx512f" in flags,
        "amx": "amx_tile" in flags,
        "load_before": load(),
    }


def environments() -> tuple[dict[str, Path], dict[str, str]]:
    """The Pythons of ours and of the peers, and the peers that could not be installed."""
    python, refused = peers.install("tokenizer", peers.requirements())
    for requirement, refusal in refused.items():
        print(f"left out: {requirement}: {refusal}")
    return {"ours": peers.ours(), "peers": python}, refused


def code_folders(python: Path) -> list[Path]:
    """Where an environment has Python files: its packages, then the library of its interpreter."""
    program = "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('stdlib'))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines()]


def prepared(config: Config, text: Path, python: Path, facts: dict[str, Any]) -> tuple[Path, dict[str, int]]:
    """The folder with the texts, written anew when what they are made of changed, and their sizes."""
    sizes = tokenizer_texts.QUICK if config.quick else tokenizer_texts.Sizes()
    if config.plot:
        sizes = replace(sizes, growth=2_000_000 if config.quick else 1_000_000_000)
    names = [(str(path.relative_to(text)), path.stat().st_size) for path in sorted(text.rglob("*"))]
    origin = json.dumps([asdict(sizes), names, facts], sort_keys=True)
    folder = paths.base_dir() / "peers" / f"tokenizer-texts-{hashlib.sha256(origin.encode()).hexdigest()[:12]}"
    done = folder / "sizes.json"
    if not done.exists():
        print("cutting the texts", flush=True)
        counted = tokenizer_texts.prepare(folder, text, code_folders(python), sizes)
        done.write_text(json.dumps(counted), encoding="utf-8")
    counted = dict(json.loads(done.read_text(encoding="utf-8")))
    asked = {"mixed": sizes.mixed, "books": sizes.books, "unseen": sizes.held_out, "growth": sizes.growth}
    for name, size in asked.items():
        short = "" if counted[name] >= 0.99 * size else f", of {size / 1e6:.0f} MB asked for: there is no more text"
        if size:
            print(f"{name}: {counted[name] / 1e6:.1f} MB{short}")
    return folder, counted


def main(config: Config) -> None:
    """Install, cut the texts, train the vocabulary, run the rounds, tell."""
    text = config.text or peers.ROOT.parent / "shared" / "data" / "prose"
    if not text.is_dir():
        raise UserError(f"there is no folder {text}: name one with prose by --text")
    if config.rounds < 1:
        raise UserError(f"--rounds is {config.rounds}: it must be at least 1")
    machine = machine_facts()
    pythons, refused = environments()
    facts: dict[str, Any] = {"versions": peers.versions(pythons["peers"], peers.requirements()), "refused": refused}
    folder, counted = prepared(config, text, pythons["peers"], facts)
    jobs = {name: replace(job, pattern=PATTERNS[job.pattern_name], folder=str(folder)) for name, job in JOBS.items()}
    result = run_worker(pythons["ours"], replace(jobs["train_mixed.ours"], measure="vocabulary"))
    if "error" in result:
        raise UserError(f"our own crate could not train the vocabulary: {result['error']}")
    log = folder / f"runs-{peers.crate_hash()[:12]}.jsonl"
    if not config.resume:
        log.unlink(missing_ok=True)
    rounds = min(config.rounds, 3) if config.quick else config.rounds
    results = run_rounds(jobs, pythons, rounds, log)
    if config.plot:
        out = folder if config.quick else Path(__file__).parent
        facts["growth"] = growth(out, counted["growth"], jobs["train_mixed.ours"], pythons, run_worker)
    told = summary(results, {**facts, "text_bytes": counted}, machine)
    print_tables(told)
    print(json.dumps(told))


if __name__ == "__main__":
    command.run(main, Config)
