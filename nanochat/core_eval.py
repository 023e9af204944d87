"""The CORE metric: 22 in-context tasks of three kinds, each centred on chance, averaged (DCLM, arXiv:2406.11794).

A bundle is a folder with `core.yaml` (the tasks), `eval_meta_data.csv` (the random baselines) and `eval_data/`.

multiple_choice     query and choices: the choice with the lowest mean loss
schema              several contexts, one continuation: the context that gives it the lowest mean loss
language_modeling   context and continuation: right when every token of it is the likeliest

Lesson: lessons/19_validation
"""

import csv
import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml

from nanochat.command import UserError
from nanochat.gpt import GPT
from nanochat.report import wilson
from nanochat.runtime import Runtime
from nanochat.task_eval import mean_losses
from nanochat.tokenizer import RustBPETokenizer

Kind = Literal["multiple_choice", "schema", "language_modeling"]
CoreRow = Mapping[str, object]


@dataclass(frozen=True)
class CoreTask:
    """One task of a bundle; `baseline` is the accuracy of chance."""

    label: str
    kind: Kind
    path: Path
    num_fewshot: int
    delimiter: str
    baseline: float


@dataclass(frozen=True)
class CoreResult:
    """Accuracy over `count` rows with its 95 % interval, and centred: 0 at chance, 1 when all is right."""

    accuracy: float
    count: int
    low: float
    high: float
    centered: float


def read_bundle(folder: Path) -> list[CoreTask]:
    """The tasks of a bundle. Raises UserError that names what is missing."""
    listing, table = folder / "core.yaml", folder / "eval_meta_data.csv"
    for path in (listing, table):
        if not path.is_file():
            raise UserError(f"the CORE bundle in {folder} lacks {path.name}")
    with table.open(encoding="utf-8", newline="") as file:
        baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}
    tasks = []
    for entry in yaml.safe_load(listing.read_text(encoding="utf-8"))["icl_tasks"]:
        if entry["label"] not in baselines:
            raise UserError(f"{table} lacks the random baseline of {entry['label']!r}, which core.yaml lists")
        path = folder / "eval_data" / entry["dataset_uri"]
        tasks.append(
            CoreTask(
                entry["label"], entry["icl_task_type"], path, entry["num_fewshot"][0],
                entry.get("continuation_delimiter", " "), baselines[entry["label"]],
            )
        )  # fmt: skip
    return tasks


def read_rows(path: Path) -> list[CoreRow]:
    """The rows of a task's file, `name.jsonl` or `name.jsonl.gz`."""
    if not path.is_file():
        path = path.with_name(path.name + ".gz")
    if not path.is_file():
        raise UserError(f"the CORE bundle lacks {path.with_suffix('')}")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def evaluate_core_task(
    model: GPT,
    tokenizer: RustBPETokenizer,
    task: CoreTask,
    rows: Sequence[CoreRow],
    runtime: Runtime,
    max_rows: int | None = None,
    on_progress: Callable[[int], object] = lambda count: None,
) -> CoreResult:
    """Accuracy on the first `max_rows` rows in a fixed shuffled order, shared out over the ranks.

    Raises UserError where there is no row.
    """
    order = list(range(len(rows)))
    random.Random(1337).shuffle(order)
    picked = order[:max_rows]
    if not picked:
        raise UserError(f"{task.label} has no row to evaluate: {len(rows)} are there, at most {max_rows} asked for")
    mine = picked[runtime.rank :: runtime.world_size]
    correct = 0.0
    for start in range(0, len(mine), 16):
        batch = mine[start : start + 16]
        correct += sum(_are_right(model, tokenizer, task, rows, batch))
        on_progress(len(batch) * runtime.world_size)
    [correct] = runtime.sum_over_ranks(correct)
    accuracy = correct / len(picked)
    low, high = wilson(correct, len(picked))
    return CoreResult(accuracy, len(picked), low, high, centered(accuracy, task.baseline))


