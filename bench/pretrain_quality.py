"""Quality in `bench/pretrain.py`: bits per byte by tokens beside the tuned peer, and by minutes of one run of ours.

Ours is `python -m scripts.base_train` itself, with no flags but sizes, length and `--arch`: the default, which is the
peer's architecture too, and `fast`. It measures nothing while it trains: its checkpoints are measured afterwards, so
that the time of a run is training and compilation and nothing else.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from statistics import mean, stdev
from typing import Any

from pretrain_lines import ROOT, Lines, run_worker
from pretrain_worker import SOURCE, Checkpoints, PeerRun

from nanochat import paths
from nanochat.command import UserError
from nanochat.gpt_config import config_for_depth
from nanochat.log import read_metrics

STUDENT_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Half-widths of 95 % intervals in standard errors, by the number of seeds."""
ARCHITECTURES = ("default", "fast")
LONGER = 1.5
"""Times our tokens are the peer's."""
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
"""Of the peer, in this order until one is worse than the one before; where the best stands at an edge, the next one."""
UNMEASURED = "--eval_every=0 --core_every=0 --sample_every=0"


@dataclass(frozen=True)
class Size:
    """What both train, and on how much it is measured."""

    depth: int = 4
    vocab_size: int = 8192
    sequence_len: int = 512
    micro: int = 4
    dtype: str = "auto"
    eval_tokens: int = 262_144
    compile: str = "on"
    batch_tokens: int = 8192
    """Of the peer, to begin with."""


# ours


def base_train(tag: str, flags: Sequence[str], **environment: str) -> Sequence[Mapping[str, Any]]:
    """Run it to its end; its metrics. What it says goes to a file beside its checkpoints."""
    folder = paths.checkpoints_dir("base", tag)
    folder.mkdir(parents=True, exist_ok=True)
    given = [f"--data={SOURCE}", f"--model_tag={tag}", "--device_type=cpu", *shlex.split(UNMEASURED), *flags]
    with (folder / "said.txt").open("a", encoding="utf-8") as said:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.base_train", *given],
            cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, check=False, env={**os.environ, **environment},
        )  # fmt: skip
    if done.returncode:
        raise UserError(f"base_train {shlex.join(given)} ended with {done.returncode}: see {folder / 'said.txt'}")
    return read_metrics(folder / "metrics.jsonl")


def our_run(size: Size, arch: str, tokens: int, seed: int) -> dict[str, Any]:
    """An architecture as `base_train` plans it for so many tokens; an interrupted run goes on."""
    sizes = config_for_depth(size.depth, size.vocab_size, size.sequence_len, arch=arch)
    tag = f"d{size.depth}-{arch}-{tokens}-{seed}"
    flags = [
        f"--depth={size.depth}", f"--arch={arch}", f"--max_seq_len={size.sequence_len}",
        f"--device_batch_size={size.micro}",
        f"--target_flops={tokens * sizes.flops_per_token}", f"--seed={seed}", f"--dtype={size.dtype}",
        f"--compile={size.compile}", "--save_every=50", "--keep_last=1", "--resume",
    ]  # fmt: skip
    records = [record for record in base_train(tag, flags) if "train_seconds" in record]
    last = records[-1]
    bpb = run_worker(Checkpoints(tag, (int(last["step"]),), size.dtype, size.eval_tokens))["bpb"][str(last["step"])]
    shutil.rmtree(paths.checkpoints_dir("base", tag))
    return {"bpb": bpb, "tokens": last["tokens"], "seconds": last["train_seconds"], "steps": last["step"]}


def ours_of(lines: Lines, size: Size, arch: str, tokens: int, seed: int) -> dict[str, Any]:
    """The same from its line, where there is one; told in a line."""
    asked = {**asdict(size), "arch": arch, "tokens": tokens, "seed": seed}
    found = lines.get("ours", asked, lambda: our_run(size, arch, tokens, seed))
    print(f"ours ({arch}), {found['tokens']:,} tokens, seed {seed}: bpb {found['bpb']:.4f}", flush=True)
    return found


# the peer


