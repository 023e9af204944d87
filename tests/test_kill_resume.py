"""`bench/kill_resume.py`: eight kills come to the bits of a run in peace, and a run that does not is found out."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nanochat.checkpoint_files import save_checkpoint
from nanochat.log import MetricLog

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield importlib.import_module("kill_resume")
    del sys.modules["kill_resume"]


def a_run(bench: ModuleType, tag: str, weight: float = 1.0, loss: float = 2.0, steps: int = 40, seed: int = 0) -> None:
    weights = {"w": torch.tensor([weight])}
    state = {"ranks": [seed], "progress": {"train_seconds": hash(tag), "smooth_loss": loss}}
    save_checkpoint(bench.folder_of(tag), bench.STEPS, weights, {"tag": tag}, weights, state)
    with MetricLog(bench.folder_of(tag) / "metrics.jsonl") as metrics:
        for step in range(1, steps + 1):
            metrics.log({"step": step, "loss": loss / step, "step_seconds": float(hash((tag, step)))})


def test_every_difference_from_the_run_in_peace_is_found(bench: ModuleType, base_dir: Path) -> None:
    a_run(bench, "peace")
    a_run(bench, "same")
    a_run(bench, "weight", weight=1 + 2**-23)
    a_run(bench, "loss", loss=2 + 2**-51)
    a_run(bench, "short", steps=39)
    a_run(bench, "seed", seed=1)
    found = {tag: bench.differences(tag, "peace") for tag in ("same", "weight", "loss", "short", "seed")}
    assert found == {
        "same": [],
        "weight": ["model.safetensors", "optim.safetensors"],
        "loss": ["state.json: progress", "metrics.jsonl"],
        "short": ["metrics.jsonl", "steps in metrics.jsonl"],
        "seed": ["state.json: ranks"],
    }


def test_a_run_that_ends_before_its_kill_is_followed_by_one_with_another_moment(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same moment came again and again, for ever; and a run that failed by itself was begun again, for ever."""
    moments: list[tuple[str, float]] = []

    def kill(child: int, tag: str, moment: str, delay: float) -> bool:
        moments.append((moment, delay))
        if len(moments) == 4:
            monkeypatch.setattr(bench, "reached", lambda tag: 7)
        return False

    monkeypatch.setattr(bench, "kill", kill)
    for name in ("forked", "finished", "differences"):
        monkeypatch.setattr(bench, name, lambda *_: [])
    monkeypatch.setattr(bench, "reached", lambda tag: bench.STEPS)
    monkeypatch.setattr(bench.shutil, "rmtree", lambda *_, **__: None)
    (tmp_path / "log").write_text("why", encoding="utf-8")
    with pytest.raises(bench.UserError, match=r"nobody killed has failed.*why"):
        bench.campaign(bench.Config(), 2, tmp_path / "log", tmp_path / "told")
    assert len(set(moments)) == 4


@pytest.mark.slow
def test_eight_kills_at_random_moments_leave_no_trace(tmp_path: Path) -> None:
    """Half of them in a save; weights, optimizer, data, generators and logged losses to the last bit."""
    done = subprocess.run(
        [sys.executable, "bench/kill_resume.py", "--kills=8", f"--folder={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    kills = [record for record in told if "kill" in record]
    assert [record["kill"] for record in kills] == list(range(1, 9))
    assert all(record["corrupt"] == [] for record in kills)
    figures = told[-1]["figures"]
    assert figures["bitwise_equal"] is True
    assert (figures["kills"], figures["corrupt_loads"]) == (8, 0)
    assert figures["rounds"] >= 1
    assert 0 < figures["steps_lost_at_most"] <= figures["save_every"]
