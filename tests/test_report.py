"""Sections are kept as JSON and rendered once, in the order of the pipeline, with intervals and honest blanks."""

import json
import math
from pathlib import Path

import pytest

from nanochat import paths, report
from nanochat.command import UserError
from nanochat.report import Config, Score, add_section, generate, main, reset, score_table, wilson


@pytest.fixture(autouse=True)
def here(base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def metrics_file(folder: Path) -> Path:
    path = folder / "metrics.jsonl"
    rows = [{"step": i, "tokens": 4096 * i, "loss": 8.0 / (i + 1) ** 0.5} for i in range(100)]
    rows += [{"step": i, "tokens": 4096 * i, "val_bpb": 3.0 / (i + 1) ** 0.3} for i in range(0, 100, 25)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_wilson_agrees_with_the_root_of_its_equation() -> None:
    for correct, count in ((0, 10), (3, 10), (10, 10), (450, 500)):
        low, high = wilson(correct, count)
        for bound in (low, high):
            # the interval holds every p with |share - p| <= z * sqrt(p (1 - p) / n), so its ends meet the equality
            assert abs(correct / count - bound) == pytest.approx(
                1.959963984540054 * math.sqrt(bound * (1 - bound) / count), abs=1e-7
            )
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_table_has_a_row_a_task_and_a_column_a_stage() -> None:
    add_section("chat_eval_sft", {}, [Score("TinyMath", "sft", 0.9, 500, *wilson(450, 500))])
    add_section("base_loss", {}, [Score("val bpb", "base", 1.23456)])
    add_section("base_eval", {}, [Score("CORE", "base", -0.01)])
    assert score_table().splitlines() == [
        "| Metric   | BASE    | MID | SFT                        | RL |",
        "| -------- | ------- | --- | -------------------------- | -- |",
        "| val bpb  | 1.2346  | -   | -                          | -  |",
        "| CORE     | -0.0100 | -   | -                          | -  |",
        "| TinyMath | -       | -   | 90.0 % [87.1, 92.3] of 500 | -  |",
    ]


def test_a_stage_run_again_replaces_its_section_and_scores() -> None:
    add_section("chat_eval_mid", {"a": 1}, [Score("T", "mid", 0.1)])
    add_section("chat_eval_mid", {"a": 2}, [Score("T", "mid", 0.2)])
    assert "20.0 %" in score_table()
    assert "10.0 %" not in score_table()
    assert len(report.sections()) == 1


def test_sections_come_in_the_order_of_the_pipeline_and_unknown_ones_last() -> None:
    for name in ("my own", "chat_sft", "tok_train", "base_train", "mid_train"):
        add_section(name, {})
    assert [s.name for s in report.sections()] == ["tok_train", "base_train", "mid_train", "chat_sft", "my own"]


def test_the_report_tells_machine_git_parameters_cost_wall_time_and_every_fact(here: Path) -> None:
    reset()
    facts = {"num_params": 5_242_880, "config": {"depth": 4}, "rate": float("nan"), "ok": True, "tasks": ["a", "b"]}
    add_section("base_train", facts, [Score("val bpb", "base", 1.5)], metrics=metrics_file(here))
    path = generate()
    assert path == here / "report.md"
    text = path.read_text(encoding="utf-8")
    for part in ("| cpu ", "| git_commit ", "| wall time ", "| cost ", "| python ", "0 h 00 min 0"):
        assert part in text
    assert "parameters" in text
    assert "5,242,880" in text
    assert "| config.depth " in text
    assert "| nan" in text
    assert "a, b" in text
    assert "![curves of base_train](report/base_train.png)" in text
    assert (here / "report" / "base_train.png").read_bytes().startswith(b"\x89PNG")
    kept = (paths.report_dir() / "report.md").read_text(encoding="utf-8")
    assert kept == text.replace("(report/", "(")
    assert sorted(p.name for p in paths.report_dir().iterdir()) == [
        "base_train.json",
        "base_train.png",
        "report.md",
        "start.json",
    ]


def test_a_section_whose_metrics_are_gone_is_still_told(here: Path) -> None:
    add_section("base_train", {"depth": 4}, metrics=here / "gone.jsonl")
    assert "## base_train" in generate().read_text(encoding="utf-8")


def test_without_a_reset_the_wall_time_is_said_to_be_unknown() -> None:
    add_section("tok_train", {})
    assert "unknown: no `report reset`" in generate().read_text(encoding="utf-8")


def test_reset_forgets_sections_and_pictures_and_nothing_else(here: Path) -> None:
    add_section("base_train", {}, metrics=metrics_file(here))
    generate()
    (paths.report_dir() / "notes.txt").write_text("mine", encoding="utf-8")
    reset()
    assert sorted(p.name for p in paths.report_dir().iterdir()) == ["notes.txt", "start.json"]
    with pytest.raises(UserError, match="run a stage first"):
        generate()


@pytest.mark.parametrize(
    ("gpu", "count", "seconds", "said"),
    [
        ("none", 0, 100.0, "no GPU: not computed"),
        ("NVIDIA H100 80GB HBM3", 8, 3600.0, "$24.00 (8 x $3.00 per hour)"),
        ("Some Future GPU", 1, 100.0, "unknown: no price is known for Some Future GPU"),
        ("NVIDIA H100 80GB HBM3", 8, None, "unknown: the wall time is not known"),
    ],
)
def test_the_cost_is_computed_or_said_to_be_unknown(gpu: str, count: int, seconds: float | None, said: str) -> None:
    assert report.cost(gpu, count, seconds) == said


def test_other_ranks_keep_nothing(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    add_section("base_train", {})
    assert not base_dir.exists()


def test_a_damaged_section_is_named() -> None:
    add_section("base_train", {})
    (paths.report_dir() / "mid_train.json").write_text('{"name": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"mid_train\.json is no section of a report"):
        score_table()


def test_the_command_prints_the_path_and_the_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Config("reset"))
    assert capsys.readouterr().out == ""
    add_section("base_loss", {}, [Score("val bpb", "base", 1.5)])
    main(Config("generate"))
    assert capsys.readouterr().out == f"{here / 'report.md'}\n\n{score_table()}\n"


def test_a_dry_run_leaves_the_report_as_it_is(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Config("reset", dry_run=True))
    assert "would reset" in capsys.readouterr().out
    assert not base_dir.exists()
