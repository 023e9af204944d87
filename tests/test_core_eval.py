"""CORE: its three kinds on rows whose answers are known, its bundle, and the published centred values."""

import csv
import gzip
import json
import random
import re
from pathlib import Path

import pytest
import torch
from tiny import CPU, tiny_model, tiny_tokenizer
from two_ranks import CORE_ROWS, CORE_TASK, results

from nanochat.command import UserError
from nanochat.core_eval import (
    CoreResult,
    CoreTask,
    Kind,
    centered,
    core_metric,
    evaluate_core_task,
    read_bundle,
    read_rows,
    render_row,
)
from nanochat.gpt_config import GPTConfig
from nanochat.report import wilson

BOS = 0


class Characters:
    """A tokenizer of one id per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def get_bos_token_id(self) -> int:
        return BOS


class Oracle:
    """In a model's place: knows some statements by heart and nothing else.

    After "\\n\\n" a new text begins. `asked` keeps what it was scored on or had to continue.
    """

    device = torch.device("cpu")

    def __init__(self, *statements: str, sequence_len: int = 500):
        self.statements = statements
        self.config = GPTConfig(sequence_len, 256, 1, 1, 1, 2)
        self.asked: list[str] = []

    def next(self, ids: list[int]) -> int:
        """What comes after the ids, 0 where no statement begins so."""
        text = "".join(chr(i) for i in ids if i != BOS).split("\n\n")[-1]
        known = [s for s in self.statements if s.startswith(text) and len(s) > len(text)]
        return ord(known[0][len(text)]) if known else 0

    def knows(self, ids: list[int], target: int) -> bool:
        text = "".join(chr(i) for i in ids if i != BOS).split("\n\n")[-1] + chr(target)
        return any(s.startswith(text) for s in self.statements)

    def token_losses(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = torch.zeros(targets.shape)
        for row, (ids, wanted) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True)):
            self.asked.append("".join(chr(t) for t in wanted if t != -1))
            for position, target in enumerate(wanted):
                if target != -1:
                    losses[row, position] = 0.1 if self.knows(ids[: position + 1], target) else 5.0
        return losses

    def hidden(self, idx: torch.Tensor) -> torch.Tensor:
        assert idx.size(1) <= self.config.sequence_len
        [ids] = idx.tolist()
        return torch.tensor([[[float(self.next(ids[: end + 1]))] for end in range(len(ids))]])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.asked.append("?" * hidden.size(0))
        return torch.nn.functional.one_hot(hidden[:, 0].long(), 256).float()


def task(kind: Kind, delimiter: str = " ", shots: int = 0, baseline: float = 0.0) -> CoreTask:
    return CoreTask("mine", kind, Path(), shots, delimiter, baseline)


def evaluate(oracle: Oracle, of: CoreTask, rows: list[dict[str, object]], **given: int) -> CoreResult:
    return evaluate_core_task(oracle, Characters(), of, rows, CPU, **given)  # type: ignore[arg-type]


# --- the three kinds ----------------------------------------------------------------------------------------------

CHOICES: list[dict[str, object]] = [
    {"query": "The sky is", "choices": ["red", "blue"], "gold": 1},
    {"query": "Grass is", "choices": ["green", "a very long wrong answer", "red"], "gold": 0},
    {"query": "Snow is", "choices": ["black", "white"], "gold": 0},  # the model knows better than the key
    {"query": "Coal is", "choices": ["white", "black"], "gold": 1},
]
COLOURS = ("The sky is blue", "Grass is green", "Snow is white", "Coal is black")


def test_multiple_choice_takes_the_choice_with_the_lowest_mean_loss() -> None:
    result = evaluate(Oracle(*COLOURS), task("multiple_choice", baseline=0.5), CHOICES)
    assert (result.accuracy, result.count, result.centered) == (0.75, 4, 0.5)
    assert (result.low, result.high) == wilson(3, 4)


def test_schema_takes_the_context_that_makes_the_continuation_likeliest() -> None:
    rows: list[dict[str, object]] = [
        {
            "context_options": ["The cat sat and the cat", "The cat sat and the dog"],
            "continuation": "purred",
            "gold": 0,
        },
        {"context_options": ["A bird", "A stone"], "continuation": "flew", "gold": 1},
    ]
    oracle = Oracle("The cat sat and the cat purred", "A bird flew")
    assert evaluate(oracle, task("schema"), rows).accuracy == 0.5
    assert oracle.asked == [" flew", " flew", " purred", " purred"]  # shortest first


def test_language_modeling_wants_every_token_of_the_continuation() -> None:
    rows: list[dict[str, object]] = [
        {"context": "One two three", "continuation": "four five"},
        {"context": "One two three  ", "continuation": "four six"},
        {"context": "Nobody knows", "continuation": "this"},
    ]
    result = evaluate(Oracle("One two three four five"), task("language_modeling"), rows)
    assert (result.accuracy, result.centered) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


@pytest.mark.parametrize("kind", ["multiple_choice", "schema", "language_modeling"])
def test_the_delimiter_is_given_to_the_model_and_not_asked_of_it(kind: Kind) -> None:
    """It used to count as part of the continuation, so that jeopardy's "\\nAnswer:" had to be guessed too."""
    row: dict[str, object] = {
        "query": "Q", "choices": ["yes", "no"], "context_options": ["Q", "R"], "context": "Q", "continuation": "yes",
        "gold": 0,
    }  # fmt: skip
    oracle = Oracle("Q\nAnswer: yes")
    assert evaluate(oracle, task(kind, "\nAnswer: "), [row]).accuracy == 1.0
    assert {len(asked) for asked in oracle.asked} <= {len(" yes"), len(" no")}


