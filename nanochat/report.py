"""The report of a run: every stage keeps a section as JSON, rendered once to `report.md` with curves as PNG.

    python -m nanochat.report reset       # forget the sections of an earlier run, and start the clock
    python -m nanochat.report generate    # render, copy to ./report.md, print the table of scores
    python -m nanochat.report plot d4 d6 other/metrics.jsonl --over=minutes    # runs beside each other, as a picture

What a score means, and when one is taken, is not here.

Lesson: lessons/25_your_ablation
"""

import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro

from nanochat import command, hardware, paths
from nanochat.command import UserError
from nanochat.curves import draw_curves
from nanochat.log import is_main_rank, print0, read_metrics
from nanochat.run_curves import Over, find_metrics, plot_runs

Stage = Literal["base", "mid", "sft", "rl"]

PIPELINE = (
    *("tinyworld", "dataset", "tok_train", "tok_eval"),
    *("base_train", "base_loss", "base_eval", "chat_eval_base"),
    *("mid_train", "chat_eval_mid", "chat_sft", "chat_eval_sft", "chat_rl", "chat_eval_rl"),
)
START = "start.json"


@dataclass(frozen=True)
class Score:
    """What a model of `stage` got in `task`: a share in [0, 1], or a plain figure for bpb and CORE.

    `low` and `high` bound the 95 % interval, `count` is the number of problems.
    """

    task: str
    stage: Stage
    value: float
    count: int = 0
    low: float | None = None
    high: float | None = None


def wilson(correct: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `correct` out of `count` (Wilson 1927); (0, 1) of none."""
    if count <= 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share = correct / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


# --- keep -------------------------------------------------------------------------------------------------------------


def reset() -> None:
    """Forget every section, and start the clock of a new run."""
    folder = paths.report_dir()
    if folder.is_dir():
        for path in folder.iterdir():
            if path.suffix in (".json", ".png", ".part") or path.name == "report.md":
                path.unlink()
    _write_json(folder / START, {"started": time.time(), "machine": hardware.describe()})


def add_section(
    name: str, facts: Mapping[str, object], scores: Sequence[Score] = (), metrics: Path | None = None
) -> None:
    """Keep what the stage called `name` (its script, `chat_eval` with the stage) found; a second time replaces it.

    `metrics` is a metrics.jsonl whose curves are drawn. Other ranks than the first keep nothing.
    """
    if not is_main_rank():
        return
    section = {
        "name": name,
        "written": time.time(),
        "facts": _plain(facts),
        "scores": [asdict(score) for score in scores],
        "metrics": str(metrics.resolve()) if metrics is not None else None,
    }
    _write_json(paths.report_dir() / f"{_file_name(name)}.json", section)


def _plain(value: object) -> object:
    """What JSON can hold of a fact: dataclasses as mappings, numbers that are not finite as text, the rest as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | bool) or value is None else str(value)


