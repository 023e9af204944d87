"""Runs beside each other: their curves in one picture, over tokens, FLOPs, minutes or steps.

How one run's curves are read and drawn is in `curves`.

Lesson: lessons/25_your_ablation
"""

import bisect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from nanochat import paths
from nanochat.command import UserError
from nanochat.curves import NAMES, SMOOTHED_FROM, curves, number, running_mean, save
from nanochat.log import read_metrics

Over = Literal["tokens", "flops", "minutes", "step"]
FIELDS: dict[Over, tuple[str, float]] = {
    "tokens": ("tokens", 1.0), "flops": ("tokens", 1.0), "minutes": ("train_seconds", 1 / 60), "step": ("step", 1.0),
}  # fmt: skip


def find_metrics(run: str) -> Path:
    """The metrics.jsonl of a run: a file, a folder that holds one, `stage/tag`, or a tag (of base, else the only one).

    Raises UserError when there is none, or more than one stage has it.
    """
    given = Path(run)
    if given.is_file():
        return given
    if (given / "metrics.jsonl").is_file():
        return given / "metrics.jsonl"
    found = sorted(paths.checkpoints_dir("").glob("*/*/metrics.jsonl"))
    names = {f"{path.parent.parent.name}/{path.parent.name}": path for path in found}
    for name in (run, f"base/{run}"):
        if name in names:
            return names[name]
    matching = [name for name in names if name.endswith(f"/{run}")]
    if len(matching) == 1:
        return names[matching[0]]
    if matching:
        raise UserError(f"several stages have a run {run!r}: name one of {', '.join(matching)}")
    raise UserError(
        f"no run {run!r}: give a metrics.jsonl, a folder with one, or one of {', '.join(names) or 'none yet'}"
    )


def flops_per_token(metrics: Path) -> float:
    """Of the run that wrote `metrics`, from the plan in its newest checkpoint. Raises UserError when there is none."""
    metas = sorted(metrics.parent.glob("step_*/meta.json"))
    if not metas:
        raise UserError(f"{metrics.parent} has no checkpoint that tells FLOPs per token: take --over=tokens or minutes")
    plan = json.loads(metas[-1].read_text(encoding="utf-8"))["plan"]
    return float(plan["total_flops"]) / float(plan["total_tokens"])


def plot_runs(runs: Sequence[str], over: Over, keys: Sequence[str], picture: Path) -> Path:
    """Overlay the runs' curves called `keys` in one picture. Raises UserError when there is nothing to draw."""
    if not runs:
        raise UserError("plot needs a run: python -m nanochat.report plot RUN [RUN...]")
    placed = {}
    for run in runs:
        metrics = find_metrics(run)
        field, scale = FIELDS[over]
        scale *= flops_per_token(metrics) if over == "flops" else 1.0
        placed[run] = over_x(read_metrics(metrics), field, scale)
    if not overlay(placed, keys, over, picture):
        raise UserError(f"none of {', '.join(runs)} has a curve {' or '.join(keys)} over {over}")
    return picture


def over_x(metrics: Sequence[Mapping[str, object]], x: str, scale: float) -> list[dict[str, object]]:
    """The records with a field "step" that is `scale` times their field `x`, interpolated where a record lacks it.

    A measurement tells its step and its tokens, but neither its minutes nor its FLOPs: it stands where training stood.
    """
    known = sorted(
        (step, value * scale)
        for record in metrics
        if (step := number(record.get("step"))) is not None and (value := number(record.get(x))) is not None
    )
    if not known:
        return []
    known = [(0.0, 0.0), *known] if known[0][0] > 0 else known
    steps, values = zip(*known, strict=True)
    placed = []
    for record in metrics:
        step = number(record.get("step"))
        if step is not None:
            rest = {key: value for key, value in record.items() if key != "tokens"}
            placed.append({**rest, "step": _interpolated(step, steps, values)})
    return placed


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The value at x of the line through (xs, ys), xs rising; outside of it the nearest end's."""
    right = bisect.bisect_left(xs, x)
    if right == len(xs) or right == 0:
        return ys[min(right, len(xs) - 1)]
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


def overlay(runs: Mapping[str, Sequence[Mapping[str, object]]], keys: Sequence[str], x: str, path: Path) -> bool:
    """Draw the curves called `keys`, each with a line for every run that has it; whether there was any.

    `runs` maps a name to records whose field "step" is the x to draw over, which `x` names with its unit.
    """
    found = {name: curves([{**r, "tokens": None} for r in records])[1] for name, records in runs.items()}
    drawn = [key for key in keys if any(key in of_run for of_run in found.values())]
    if not drawn:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(6.4 * len(drawn), 4.2), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for place, key in enumerate(drawn, start=1):
        axes = figure.add_subplot(1, len(drawn), place)
        for index, (name, of_run) in enumerate(found.items()):
            if key in of_run:
                xs, ys = of_run[key]
                many = len(ys) >= SMOOTHED_FROM
                shown = running_mean(ys) if many else ys
                axes.plot(xs, shown, color=f"C{index % 10}", marker="" if many else "o", markersize=3, label=name)
        axes.set_title(NAMES.get(key, key.replace("_", " ")), fontsize=10)
        axes.set_xlabel(x)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(canvas, path)
    return True
