"""Ranks, progress bars, and the file of metrics."""

import json
import math
import sys
import types
from pathlib import Path

import pytest

from nanochat.command import UserError
from nanochat.log import MetricLog, is_main_rank, print0, progress, read_metrics


@pytest.mark.parametrize(("rank", "main"), [(None, True), ("0", True), ("1", False), ("7", False)])
def test_only_rank_zero_or_no_rank_is_main(rank: str | None, main: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_main_rank() is main


def test_other_ranks_print_no_line_and_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    print0("hello")
    assert list(progress(range(3), label="rows")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_bar_goes_to_standard_error_and_names_its_label(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], total=3, label="rows")) == [1, 2, 3]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "rows" in captured.err
    assert "3/3" in captured.err


def test_a_bar_off_a_terminal_writes_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(100_000), total=100_000):
        pass
    assert capsys.readouterr().err.count("\r") <= 4


def test_every_record_is_one_json_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    log = MetricLog(path)
    log.log({"step": 1, "loss": 2.5, "note": "naïve"})
    log.log({"step": 2, "loss": math.nan})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 2.5, "note": "naïve"},
        {"step": 2, "loss": None},
    ]


def test_a_resumed_run_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    for step in range(5):
        log.log({"step": step, "loss": 1.0 / (step + 1)})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')
    log.truncate_after(2)
    log.log({"step": 3, "loss": 9.0})
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3]
    assert read_metrics(path)[-1]["loss"] == 9.0
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    with MetricLog(tmp_path / "metrics.jsonl") as log:
        log.log({"step": 1})
        log.truncate_after(0)
    assert list(tmp_path.iterdir()) == []


def test_asking_for_wandb_without_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--run=mine sends metrics to wandb.*uv pip install wandb"):
        MetricLog(tmp_path / "metrics.jsonl", run="mine")


def test_wandb_is_told_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    stub = types.SimpleNamespace(
        init=lambda **given: (
            told.append(given) or types.SimpleNamespace(log=told.append, finish=lambda: told.append("end"))
        )
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    with MetricLog(tmp_path / "metrics.jsonl", run="mine") as log:
        log.log({"step": 1, "loss": 2.5})
    assert told == [
        {"project": "nanochat", "name": "mine", "dir": str(tmp_path)}, {"step": 1, "loss": 2.5}, "end",
    ]  # fmt: skip
