"""The bench of the plan's forecasts: points are measured once, a torn line again, and the last line has its keys."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nanochat import hardware


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))
    return importlib.import_module("plan_curve")


def test_a_second_call_goes_on_where_the_first_one_ended(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, Any]] = []

    def run(part: str, config: object, point: Any) -> dict[str, float]:
        ran.append((part, point))
        if part == "foretell":
            return {"foretold_bytes": 1.1e9 * point.depth, "foretold_seconds": 1.8}
        return {"bytes": 1e9 * point.depth, "seconds": 2.0}

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(hardware, "describe", lambda: {"cpu": "some"})
    config = bench.Config(quick=True, plot=True, out=tmp_path)
    bench.main(config)
    first = len(ran)
    assert first == 2 * len({point for _, point in ran})
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["bench"] == "plan_curve"
    assert last["figures"]["memory_off_median"] == pytest.approx(0.1)
    assert last["figures"]["time_off_at_most"] == pytest.approx(0.1)
    assert (tmp_path / "plan_curve.png").read_bytes().startswith(b"\x89PNG")
    bench.main(config)
    assert len(ran) == first
    lines = tmp_path / "plan_curve.jsonl"
    lines.write_text(lines.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    bench.main(config)
    assert len(ran) == first + 2
    bench.main(config)
    assert len(ran) == first + 2


@pytest.mark.slow
def test_the_workers_measure_and_foretell_a_point(bench: ModuleType) -> None:
    point = bench.Point(1, 16, 256)
    config = bench.Config(threads=1)
    foretold = bench.run("foretell", config, point)
    assert foretold["foretold_bytes"] > 16 * 80_000
    assert foretold["foretold_seconds"] > 0
    short = bench.run("foretell", config, bench.Point(1, 16, 256, sequence_len=64))
    assert short["foretold_bytes"] < 0.7 * foretold["foretold_bytes"]
    measured = bench.run("measure", config, point)
    assert measured["bytes"] > 16 * 80_000
    assert measured["seconds"] > 0