def test_a_context_that_does_not_fit_is_cropped_on_the_left() -> None:
    filler = "x" * 90 + "\n\n"
    for kind in ("multiple_choice", "language_modeling"):
        row = {"query": filler + "The sky is", "context": filler + "The sky is", "choices": ["blue", "red"], "gold": 0}
        row["continuation"] = "blue"
        oracle = Oracle("The sky is blue", sequence_len=40)
        assert evaluate(oracle, task(kind), [row]).accuracy == 1.0  # type: ignore[arg-type]
        wrong = {**row, "continuation": "grey", "gold": 1}
        assert evaluate(oracle, task(kind), [wrong]).accuracy == 0.0  # type: ignore[arg-type]


# --- examples in the context --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("multiple_choice", [("b: 2\n\nc: 1\n\na: ", "1"), ("b: 2\n\nc: 1\n\na: ", "2")]),
        ("schema", [("b1: z\n\nc0: z\n\na0: ", "z"), ("b1: z\n\nc0: z\n\na1: ", "z")]),
        ("language_modeling", [("b: z\n\nc: z\n\na: ", "z")]),
    ],
)
def test_examples_stand_solved_in_front_of_the_row(kind: Kind, expected: list[tuple[str, str]]) -> None:
    rows: list[dict[str, object]] = [
        {"query": n, "choices": ["1", "2"], "gold": gold, "context_options": [f"{n}0", f"{n}1"], "context": f" {n} ",
         "continuation": "z"}
        for n, gold in (("a", 0), ("b", 1), ("c", 0))
    ]  # fmt: skip
    if kind == "language_modeling":  # has no key
        rows = [{"context": row["context"], "continuation": row["continuation"]} for row in rows]
    assert render_row(task(kind, ": "), rows[0], rows[1:]) == expected


def test_examples_are_drawn_from_the_other_rows_the_same_ones_every_time() -> None:
    rows: list[dict[str, object]] = [{"context": f"<{n}>", "continuation": "."} for n in range(30)]
    contexts: dict[int, list[int]] = {}

    class Listening(Oracle):
        def hidden(self, idx: torch.Tensor) -> torch.Tensor:
            *examples, own = map(int, re.findall(r"<(\d+)>", "".join(map(chr, idx[0].tolist()))))
            contexts[own] = examples
            return super().hidden(idx)

    for _ in range(2):
        contexts.clear()
        evaluate(Listening(), task("language_modeling", shots=5), rows)
        for number in range(30):
            others = [other for other in range(30) if other != number]
            assert contexts[number] == random.Random(1234 + number).sample(others, 5)
    evaluate(Listening(), task("language_modeling", shots=10), rows[:3])
    assert {own: sorted(examples) for own, examples in contexts.items() if own < 3} == {0: [1, 2], 1: [0, 2], 2: [0, 1]}


def test_the_first_rows_of_a_fixed_shuffled_order_are_taken() -> None:
    rows: list[dict[str, object]] = [{"context": f"<{n}>", "continuation": "!"} for n in range(40)]
    order = list(range(40))
    random.Random(1337).shuffle(order)
    told: list[int] = []
    oracle = Oracle(*(f"<{n}> !" for n in order[:20]))
    result = evaluate_core_task(oracle, Characters(), task("language_modeling"), rows, CPU, 20, told.append)  # type: ignore[arg-type]
    assert (result.accuracy, result.count, told) == (1.0, 20, [16, 4])
    assert evaluate(oracle, task("language_modeling"), rows).accuracy == 0.5


def test_where_there_is_no_row_it_is_told() -> None:
    with pytest.raises(UserError, match="mine has no row to evaluate: 0 are there, at most None asked for"):
        evaluate(Oracle(), task("schema"), [])
    with pytest.raises(UserError, match="4 are there, at most 0 asked for"):
        evaluate(Oracle(), task("multiple_choice"), CHOICES, max_rows=0)