def centered(accuracy: float, baseline: float) -> float:
    """0 at chance, 1 when all is right, below 0 where chance does better."""
    return (accuracy - baseline) / (1 - baseline)


def core_metric(results: Sequence[CoreResult]) -> float:
    """The plain mean of the centred accuracies."""
    return sum(result.centered for result in results) / len(results)


def render_row(task: CoreTask, row: CoreRow, shots: Sequence[CoreRow]) -> list[tuple[str, str]]:
    """(context, continuation) of every option of a row, the few-shot examples in front of the context.

    The delimiter ends the context: it is given to the model, not asked of it.
    """
    prefix = "".join("".join(_solved(task, shot)) + "\n\n" for shot in shots)
    if task.kind == "multiple_choice":
        return [(prefix + _text(row["query"]) + task.delimiter, choice) for choice in _texts(row["choices"])]
    if task.kind == "schema":
        continuation = _text(row["continuation"])
        return [(prefix + context + task.delimiter, continuation) for context in _texts(row["context_options"])]
    return [(prefix + _text(row["context"]).strip() + task.delimiter, _text(row["continuation"]))]


def _solved(task: CoreTask, row: CoreRow) -> tuple[str, str]:
    """A row with its right answer, as an example."""
    options = render_row(task, row, [])
    gold = row.get("gold", 0)
    assert isinstance(gold, int), f"gold is {gold!r}"
    return options[gold]


def _are_right(
    model: GPT, tokenizer: RustBPETokenizer, task: CoreTask, rows: Sequence[CoreRow], batch: Sequence[int]
) -> list[bool]:
    encoded: list[tuple[list[int], int]] = []
    counts = []
    for index in batch:
        others = len(rows) - 1
        drawn = random.Random(1234 + index).sample(range(others), min(task.num_fewshot, others))
        shots = [rows[i + (i >= index)] for i in drawn]  # the row itself is never among its examples
        options = [_encode(tokenizer, *pair) for pair in render_row(task, rows[index], shots)]
        encoded += options
        counts.append(len(options))
    if task.kind == "language_modeling":
        return [_is_likeliest(model, ids, start) for ids, start in encoded]
    losses = mean_losses(model, encoded, batch_size=16)
    right, first = [], 0
    for index, count in zip(batch, counts, strict=True):
        own = losses[first : first + count]
        right.append(own.index(min(own)) == rows[index]["gold"])
        first += count
    return right


def _encode(tokenizer: RustBPETokenizer, context: str, continuation: str) -> tuple[list[int], int]:
    """Ids of the whole text led by <|bos|>, and where the continuation starts.

    Context and continuation are encoded as one text, since a word's first letters must not be cut from its space; the
    continuation starts where the ids begin to differ from those of the context alone.
    """
    bos = tokenizer.get_bos_token_id()
    whole, alone = [bos, *tokenizer.encode(context + continuation)], [bos, *tokenizer.encode(context.rstrip())]
    start = next((i for i, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b), min(len(whole), len(alone)))
    return whole, max(1, min(start, len(whole) - 1))


@torch.no_grad()
def _is_likeliest(model: GPT, ids: list[int], start: int) -> bool:
    limit = model.config.sequence_len + 1
    start, ids = max(1, start - max(0, len(ids) - limit)), ids[-limit:]
    hidden = model.hidden(torch.tensor([ids[:-1]], device=model.device))
    predicted = model.logits(hidden[0, start - 1 :]).argmax(-1)
    return bool((predicted.cpu() == torch.tensor(ids[start:])).all())


def _text(value: object) -> str:
    assert isinstance(value, str), f"expected a text in a CORE row, got {value!r}"
    return value


def _texts(value: object) -> list[str]:
    assert isinstance(value, list), f"expected a list in a CORE row, got {value!r}"
    return [_text(item) for item in value]
