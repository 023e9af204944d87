"""How training time and memory grow with the text and with the vocabulary: ours beside rustbpe, as a plot."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizer_contenders import Job

SIZES = [1_000_000, 10_000_000, 100_000_000, 1_000_000_000]
VOCABULARIES = [4_096, 8_192, 16_384, 32_768, 65_536, 131_072]

Runner = Callable[[Path, Job], dict[str, Any]]


def points(available_bytes: int, job: Job) -> list[tuple[str, Job]]:
    """Text sizes as far as there is text, the last one all of it; then the vocabularies, on 10 MB."""
    sizes = [size for size in SIZES if size < available_bytes] + [min(available_bytes, SIZES[-1])]
    job = replace(job, texts="growth")
    by_text = [("text", replace(job, max_bytes=size)) for size in sizes]
    by_vocabulary = [
        ("vocabulary", replace(job, max_bytes=min(SIZES[1], available_bytes), vocab_size=size)) for size in VOCABULARIES
    ]
    return by_text + by_vocabulary


def growth(
    out: Path, available_bytes: int, job: Job, pythons: dict[str, Path], run: Runner, rounds: int = 3
) -> list[dict[str, Any]]:
    """Measure every point, each contender in turn, the fastest of `rounds`; write JSON lines and the plot to `out`."""
    rows = []
    for curve, point in points(available_bytes, job):
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "rustbpe": []}
        for _ in range(rounds):
            for contender, results in runs.items():
                python = pythons["ours" if contender == "ours" else "peers"]
                result = run(python, replace(point, contender=contender))
                results += [] if "error" in result else [result]
        for contender, results in runs.items():
            if not results:
                continue
            best = min(results, key=lambda result: result["seconds"])
            row = {"curve": curve, "contender": contender, "vocab_size": point.vocab_size}
            row |= {field: best[field] for field in ("bytes", "tokens", "seconds", "memory_bytes", "digest")}
            rows.append(row)
            print(f"{curve}  {contender:8} {row['bytes'] / 1e6:7.1f} MB  {row['tokens']:7} tokens", end="  ")
            print(f"{row['seconds']:.2f} s  {row['memory_bytes'] / 1e6:.0f} MB", flush=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (out / "tokenizer_growth.jsonl").write_text(lines, encoding="utf-8")
    draw(rows, out / "tokenizer_growth.png")
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time above, memory below; left by text, right by vocabulary."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col", layout="constrained")
    columns = [("text", "bytes", 1e6, "MB of text, vocabulary 32,768"), ("vocabulary", "tokens", 1, "tokens, 10 MB")]
    for column, (curve, field, unit, label) in enumerate(columns):
        for row, (what, scale, name) in enumerate([("seconds", 1, "seconds"), ("memory_bytes", 1e6, "MB above input")]):
            axis = axes[row][column]
            for contender, marker in (("ours", "o-"), ("rustbpe", "s--")):
                chosen = [r for r in rows if r["curve"] == curve and r["contender"] == contender]
                xs, ys = [r[field] / unit for r in chosen], [r[what] / scale for r in chosen]
                axis.plot(xs, ys, marker, label="ours" if contender == "ours" else "rustbpe 0.1.0")
            axis.set_xscale("log")
            ticks = sorted({r[field] / unit for r in rows if r["curve"] == curve})
            axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], fontsize=7)
            axis.minorticks_off()
            axis.set_ylabel(name)
            axis.grid(alpha=0.3)
            if curve == "text":
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
        axes[1][column].set_xlabel(label)
    axes[0][0].legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)
