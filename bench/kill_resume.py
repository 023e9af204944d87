"""Kills base_train at random moments with SIGKILL and goes on with --resume: does it come to the same bits?

    python bench/kill_resume.py
    python bench/kill_resume.py --quick

A round is a run killed again and again until it has come to its end; then its weights, optimizer, position in the data,
random states and logged losses are compared with those of a run that was left in peace. After every kill all
checkpoints are verified. A line of JSON a kill in `kills.jsonl`, where an interrupted campaign goes on; the last line
is the summary. Every process is forked from one that has imported what base_train needs, which saves its start. POSIX.
"""

import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nanochat.engine
import nanochat.report
import nanochat.training  # noqa: F401
from nanochat import command, dataset, hardware, paths, tinyworld
from nanochat.checkpoint_files import steps_of, verify
from nanochat.command import UserError
from nanochat.log import read_metrics
from nanochat.tokenizer import RustBPETokenizer

ROOT = Path(__file__).parent.parent
SAVE_EVERY = 5
STEPS = 40
FLAGS = (
    "--depth=1 --max_seq_len=64 --device_batch_size=2 --total_batch_size=256 --eval_every=10 --eval_tokens=512 "
    f"--core_every=0 --sample_every=0 --save_every={SAVE_EVERY} --keep_last=2 --num_iterations={STEPS} "
    "--data=tinyworld --device_type=cpu --dtype=float32 --compile=off"
).split()
CLOCKS = ("step_seconds", "tokens_per_second", "train_seconds", "mfu")


@dataclass(frozen=True)
class Config:
    """Flags of the bench."""

    kills: int = 100
    """How many kills there will be in all."""
    quick: bool = False
    """Ten kills at most."""
    seed: int = 1
    """Of the moments."""
    folder: Path | None = None
    """Where the runs are; unset: bench/kill_resume under the base directory."""
    fresh: bool = False
    """Begin the campaign anew."""


def forked(work: Callable[[], object], log: Path) -> int:
    """Do `work` in a process of its own that writes to `log`; its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    finally:
        sys.stdout.flush()
        os._exit(status)


def train(tag: str) -> None:
    """`python -m scripts.base_train`, here."""
    sys.argv = ["base_train", *FLAGS, f"--model_tag={tag}", "--resume"]
    sys.path.insert(0, str(ROOT))
    runpy.run_module("scripts.base_train", run_name="__main__", alter_sys=True)


def finished(child: int, log: Path) -> None:
    """Wait for a process that must come to its end."""
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise UserError(f"a run that nobody killed has failed; the end of {log}: {log.read_text()[-2000:]}")


def make_data() -> None:
    """Text and a tokenizer."""
    texts = list(tinyworld.documents(seed=1, megabytes=0.3))
    dataset.write_shards(texts, "tinyworld")
    RustBPETokenizer.train_from_iterator(texts[:200], vocab_size=400).save(paths.tokenizer_dir())


def folder_of(tag: str) -> Path:
    """A run's checkpoints."""
    return paths.checkpoints_dir("base", tag)


def logged(tag: str) -> dict[tuple[Any, str], Any]:
    """Everything that was measured at each step, but what a clock says."""
    path = folder_of(tag) / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    return {(r.get("step"), key): value for r in records for key, value in r.items() if key not in CLOCKS}


def reached(tag: str) -> int:
    """The last step that was logged."""
    return max((step for step, key in logged(tag) if key == "loss"), default=0)


def differences(tag: str, other: str) -> list[str]:
    """What is not the same to the last bit at the end of two runs."""
    ours, theirs = (folder_of(name) / f"step_{STEPS:06d}" for name in (tag, other))
    found = [
        name
        for name in ("model.safetensors", "optim.safetensors")
        if (ours / name).read_bytes() != (theirs / name).read_bytes()
    ]
    one, two = (json.loads((folder / "state.json").read_bytes()) for folder in (ours, theirs))
    for state in (one, two):
        state["progress"].pop("train_seconds")
    found += [f"state.json: {key}" for key in one.keys() | two.keys() if one.get(key) != two.get(key)]
    if logged(tag) != logged(other):
        found.append("metrics.jsonl")
    lines = [record["step"] for record in read_metrics(folder_of(tag) / "metrics.jsonl") if "loss" in record]
    if lines != list(range(1, STEPS + 1)):
        found.append("steps in metrics.jsonl")
    return found


