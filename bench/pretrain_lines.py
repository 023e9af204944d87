"""Measurements of `bench/pretrain.py` as lines of JSON, none made twice, and the processes that make them."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pretrain_worker import Checkpoints, PeerRun, Speed, as_line

from nanochat import hardware
from nanochat.command import UserError

ROOT = Path(__file__).resolve().parent.parent


class MissingError(Exception):
    """A line is not there, and nothing may be measured."""


class Lines:
    """The lines of a file, by what was asked for. A torn last line counts for nothing.

    With `measures` False what is missing raises MissingError.
    """

    def __init__(self, path: Path, measures: bool = True):
        self.path, self.measures = path, measures
        self.found: list[dict[str, Any]] = []
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                self.found.append(json.loads(line))
        self._separator = "" if not text or text.endswith("\n") else "\n"

    def get(self, kind: str, asked: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result for what is asked, measured where no line has it yet."""
        key = json.loads(json.dumps({"kind": kind, "asked": dict(asked)}))
        for line in self.found:
            if all(line[name] == value for name, value in key.items()):
                return dict(line["result"])
        if not self.measures:
            raise MissingError(f"{self.path} has no line for {key}")
        result = json.loads(json.dumps(measure()))
        self.found.append({**key, "result": result, **hardware.git_facts()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{self._separator}{json.dumps(self.found[-1])}\n")
        self._separator = ""
        return dict(result)


def run_worker(job: Speed | PeerRun | Checkpoints, **environment: str) -> dict[str, Any]:
    """What a worker prints, with these changes to its environment."""
    program = [sys.executable, str(Path(__file__).with_name("pretrain_worker.py")), as_line(job)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise UserError(f"{job} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
