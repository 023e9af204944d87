"""Several runs in one picture: where a run is found, and where its points stand."""

import json
from pathlib import Path

import pytest

from nanochat import command, report
from nanochat.command import UserError
from nanochat.run_curves import find_metrics, flops_per_token, over_x, plot_runs


def made_run(folder: Path, seconds_per_step: float = 60.0, steps: int = 4) -> Path:
    folder.mkdir(parents=True)
    records: list[dict[str, float]] = [{"step": 0, "tokens": 0, "val_bpb": 3.0}]
    for step in range(1, steps + 1):
        seconds = step * seconds_per_step
        records.append({"step": step, "tokens": 100 * step, "loss": 5.0 / step, "train_seconds": seconds})
    records.append({"step": steps, "tokens": 100 * steps, "val_bpb": 1.5})
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_named_by_tag_stage_folder_or_file(here: Path) -> None:
    base, sft = (made_run(here / "base" / "checkpoints" / stage / "d4") for stage in ("base", "sft"))
    mid = made_run(here / "base" / "checkpoints" / "mid" / "d6")
    own = made_run(here / "own")
    assert find_metrics("d4") == find_metrics("base/d4") == base
    assert find_metrics("sft/d4") == sft
    assert find_metrics("d6") == mid
    assert find_metrics("own").resolve() == find_metrics("own/metrics.jsonl").resolve() == own
    made_run(here / "base" / "checkpoints" / "rl" / "d6")
    with pytest.raises(UserError, match="several stages have a run 'd6': name one of mid/d6, rl/d6"):
        find_metrics("d6")
    with pytest.raises(
        UserError, match=r"no run 'd9': give a metrics\.jsonl, a folder with one, or one of base/d4, mid"
    ):
        find_metrics("d9")


def test_a_measurement_stands_at_the_minutes_that_training_had_taken() -> None:
    metrics = [
        {"step": 0, "val_bpb": 3.0},
        {"step": 2, "tokens": 20, "train_seconds": 60.0},
        {"step": 3, "val_bpb": 2.5},
        {"step": 4, "tokens": 40, "train_seconds": 180.0},
        {"step": 9, "val_bpb": 2.0},
    ]
    placed = over_x(metrics, "train_seconds", 1 / 60)
    assert [(r["step"], r["val_bpb"]) for r in placed if "val_bpb" in r] == [(0.0, 3.0), (2.0, 2.5), (3.0, 2.0)]
    assert over_x([{"step": 1, "loss": 2.0}], "train_seconds", 1.0) == []


@pytest.mark.parametrize("over", ["tokens", "flops", "minutes", "step"])
def test_each_run_has_a_line_of_its_own_colour(here: Path, over: str) -> None:
    from matplotlib.image import imread

    for name in ("slow", "quick"):
        run = here / "base" / "checkpoints" / "base" / name
        made_run(run, 60.0 if name == "slow" else 30.0)
        (run / "step_000004").mkdir()
        plan = {"plan": {"total_flops": 8e9, "total_tokens": 400}}
        (run / "step_000004" / "meta.json").write_text(json.dumps(plan), encoding="utf-8")
    report.main(report.Config("plot", ("slow", "quick"), over=over, out=here / "runs.png"))  # type: ignore[arg-type]
    pixels = imread(here / "runs.png")[..., :3]
    blue, orange = (abs(pixels - [*colour]).max(axis=2) < 0.02 for colour in ((0.122, 0.467, 0.706), (1, 0.498, 0.055)))
    assert orange.sum() > 300
    # over minutes the quick run is half as wide, over all else its line lies on the other
    assert (blue.sum() > 300) == (over == "minutes")
    assert flops_per_token(here / "base" / "checkpoints" / "base" / "slow" / "metrics.jsonl") == 2e7


def test_what_cannot_be_drawn_is_told_in_one_sentence(here: Path) -> None:
    made_run(here / "own")
    with pytest.raises(UserError, match="plot needs a run"):
        plot_runs([], "tokens", ["loss"], here / "x.png")
    with pytest.raises(UserError, match="none of own has a curve core over tokens"):
        plot_runs(["own"], "tokens", ["core"], here / "x.png")
    with pytest.raises(UserError, match="own has no checkpoint that tells FLOPs per token: take --over=tokens"):
        plot_runs(["own"], "flops", ["loss"], here / "x.png")
    with pytest.raises(UserError, match="reset takes no runs, got own; plot does"):
        report.main(report.Config("reset", ("own",)))
    assert not (here / "x.png").exists()


def test_the_command_line_takes_runs_behind_plot(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_run(here / "own")
    command.run(report.main, report.Config, ["plot", "own", "--over=minutes", "--out=runs.png"])
    assert capsys.readouterr().out == "runs.png\n"
    assert (here / "runs.png").read_bytes().startswith(b"\x89PNG")
    command.run(report.main, report.Config, ["plot", "own", "--dry_run"])
    assert capsys.readouterr().out == "would draw own/metrics.jsonl into runs.png\n"