def kill(child: int, tag: str, moment: str, delay: float) -> bool:
    """Kill after `delay` seconds, for moment "save" counted from when a save begins; False when it had ended before."""
    began = time.monotonic()
    while moment == "save" and not any(folder_of(tag).glob("step_*.tmp-*")):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        if time.monotonic() - began > 60:
            break
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def campaign(config: Config, kills: int, log: Path, told: Path) -> list[dict[str, Any]]:
    """Rounds of kills until there are enough; every record, those of an interrupted campaign too."""
    records: list[dict[str, Any]] = []
    if told.exists():
        records = [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]

    def tell(record: dict[str, Any]) -> None:
        records.append(record)
        with told.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    began = time.monotonic()
    shutil.rmtree(folder_of("peace"), ignore_errors=True)
    finished(forked(lambda: train("peace"), log), log)
    seconds = time.monotonic() - began
    while True:
        done = sum("kill" in record for record in records)
        number = sum("bitwise_equal" in record for record in records)
        tag, moments = f"round{number}", random.Random(f"{config.seed}-{len(records)}")
        child = forked(lambda tag=tag: train(tag), log)
        if done >= kills:
            finished(child, log)
        else:
            moment = moments.choice(["clock", "save"])
            delay = moments.uniform(0, 0.9 * seconds if moment == "clock" else 0.02)
            if kill(child, tag, moment, delay):
                steps = steps_of(folder_of(tag))
                corrupt = [f"{path.name}: {wrong}" for path in steps.values() if (wrong := verify(path))]
                last, newest = reached(tag), next(iter(steps), 0)
                tell({"kill": done + 1, "round": number, "moment": moment, "after_seconds": round(delay, 4),
                      "reached": last, "resumes_from": newest, "repeated": last - newest, "corrupt": corrupt,
                      "in_a_save": any(folder_of(tag).glob("step_*.tmp-*"))})  # fmt: skip
                continue
        if reached(tag) != STEPS:
            raise UserError(f"a run that nobody killed has failed; the end of {log}: {log.read_text()[-2000:]}")
        wrong = differences(tag, "peace")
        tell({"round": number, "bitwise_equal": not wrong, "differs": wrong})
        shutil.rmtree(folder_of(tag))
        if done >= kills:
            return records


def main(config: Config) -> None:
    """Prepare, run the campaign, tell."""
    if not hasattr(os, "fork"):
        raise UserError("this bench kills and forks processes, which this system cannot: run it on Linux or macOS")
    folder = (config.folder or paths.base_dir() / "bench" / "kill_resume").resolve()
    if config.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    os.environ.update(NANOCHAT_BASE_DIR=str(folder), OMP_NUM_THREADS="1")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "runs.log"
    if not (paths.tokenizer_dir() / "tokenizer.json").exists():
        finished(forked(make_data, log), log)
    records = campaign(config, min(config.kills, 10) if config.quick else config.kills, log, folder / "kills.jsonl")
    killed = [record for record in records if "kill" in record]
    rounds = [record for record in records if "bitwise_equal" in record]
    passed_over = len(re.findall(r"^passed over ", log.read_text(encoding="utf-8"), re.MULTILINE))
    figures = {
        "kills": len(killed),
        "kills_in_a_save": sum(record["in_a_save"] for record in killed),
        "rounds": len(rounds),
        "bitwise_equal": all(record["bitwise_equal"] for record in rounds),
        "corrupt_loads": passed_over + sum(bool(record["corrupt"]) for record in killed),
        "steps_lost_at_most": max((record["repeated"] for record in killed), default=0),
        "save_every": SAVE_EVERY,
    }
    print(json.dumps({"bench": "kill_resume", "ratios": {}, "figures": figures, "machine": hardware.describe()}))


if __name__ == "__main__":
    command.run(main, Config)
