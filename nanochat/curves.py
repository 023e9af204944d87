"""Curves of a run as one PNG: what a metrics.jsonl holds, over tokens where it tells them, else over steps.

Which runs there are, and where pictures go, is not here.

Lesson: lessons/25_your_ablation
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

# what a metrics.jsonl holds besides the curves: positions, clocks, settings, and means that are drawn here anyway
NO_CURVES = re.compile(
    r"steps?|smooth_.*|.*tokens|.*seconds|.*_?ms|mfu|.*_per_second|epoch|lr|lr_.*|.*multiplier|progress|.*time"
)
NAMES = {
    "loss": "training loss (nats per token)",
    "val_bpb": "validation (bits per byte)",
    "val_loss": "validation loss (nats per token)",
    "reward": "mean reward",
}
MOST_CURVES = 6
SMOOTHED_FROM = 60  # points from which a running mean is drawn over the raw values


def curves(metrics: Sequence[Mapping[str, object]]) -> tuple[str, dict[str, tuple[list[float], list[float]]]]:
    """The name of x ("tokens" or "step"), and for every curve its xs and ys; known curves come first.

    A record that tells only its step stands at the tokens that another record of that step tells.
    """
    tokens = {number(r.get("step")): number(r["tokens"]) for r in metrics if number(r.get("tokens")) is not None}
    over = "tokens" if tokens else "step"
    found: dict[str, tuple[list[float], list[float]]] = {}
    for record in metrics:
        step = number(record.get("step"))
        x = number(record.get(over, tokens.get(step, 0.0 if step == 0 else None)))
        for key, value in record.items():
            y = number(value)
            if x is not None and y is not None and not NO_CURVES.fullmatch(key):
                xs, ys = found.setdefault(key, ([], []))
                xs.append(x)
                ys.append(y)
    first = [key for key in NAMES if key in found]
    return over, {key: found[key] for key in [*first, *(key for key in found if key not in first)]}


def number(value: object) -> float | None:
    """`value` if it is a finite number (a bool is none)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def running_mean(ys: Sequence[float], decay: float = 0.9) -> list[float]:
    """The exponential mean of what was seen so far, corrected for its start at nothing."""
    mean, weight, smooth = 0.0, 0.0, []
    for y in ys:
        mean, weight = decay * mean + (1 - decay) * y, decay * weight + (1 - decay)
        smooth.append(mean / weight)
    return smooth


def draw_curves(metrics: Sequence[Mapping[str, object]], title: str, path: Path) -> bool:
    """Draw the curves side by side as a PNG; whether there was anything to draw."""
    along, found = curves(metrics)
    drawn = list(found.items())[:MOST_CURVES]
    if not drawn:
        return False
    # Figure without pyplot: no global state, no window, no choice of backend
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    columns = min(len(drawn), 2)
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.2 * rows + 0.4), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title)
    for place, (key, (xs, ys)) in enumerate(drawn, start=1):
        axes = figure.add_subplot(rows, columns, place)
        many = len(ys) >= SMOOTHED_FROM
        axes.plot(xs, ys, color="#a9c3e2" if many else "#1f4e8c", marker="" if many else "o", markersize=4)
        if many:
            axes.plot(xs, running_mean(ys), color="#1f4e8c", linewidth=2)
        axes.set_title(NAMES.get(key, key.replace("_at_", "@").replace("_", " ")), fontsize=10)
        axes.set_xlabel(along)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=along == "step"))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
    save(canvas, path)
    return True


def save(canvas: "FigureCanvasAgg", path: Path) -> None:
    """Write a figure's canvas as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        canvas.print_png(file)
    part.replace(path)
