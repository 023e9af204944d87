"""Which curves a metrics.jsonl holds, and the picture of them."""

import math
from pathlib import Path

import pytest

from nanochat.curves import curves, draw_curves, running_mean


def test_curves_go_over_tokens_where_they_are_told_and_leave_out_clocks_and_settings() -> None:
    metrics = [
        {
            "step": 1,
            "tokens": 100,
            "lr_multiplier": 1.0,
            "loss": 3.0,
            "tokens_per_second": 5,
            "step_ms": 3,
            "note": "x",
        },
        {"step": 2, "tokens": 200, "loss": None, "val_bpb": 1.5},
        {"step": 3, "loss": 9.0},
    ]
    assert curves(metrics) == ("tokens", {"loss": ([100.0], [3.0]), "val_bpb": ([200.0], [1.5])})


def test_curves_go_over_steps_else_and_known_names_come_first() -> None:
    over, found = curves([{"step": 1, "zebra": 1.0, "loss": 2.0, "flag": True}, {"step": 2, "zebra": math.inf}])
    assert over == "step"
    assert list(found) == ["loss", "zebra"]
    assert found["zebra"] == ([1.0], [1.0])


def test_the_running_mean_of_a_constant_is_the_constant_from_the_first_point_on() -> None:
    assert running_mean([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert running_mean([0.0, 1.0], decay=0.5) == pytest.approx([0.0, 2 / 3])


def test_a_record_without_tokens_stands_where_its_step_stands() -> None:
    metrics = [
        {"step": 0, "val_loss": 9.0},
        {"step": 1, "tokens": 100, "loss": 3.0, "smooth_loss": 3.0},
        {"step": 1, "val_loss": 2.0},
        {"step": 7, "val_loss": 1.0},
    ]
    assert curves(metrics) == ("tokens", {"loss": ([100.0], [3.0]), "val_loss": ([0.0, 100.0], [9.0, 2.0])})


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    assert not draw_curves([{"step": 1, "note": "x"}], "t", tmp_path / "t.png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_a_whole_png_and_its_lines_are_seen_in_the_pixels(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "t.png"
    assert draw_curves([{"step": i, "loss": 5.0 / (i + 1)} for i in range(100)], "t", path)
    pixels = imread(path)
    height, width = pixels.shape[:2]
    assert height > 200
    assert width > 400
    blue = (pixels[..., 2] > pixels[..., 0] + 0.3).any(axis=0)
    assert blue.sum() > width / 2
    assert [p.name for p in tmp_path.iterdir()] == ["t.png"]