def tuned(lines: Lines, size: Size, tokens: int, seed: int, rates: Sequence[float] = RATES) -> PeerRun:
    """The peer's best setting: rate, then its fall, then smaller batches, then rates about it; by one seed."""
    job = PeerRun(
        size.depth, size.vocab_size, tokens, size.batch_tokens, rates[0], "linear", seed, size.dtype, size.micro,
        size.eval_tokens, size.sequence_len,
    )  # fmt: skip
    tried: dict[PeerRun, float] = {}

    def best(candidates: Sequence[PeerRun]) -> PeerRun:
        for each in candidates:
            if each not in tried:
                tried[each] = peer(lines, each)["bpb"]
        return min(tried, key=lambda each: tried[each])

    found = job
    for rate in rates:
        found = best([replace(job, rate=rate)])
        if found.rate != rate:
            break
    while found.rate in (min(each.rate for each in tried), max(each.rate for each in tried)) and len(tried) < 10:
        factor = 2 if found.rate == max(each.rate for each in tried) else 0.5
        found = best([replace(found, rate=found.rate * factor)])
    found = best([replace(found, shape=shape) for shape in ("cosine", "trapezoid")])
    while found.batch_tokens >= 2 * size.micro * size.sequence_len:
        halved = replace(found, batch_tokens=found.batch_tokens // 2)
        found = best([halved])
        if found != halved:
            break
    return best([replace(found, rate=found.rate * factor) for factor in (0.5, 2)])


def peer(lines: Lines, job: PeerRun) -> dict[str, Any]:
    """Its result, told in a line."""
    result = lines.get("peer", asdict(job), lambda: run_worker(job))
    print(
        f"peer, {result['tokens']:,} tokens, seed {job.seed}, rate {job.rate:g} {job.shape}, steps of "
        f"{job.batch_tokens:,}: bpb {result['bpb']:.4f}",
        flush=True,
    )
    return result


# beside each other


def compared(
    lines: Lines, size: Size, lengths: Mapping[str, int], seeds: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Ours and the peer's bpb by length: `short`, by which the peer is tuned, and `long`."""
    found: dict[str, Any] = {}
    setting: PeerRun | None = None
    for name, tokens in lengths.items():
        ours: dict[str, list[float]] = {arch: [] for arch in ARCHITECTURES}
        theirs: list[float] = []
        for seed in seeds[name]:
            runs = [ours_of(lines, size, arch, tokens, seed) for arch in ARCHITECTURES]
            for arch, run in zip(ARCHITECTURES, runs, strict=True):
                ours[arch].append(run["bpb"])
            more = round(LONGER * max(run["tokens"] for run in runs))
            if setting is None:
                setting = tuned(lines, size, more, seed)
            run = peer(lines, replace(setting, tokens=more, seed=seed))
            theirs.append(run["bpb"])
        found[name] = {
            "tokens": runs[0]["tokens"],
            "their_tokens": run["tokens"],
            **{arch: difference(ours[arch], theirs) for arch in ARCHITECTURES},
        }
    assert setting is not None, f"no length in {lengths}"
    found["their_setting"] = {"rate": setting.rate, "shape": setting.shape, "batch_tokens": setting.batch_tokens}
    found["their_trials"] = trials(lines, setting)
    return found


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Means, and the mean of the peer's less ours by seeds with its 95 % interval (Student); above 0 ours is better."""
    gains = [their - our for our, their in zip(ours, theirs, strict=True)]
    half = STUDENT_95[len(gains)] * stdev(gains) / sqrt(len(gains)) if len(gains) in STUDENT_95 else None
    return {
        "ours": mean(ours), "theirs": mean(theirs), "gain": mean(gains), "half_width": half, "seeds": len(gains),
        "ratio": mean(theirs) / mean(ours),
    }  # fmt: skip


def trials(lines: Lines, setting: PeerRun) -> list[dict[str, Any]]:
    """What was tried for the peer at the length and seed by which it was tuned."""
    same = {"kind": "peer", "tokens": setting.tokens, "seed": setting.seed, "depth": setting.depth}
    found = []
    for line in lines.found:
        if all({"kind": line["kind"], **line["asked"]}.get(key) == value for key, value in same.items()):
            kept = {key: line["asked"][key] for key in ("rate", "shape", "batch_tokens")}
            found.append({**kept, "bpb": line["result"]["bpb"]})
    return found


# time to quality


def timed_run(flags: str, every: int, eval_tokens: int) -> dict[str, Any]:
    """One run of ours with these flags: bpb over seconds of training, the compiler's among them, measuring excluded.

    Nothing is compiled beforehand. `process_seconds` is all of the process, imports and checkpoints too.
    """
    tag = "timed"
    shutil.rmtree(paths.checkpoints_dir("base", tag), ignore_errors=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pretrain-") as cache:
        asked = [*shlex.split(flags), f"--save_every={every}"]
        records = base_train(tag, asked, TORCHINDUCTOR_CACHE_DIR=cache)
    whole = time.perf_counter() - started
    steps = {record["step"]: record for record in records if "train_seconds" in record}
    saved = [step for step in steps if step % every == 0 or step == max(steps)]
    bpb = run_worker(Checkpoints(tag, tuple(saved), eval_tokens=eval_tokens))["bpb"]
    shutil.rmtree(paths.checkpoints_dir("base", tag))
    curve = [
        {"step": step, "tokens": steps[step]["tokens"], "seconds": steps[step]["train_seconds"], "bpb": bpb[str(step)]}
        for step in saved
    ]
    return {
        "curve": curve,
        "first_step_seconds": steps[min(steps)]["step_seconds"],
        "tokens_per_second": steps[max(steps)]["tokens_per_second"],
        "process_seconds": whole,
    }


def seconds_to(curve: Sequence[Mapping[str, float]], target: float) -> float | None:
    """Of training until a checkpoint was as good as `target`; None: never."""
    return next((point["seconds"] for point in curve if point["bpb"] <= target), None)
