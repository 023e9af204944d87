"""The ablations' driver: a line a run, none twice, and a table whose figures are what was measured."""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from types import ModuleType
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tiny import TEXT

from nanochat.command import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """`bench/ablations.py` with a base directory of its own."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield importlib.import_module("ablations")
    del sys.modules["ablations"]


@pytest.fixture
def small(bench: ModuleType, tmp_path: Path) -> Any:
    """Runs of twenty steps over two little shards."""
    text = tmp_path / "text"
    text.mkdir()
    for shard in range(2):
        documents = pyarrow.table({"text": [f"{TEXT} {shard} {n}" for n in range(20)]})
        pyarrow.parquet.write_table(documents, text / f"shard_{shard:05}.parquet")
    return bench.Config(
        text=text, tricks=("baseline", "longer", "fast", "average"), seeds=(1,), depth=1, vocab_size=280,
        max_seq_len=32, total_batch_size=128, device_batch_size=2, tokens=2560, eval_tokens=512, dtype="float32",
    )  # fmt: skip


def line(trick: str, seed: int, bpb: float, seconds: float = 100.0, **more: Any) -> dict[str, Any]:
    settings = {"depth": 4, "vocab_size": 8192, "max_seq_len": 512, "total_batch_size": 8192, "tokens": 2_000_000,
                "eval_tokens": 262_144, "dtype": "auto", "compile": False}  # fmt: skip
    return {"trick": trick, "seed": seed, **settings, "bpb": bpb, "seconds": seconds, "device": "cpu", **more}


def test_every_run_is_a_line_and_none_is_repeated(
    bench: ModuleType, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(small)
    out = tmp_path / "base" / "bench" / "ablations.jsonl"
    lines = bench.read_lines(out)
    assert [one["trick"] for one in lines] == ["baseline", "longer", "fast", "average"]
    assert all(math.isfinite(one["bpb"]) and one["tokens_per_second"] > 0 for one in lines)
    assert len({one["bpb"] for one in lines}) == 4
    assert lines[2]["num_params"] > lines[0]["num_params"]
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told.keys() == {"bench", "ratios", "figures", "machine"}
    assert told["ratios"]["baseline"] == 1.0
    assert told["figures"]["fast"]["gain"] == pytest.approx(lines[0]["bpb"] - lines[2]["bpb"])

    bench.main(replace(small, tricks=("baseline", "backout")))
    assert [one["trick"] for one in bench.read_lines(out)] == ["baseline", "longer", "fast", "average", "backout"]
    capsys.readouterr()
    bench.main(replace(small, table=True))
    assert capsys.readouterr().out == bench.table(bench.read_lines(out)) + "\n"


def test_gains_are_paired_by_seed_and_charged_for_their_seconds(bench: ModuleType) -> None:
    lines = [line("baseline", seed, bpb) for seed, bpb in ((1, 1.70), (2, 1.72), (3, 1.74))]
    lines += [line("longer", seed, bpb - 0.04, 125.0) for seed, bpb in ((1, 1.70), (2, 1.72), (3, 1.74))]
    gains = (0.010, 0.013, 0.007)
    lines += [
        line("smear", seed, 1.68 + 0.02 * seed - gain, 110.0) for seed, gain in zip((1, 2, 3), gains, strict=True)
    ]
    lines += [line("odd", 9, 1.0)]  # without a baseline of its seed
    found = {one.trick: one for one in bench.compared(lines)}
    assert found.keys() == {"baseline", "longer", "smear"}
    assert found["smear"].gain == pytest.approx(0.01)
    assert found["smear"].half_width == pytest.approx(4.30 * stdev(gains) / math.sqrt(3))
    assert found["smear"].slower == pytest.approx(1.1)
    assert found["smear"].net == pytest.approx(0.01 - 0.04 / math.log(1.25) * math.log(1.1))
    assert found["longer"].net == pytest.approx(0.0)
    assert found["baseline"].gain == found["baseline"].net == 0.0


def test_steps_that_were_timed_in_turn_say_what_a_trick_costs(bench: ModuleType) -> None:
    lines = [line("baseline", 1, 1.7), line("longer", 1, 1.6, 900.0), line("smear", 1, 1.68, 900.0)]
    lines += [line("backout", 1, 1.69, 150.0)]
    timed = {"baseline_step_seconds": 0.5, "slower": 1.02}
    told = [{key: value for key, value in line("smear", 0, 0.0).items() if key not in ("bpb", "seconds", "seed")}]
    found = {one.trick: one for one in bench.compared(lines + [{**one, "seed": None, **timed} for one in told])}
    assert [found[name].slower for name in ("baseline", "longer", "smear", "backout")] == [1.0, 1.25, 1.02, 1.5]
    assert found["baseline"].seconds == 0.5 * 244
    assert found["smear"].seconds == pytest.approx(0.5 * 244 * 1.02)


def test_steps_are_timed_beside_the_baselines(
    bench: ModuleType, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(replace(small, steps=True, tricks=("baseline", "longer")))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["figures"] == {}  # there is nothing to time
    bench.main(small)
    bench.main(replace(small, steps=True))
    bench.main(replace(small, steps=True))
    lines = bench.read_lines(tmp_path / "base" / "bench" / "ablations.jsonl")
    timed = [one for one in lines if one["seed"] is None]
    assert [one["trick"] for one in timed] == ["fast", "average"]  # a longer run's steps are the baseline's
    assert all(one["slower"] > 0 and one["baseline_step_seconds"] > 0 for one in timed)
    fast = next(one for one in bench.compared(lines) if one.trick == "fast")
    assert fast.slower == timed[0]["slower"]


def test_one_seed_has_no_interval_and_without_longer_nothing_is_charged(bench: ModuleType) -> None:
    found = bench.compared([line("baseline", 1, 1.7), line("smear", 1, 1.8), line("smear", 1, 1.6)])
    assert [one.trick for one in found] == ["baseline", "smear"]
    assert (found[1].half_width, found[1].net) == (None, None)
    assert found[1].gain == pytest.approx(0.1)  # the last line counts


def test_the_table_has_a_part_for_every_setting(bench: ModuleType) -> None:
    lines = [line("baseline", 1, 1.7), line("smear", 1, 1.6), line("baseline", 2, 1.8), line("smear", 2, 1.75)]
    text = bench.table([*lines, line("baseline", 1, 1.5, depth=8)])
    assert "\n| smear | 1.6000, 1.7500 | +0.0750 ± " in text
    assert text.count("\n## ") == 2
    assert "## depth 8, vocab_size 8192" in text
    assert bench.table([line("baseline", 1, 1.7), line("smear", 1, 1.6)]).endswith(
        "\n| smear | 1.6000 | +0.1000 | 100 | 1.000 | - | +1.000 |"
    )


def test_wrong_flags_are_refused_in_one_sentence(bench: ModuleType, small: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trick is called 'smaer'; there are baseline, longer"):
        bench.main(replace(small, tricks=("smaer",)))
    with pytest.raises(UserError, match="got 1 seeds and 10 tokens in steps of 128"):
        bench.main(replace(small, tokens=10))
    with pytest.raises(UserError, match="holds 0 parquet shards, two are needed: name a folder by --text"):
        bench.main(replace(small, text=tmp_path))
    with pytest.raises(UserError, match="holds no runs yet"):
        bench.main(replace(small, table=True))


def test_every_trick_names_fields_that_there_are(bench: ModuleType) -> None:
    plain = bench.config_for_depth(2, 100, 16)
    for name, trick in bench.TRICKS.items():
        assert (replace(plain, **trick.config) == plain) == (not trick.config), name
        replace(bench.Rates(), **trick.rates)