def test_two_ranks_share_the_rows_and_agree() -> None:
    expected = evaluate_core_task(tiny_model(n_layer=1), tiny_tokenizer(), CORE_TASK, CORE_ROWS, CPU)
    assert [found["core"] for found in results()] == [expected, expected]
    assert expected.count == 5


# --- the bundle ---------------------------------------------------------------------------------------------------


def test_the_published_centred_values_and_core_follow_from_the_accuracies(shared_data: Path) -> None:
    baselines = {each.label: each.baseline for each in read_bundle(shared_data / "core")}
    with (shared_data / "core" / "core_reference_gpt2.csv").open(encoding="utf-8", newline="") as file:
        published = list(csv.DictReader(file))
    models = {row["model"] for row in published}
    assert len(models) == 4
    for model in models:
        found = []
        core = float("nan")
        for row in (row for row in published if row["model"] == model):
            if row["task"] not in baselines:
                core = float(row["centered"])
                continue
            value = centered(float(row["accuracy"]), baselines[row["task"]])
            assert value == pytest.approx(float(row["centered"]), abs=2e-5), row
            found.append(CoreResult(float(row["accuracy"]), 1, 0.0, 1.0, value))
        assert len(found) == 22
        assert core_metric(found) == pytest.approx(core, abs=2e-5)


def test_all_22_tasks_of_the_bundle_are_read_and_scored(shared_data: Path) -> None:
    model = tiny_model(sequence_len=64, n_layer=1)
    tasks = read_bundle(shared_data / "core")
    assert len(tasks) == 22
    kinds = {"multiple_choice": 0, "schema": 0, "language_modeling": 0}
    rows: dict[Path, list] = {}  # type: ignore[type-arg]
    for each in tasks:
        kinds[each.kind] += 1
        if each.path not in rows:
            rows[each.path] = list(read_rows(each.path))
        result = evaluate_core_task(model, tiny_tokenizer(), each, rows[each.path], CPU, max_rows=2)
        assert result.count == 2
        assert 0 <= result.accuracy <= 1
        assert result.centered == pytest.approx((result.accuracy - each.baseline) / (1 - each.baseline))
    assert kinds == {"multiple_choice": 11, "schema": 2, "language_modeling": 9}
    jeopardy = tasks[1]
    assert (jeopardy.label, jeopardy.num_fewshot, jeopardy.delimiter) == ("jeopardy", 10, "\nAnswer: ")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    listing = "icl_tasks:\n- {label: mine, dataset_uri: a/mine.jsonl, num_fewshot: [3], icl_task_type: schema}\n"
    (tmp_path / "core.yaml").write_text(listing, encoding="utf-8")
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nmine,25\n", encoding="utf-8")
    return tmp_path


def test_a_bundles_task_has_its_baseline_as_a_share_and_a_blank_as_the_delimiter(bundle: Path) -> None:
    assert read_bundle(bundle) == [CoreTask("mine", "schema", bundle / "eval_data" / "a" / "mine.jsonl", 3, " ", 0.25)]


def test_what_a_bundle_lacks_is_named(bundle: Path) -> None:
    [found] = read_bundle(bundle)
    with pytest.raises(UserError, match=r"the CORE bundle lacks .*mine\.jsonl$"):
        read_rows(found.path)
    (bundle / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nother,25\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"eval_meta_data\.csv lacks the random baseline of 'mine'"):
        read_bundle(bundle)
    for name in ("eval_meta_data.csv", "core.yaml"):
        (bundle / name).unlink()
        with pytest.raises(UserError, match=f"the CORE bundle in .* lacks {name}"):
            read_bundle(bundle)


def test_rows_are_read_plain_and_packed(tmp_path: Path) -> None:
    rows = [{"context": "ä", "continuation": "ö"}, {"context": "1", "continuation": "2"}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    (tmp_path / "plain.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    assert read_rows(tmp_path / "plain.jsonl") == read_rows(tmp_path / "packed.jsonl") == rows


def test_the_continuation_starts_at_a_tokens_border_with_its_blank() -> None:
    """As the model saw it in training: a word's first token carries the blank before it."""
    tokenizer = tiny_tokenizer()
    scored: list[str] = []

    class Listening(Oracle):
        def token_losses(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            scored.extend(tokenizer.decode([t for t in row if t != -1]) for row in targets.tolist())
            assert {row[0] for row in inputs.tolist()} == {tokenizer.get_bos_token_id()}
            return torch.zeros(targets.shape)

    row = {"query": "The capital of France", "choices": ["is Paris", "was", "? "], "gold": 0}
    evaluate_core_task(Listening(), tokenizer, task("multiple_choice"), [row], CPU)  # type: ignore[arg-type]
    assert sorted(scored) == [" ? ", " is Paris", " was"]
