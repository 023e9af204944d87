"""Pictures of what `bench/pretrain.py` measured."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain_quality import ARCHITECTURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(found: dict[str, dict[str, Any]], folder: Path) -> None:
    """`pretrain.png`: tokens per second by row, bpb by tokens, bpb by minutes; the last as JSON lines too."""
    # Figure without pyplot: no global state, no window, no choice of backend
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawers = {"speed": _speed, "quality": _quality, "time": _time}
    parts = [name for name in drawers if found[name]]
    if not parts:
        return
    figure = Figure(figsize=(5.5 * len(parts), 4), dpi=100, layout="constrained")
    for place, name in enumerate(parts, start=1):
        axes = figure.add_subplot(1, len(parts), place)
        drawers[name](axes, found[name])
        axes.grid(alpha=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pretrain.png").open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    if found["time"]:
        curve = "".join(json.dumps(point) + "\n" for point in found["time"]["curve"])
        (folder / "pretrain_time.jsonl").write_text(curve, encoding="utf-8")


def _speed(axes: "Axes", rows: dict[str, Any]) -> None:
    """The best of each side, in both formats, as bars with their range."""
    kinds = [(side, dtype) for side in ("ours", "transformers") for dtype in ("bfloat16", "float32")]
    for offset, (side, dtype) in enumerate(kinds):
        xs, best = [], []
        for place, of_row in enumerate(rows.values()):
            of_kind = [result for who, result in of_row.items() if who.startswith(f"{side}.{dtype}.")]
            if of_kind:
                xs.append(place + 0.2 * offset - 0.3)
                best.append(max(of_kind, key=lambda result: float(result["tokens_per_second"])))
        heights = [result["tokens_per_second"] for result in best]
        spread = [
            [r["tokens_per_second"] - r["slowest"] for r in best],
            [r["fastest"] - r["tokens_per_second"] for r in best],
        ]
        axes.bar(xs, heights, 0.18, yerr=spread, label=f"{side}, {dtype}")
    axes.set_xticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_ylabel("tokens/s, best mode of each")
    axes.legend(fontsize=8)


def _quality(axes: "Axes", found: dict[str, Any]) -> None:
    """Whole trainings of some lengths, each with a schedule of its own."""
    lengths = [found[name] for name in ("short", "long") if name in found]
    for arch in ARCHITECTURES:
        bpb = [one[arch]["ours"] for one in lengths]
        axes.plot([one["tokens"] / 1e6 for one in lengths], bpb, "o-", label=f"ours, {arch}")
    theirs = [one["default"]["theirs"] for one in lengths]
    axes.plot([one["their_tokens"] / 1e6 for one in lengths], theirs, "o-", label="transformers, tuned AdamW")
    axes.set_xlabel("million training tokens")
    axes.set_ylabel("validation, bits per byte")
    axes.legend(fontsize=8)


def _time(axes: "Axes", found: dict[str, Any]) -> None:
    """The curve of one run, from its second point on where there are three: the first ones are far above."""
    curve = found["curve"][1:] if len(found["curve"]) > 2 else found["curve"]
    axes.plot([point["seconds"] / 60 for point in curve], [point["bpb"] for point in curve], "o-", label="ours")
    axes.axhline(found["target_bpb"], linestyle=":", color="grey", label=f"{found['target_bpb']}")
    axes.set_xlabel("minutes of training, compilation counted")
    axes.set_ylabel("validation, bits per byte")
    axes.legend(fontsize=8)