def _file_name(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_") or "section"


def _write_json(path: Path, value: object) -> None:
    _write(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)


@dataclass(frozen=True)
class Section:
    """One stage's part of the report, as it was kept."""

    name: str
    written: float
    facts: dict[str, object]
    scores: list[Score]
    metrics: Path | None


def sections() -> list[Section]:
    """The sections in the order of the pipeline; those of unknown stages come last, as they were written."""
    found = []
    for path in paths.report_dir().glob("*.json"):
        if path.name == START:
            continue
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            scores = [Score(**score) for score in kept["scores"]]
            metrics = Path(kept["metrics"]) if kept["metrics"] else None
            found.append(Section(kept["name"], kept["written"], kept["facts"], scores, metrics))
        except (ValueError, KeyError, TypeError) as broken:
            raise UserError(
                f"{path} is no section of a report ({broken}); delete it, or run its stage again"
            ) from broken
    order = {name: position for position, name in enumerate(PIPELINE)}
    return sorted(found, key=lambda s: (order.get(_file_name(s.name), len(order)), s.written))


# --- tables -----------------------------------------------------------------------------------------------------------


def score_table() -> str:
    """The scores as a Markdown table: a row per task, a column per stage, intervals beside the values."""
    latest: dict[tuple[str, str], Score] = {}
    for section in sorted(sections(), key=lambda s: s.written):
        latest.update({(score.task, score.stage): score for score in section.scores})
    tasks = list(dict.fromkeys(score.task for section in sections() for score in section.scores))
    if not tasks:
        return "No scores yet: `python -m scripts.base_eval` and `python -m scripts.chat_eval` take them."
    stages = get_args(Stage)
    rows = [["Metric", *(stage.upper() for stage in stages)]]
    rows += [[task, *(_score(latest.get((task, stage))) for stage in stages)] for task in tasks]
    return _table(rows)


def _score(score: Score | None) -> str:
    if score is None:
        return "-"
    share = not (score.task.lower().endswith("bpb") or score.task.lower().startswith("core"))

    def shown(value: float) -> str:
        return f"{value * 100:.1f}" if share else f"{value:.4f}"

    text = shown(score.value) + (" %" if share else "")
    if score.low is not None and score.high is not None:
        text += f" [{shown(score.low)}, {shown(score.high)}]"
    return text + (f" of {score.count:,}" if score.count else "")


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table with columns of even width, the first row its head."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def _facts_table(facts: Mapping[str, object]) -> str:
    rows = [(key, _fact(value)) for key, value in _flat(facts)]
    return _table([("Fact", "Value"), *rows])


def _flat(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _fact(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(_fact(item) for item in value)
    return str(value)


# --- render -----------------------------------------------------------------------------------------------------------


def generate() -> Path:
    """Draw the curves, render `report.md` into the report's folder and copy it to `./report.md`; the copy's path.

    The copy's pictures lie in `./report/`. Raises UserError when no stage has kept anything.
    """
    kept = sections()
    if not kept:
        raise UserError(f"nothing in {paths.report_dir()} to report: run a stage first, `bash quickstart.sh` runs all")
    pictures = _draw(kept)
    _write(paths.report_dir() / "report.md", _render(kept, pictures, ""))
    copy = Path("report.md").resolve()
    if copy == (paths.report_dir() / "report.md").resolve():
        return copy
    for picture in pictures.values():
        (copy.parent / "report").mkdir(exist_ok=True)
        shutil.copyfile(picture, copy.parent / "report" / picture.name)
    _write(copy, _render(kept, pictures, "report/"))
    return copy


def _draw(kept: Sequence[Section]) -> dict[str, Path]:
    """A picture for every section whose metrics are there and have a curve."""
    pictures = {}
    for section in kept:
        if section.metrics is not None and section.metrics.is_file():
            picture = paths.report_dir() / f"{_file_name(section.name)}.png"
            if draw_curves(read_metrics(section.metrics), section.name, picture):
                pictures[section.name] = picture
    return pictures


def _render(kept: Sequence[Section], pictures: Mapping[str, Path], folder: str) -> str:
    start = _start()
    lines = ["# nanochat report", "", _facts_table(_summary(kept, start)), "", "## Scores", ""]
    lines += [
        score_table(),
        "",
        "In brackets the 95 % interval, then the number of problems (of tokens for bits per byte).",
        "",
    ]
    for section in kept:
        lines += [f"## {section.name}", ""]
        if section.name in pictures:
            lines += [f"![curves of {section.name}]({folder}{pictures[section.name].name})", ""]
        if section.facts:
            lines += [_facts_table(section.facts), ""]
    return "\n".join(lines)


def _start() -> dict[str, object]:
    path = paths.report_dir() / START
    try:
        start = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as broken:
        raise UserError(f"{path} is damaged: run `python -m nanochat.report reset`") from broken
    return start if isinstance(start, dict) else {}


def _summary(kept: Sequence[Section], start: Mapping[str, object]) -> dict[str, object]:
    """Machine, sources, size of the model, time and money."""
    machine = start.get("machine")
    facts: dict[str, object] = dict(machine) if isinstance(machine, dict) else dict(hardware.describe())
    memory = facts.pop("memory_bytes", None)
    if isinstance(memory, int):
        facts["memory"] = f"{memory / 2**30:.1f} GiB"
    size = next((s.facts[key] for s in kept for key in ("num_params", "parameters") if key in s.facts), None)
    facts["parameters"] = size if size is not None else "not told by any stage"
    began = start.get("started")
    seconds = max(s.written for s in kept) - began if isinstance(began, int | float) else None
    facts["wall time"] = _clock(seconds) if seconds is not None else "unknown: no `report reset` before the first stage"
    facts["cost"] = cost(str(facts.get("gpu", "none")), facts.get("gpu_count"), seconds)
    return facts


def cost(gpu: str, count: object, seconds: float | None) -> str:
    """The price of the run in words: GPUs by the hour, or why there is none."""
    if gpu == "none" or not isinstance(count, int) or count < 1:
        return "no GPU: not computed"
    price = hardware.dollars_per_hour(gpu)
    if price is None:
        return f"unknown: no price is known for {gpu}"
    if seconds is None:
        return "unknown: the wall time is not known"
    return f"${price * count * seconds / 3600:.2f} ({count} x ${price:.2f} per hour)"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min {whole % 60:02d} s"


@dataclass(frozen=True)
class Config:
    """Render the report, start a new one, or draw runs beside each other."""

    action: tyro.conf.Positional[Literal["generate", "reset", "plot"]] = "generate"
    """`generate` writes report.md; `reset` forgets the sections and starts the clock; `plot` draws the runs named."""
    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """For plot: tags, `stage/tag`, folders or metrics.jsonl files."""
    over: Over = "tokens"
    """What the curves are drawn over."""
    curves: tuple[str, ...] = ("loss", "val_bpb")
    """Which fields of the metrics."""
    out: Path = Path("runs.png")
    """The picture that plot writes."""
    dry_run: bool = False
    """Print what would be done, and do nothing."""


def main(config: Config) -> None:
    """Do what `config.action` says."""
    if config.runs and config.action != "plot":
        raise UserError(f"{config.action} takes no runs, got {' '.join(config.runs)}; plot does")
    if config.action == "plot":
        if config.dry_run:
            print0("would draw " + ", ".join(str(find_metrics(run)) for run in config.runs) + f" into {config.out}")
        else:
            print0(plot_runs(config.runs, config.over, config.curves, config.out))
    elif config.dry_run:
        print0(f"would {config.action} the report in {paths.report_dir()}")
    elif config.action == "reset":
        reset()
    else:
        print0(f"{generate()}\n\n{score_table()}")


if __name__ == "__main__":
    command.run(main, Config)
