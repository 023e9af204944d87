"""The real data sets as they lie on the hub: their rows and answers, who judges these, and files that are missing."""

import re
import shutil
from base64 import b64decode
from pathlib import Path

import pytest

import tasks.hub
from nanochat.calculator import use_calculator
from nanochat.command import UserError
from nanochat.conversation import validate
from tasks import load_task
from tasks.arc import ARC, ARCChallenge, ARCEasy
from tasks.common import Message, Part
from tasks.gsm8k import GSM8K, answer_parts, final_number
from tasks.hub import HubRows, hub_file
from tasks.humaneval import HumanEval, Program, program_text
from tasks.mmlu import MMLU
from tasks.multiple_choice import multiple_choice
from tasks.smoltalk import SmolTalk

# All of them


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (lambda: ARCEasy("train"), 2251),
        (lambda: ARCEasy("validation"), 570),
        (lambda: ARCEasy("test"), 2376),
        (lambda: ARCChallenge("train"), 1119),
        (lambda: ARCChallenge("validation"), 299),
        (lambda: ARCChallenge("test"), 1172),
        (lambda: MMLU("train"), 9533),
        (lambda: MMLU("validation"), 1531),
        (lambda: MMLU("dev"), 285),
        (lambda: MMLU("test"), 14042),
        (lambda: GSM8K("train"), 7473),
        (lambda: GSM8K("test"), 1319),
        (lambda: HumanEval("test"), 164),
        (lambda: load_task("ARC-Easy"), 2376),
        (lambda: load_task("arc-challenge", split="train"), 1119),
        (lambda: load_task("MMLU"), 14042),
        (lambda: load_task("GSM8K"), 1319),
        (lambda: load_task("HumanEval"), 164),
        (lambda: ARC("ARC-Easy", "test", start=10, stop=20, step=3), 4),
        (lambda: MMLU("test", stop=7), 7),
        (lambda: GSM8K("test", start=1300), 19),
        (lambda: HumanEval(step=100), 2),
    ],
)
def test_every_data_set_has_the_rows_that_its_readme_says(hub: Path, make, rows: int) -> None:
    task = make()
    assert len(task) == rows
    for problem in (task[0], task[rows // 2], task[-1]):
        validate(problem)
        assert problem.messages[-1].role == "assistant"
        if task.eval_type == "categorical":
            assert problem.answer in problem.choices
            assert task.evaluate(problem, problem.answer)
            assert not task.evaluate(problem, next(c for c in problem.choices if c != problem.answer))


def test_a_question_is_rendered_with_its_letters() -> None:
    problem = multiple_choice("Which is a fruit?", ["rock", "apple", "chair"], 1)
    expected = "Which is a fruit?\n\nrock\nA\napple\nB\nchair\nC\n\nAnswer with the letter below the right choice."
    assert problem.messages == [Message("user", expected), Message("assistant", "B")]
    assert problem.choices == ["A", "B", "C"]


def test_all_arc_questions_name_the_choice_that_their_key_names(hub: Path) -> None:
    import pyarrow.parquet as pq

    task = ARCChallenge("test")
    raw = pq.read_table(hub / "allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet").to_pylist()
    sizes = set()
    for problem, row in zip(task, raw, strict=True):
        right = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))[row["answerKey"]]
        assert f"\n{right.strip()}\n{problem.answer}\n" in problem.messages[0].text
        assert len(problem.choices) == len(row["choices"]["text"])
        sizes.add((len(problem.choices), row["answerKey"].isdigit()))
    assert {(4, False), (4, True), (3, False), (5, False)} <= sizes, "the odd rows are among them"


@pytest.mark.parametrize("split", ["dev", "train"])
def test_all_mmlu_questions_name_the_choice_that_their_row_names(hub: Path, split: str) -> None:
    import pyarrow.parquet as pq

    folder = {"dev": "all", "train": "auxiliary_train"}[split]
    raw = pq.read_table(hub / f"cais/mmlu/{folder}/{split}-00000-of-00001.parquet").slice(0, 285).to_pylist()
    for problem, row in zip(MMLU(split, stop=285), raw, strict=True):
        row = row.get("train", row)
        assert f"\n{row['choices'][row['answer']].strip()}\n{problem.answer}\n" in problem.messages[0].text
        assert problem.messages[0].text.startswith(row["question"].strip())
        assert problem.choices == ["A", "B", "C", "D"]


def test_the_letter_has_the_same_id_in_question_and_answer(hub: Path, shared_data: Path) -> None:
    """Checked with a large real vocabulary, which has ids for " A", "(A" and "=A" of their own."""
    import tiktoken

    lines = (shared_data / "tokenizer_reference/cl100k_base.tiktoken").read_text().split("\n")
    ranks = {b64decode(word): int(rank) for word, rank in (line.split() for line in lines if line)}
    pattern = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+"
    encoding = tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for task in (ARCEasy("test", stop=300), MMLU("test", step=40)):
        for problem in task:
            text = problem.messages[0].text
            for letter in problem.choices:
                before, _, after = text.partition(f"\n{letter}\n")
                (answer,) = encoding.encode_ordinary(letter)
                around = encoding.encode_ordinary(before + "\n"), encoding.encode_ordinary("\n" + after)
                assert encoding.encode_ordinary(text) == [*around[0], answer, *around[1]]


def test_mmlus_auxiliary_set_is_taken_out_of_its_wrapper(hub: Path) -> None:
    problem = MMLU("train")[0]
    assert problem.messages[0].text.startswith("Sir Isaac Newton determined")
    assert "\na prism\nA\na telescope\nB\n" in problem.messages[0].text
    assert problem.answer == "A"


def test_an_unknown_split_or_subset_is_told(hub: Path) -> None:
    for make in (lambda: ARCEasy("dev"), lambda: MMLU("auxiliary"), lambda: GSM8K("dev"), lambda: HumanEval("train")):
        with pytest.raises(UserError, match=r"has no split '\w+', allowed (is|are) \w+"):
            make()
    with pytest.raises(UserError, match="no subset 'ARC-Hard', allowed are ARC-Easy, ARC-Challenge"):
        ARC("ARC-Hard")  # type: ignore[arg-type]


# GSM8K


def test_marks_become_tool_calls(hub: Path) -> None:
    problem = GSM8K("train")[0]
    assert problem.messages[1].content == [
        Part("text", "Natalia sold 48/2 = "),
        Part("python", "48/2"),
        Part("python_output", "24"),
        Part("text", "24 clips in May.\nNatalia sold 48+24 = "),
        Part("python", "48+24"),
        Part("python_output", "72"),
        Part("text", "72 clips altogether in April and May.\n#### 72"),
    ]


def test_a_result_is_spelled_as_the_tool_spells_it_unless_the_data_round() -> None:
    assert answer_parts("<<4*4=16.00>>16.00") == [
        Part("python", "4*4"),
        Part("python_output", "16"),
        Part("text", "16.00"),
    ]
    assert answer_parts("<<10/3=3.33>>")[1] == Part("python_output", "3.33")
    assert answer_parts("<<1,000*2=2,000>>")[1] == Part("python_output", "2000")
    assert answer_parts("<<1/2=1/2>>")[1] == Part("python_output", "0.5")
    assert answer_parts("no marks") == [Part("text", "no marks")]


def test_nothing_of_an_answer_is_lost_and_every_call_computes(hub: Path) -> None:
    import pyarrow.parquet as pq

    raw = pq.read_table(hub / "openai/gsm8k/main/test-00000-of-00001.parquet").column("answer").to_pylist()
    for problem, answer in zip(GSM8K("test"), raw, strict=True):
        assert problem.answer == re.sub("<<.*?>>", "", answer)
        calls = [part.text for part in problem.messages[1].parts if part.type == "python"]
        assert len(calls) == answer.count("<<")
        assert all(use_calculator(call) is not None for call in calls)
        assert final_number(answer) is not None


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("#### 72", 72),
        ("So it is 5.\n####72", 72),
        ("#### 1,234.50", 1234.5),
        ("#### -3", -3),
        ("#### $1,000", 1000),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("#### .5", 0.5),
        ("#### 72.", 72),
        ("#### 7\n#### 8", 7),
        ("72", None),
        ("### 72", None),
        ("#### many", None),
        ("#### ,", None),
        ("", None),
    ],
)
def test_the_number_behind_the_four_signs_counts(completion: str, number: float | None) -> None:
    assert final_number(completion) == number


def test_gsm8k_judges_by_the_number(hub: Path) -> None:
    task = GSM8K("test")
    problem = task[0]
    assert task.evaluate(problem, problem.answer)
    assert task.evaluate(problem, "Guessed.\n#### 18.00")
    assert not task.evaluate(problem, "#### 19")
    assert not task.evaluate(problem, "18")


# HumanEval


def test_humaneval_runs_nothing_without_leave(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(code: str) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr("tasks.humaneval.execute_code", run)
    task = HumanEval()
    with pytest.raises(UserError, match="--unsafe_exec"):
        task.evaluate(task[0], task[0].answer)


@pytest.mark.parametrize("index", [0, 10, 32, 38, 50])
def test_the_reference_solution_passes_and_a_wrong_one_fails(hub: Path, index: int) -> None:
    """Some prompts (10, 32, 38, 50) define a helper before the function."""
    task = HumanEval(unsafe_exec=True)
    problem = task[index]
    assert isinstance(problem, Program)
    body = problem.answer.removeprefix("```python\n").removesuffix("\n```")[len(problem.prompt) :]
    for right in (problem.answer, f"Sure!\n{problem.answer}\nDone.", problem.prompt + body, body):
        assert task.evaluate(problem, right), right
    for wrong in ("", "    pass\n", "import os\nos._exit(0)", f"def {problem.entry_point}(*a): return None", "I can't"):
        assert not task.evaluate(problem, wrong), wrong


@pytest.mark.slow
def test_all_reference_solutions_pass(hub: Path) -> None:
    task = HumanEval(unsafe_exec=True)
    assert [i for i, problem in enumerate(task) if not task.evaluate(problem, problem.answer)] == []


def test_a_completion_that_defines_the_function_stands_behind_the_prompts_imports() -> None:
    problem = Program(
        [], prompt='import math\n\ndef f(x):\n    """doc"""\n', entry_point="f", test="def check(f): pass"
    )
    assert program_text(problem, "```\ndef f(x):\n  return 1\n```").startswith("import math\n\ndef f(x):\n  return 1\n")
    assert program_text(problem, "    return 1\n").startswith(problem.prompt + "    return 1\n")
    assert program_text(problem, "```py\ndef f(x): pass").endswith("def check(f): pass\n\ncheck(f)\n")


# SmolTalk


def test_smoltalk_reads_the_hubs_layout(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path))
    folder = tmp_path / "HuggingFaceTB/smol-smoltalk/data"
    folder.mkdir(parents=True)
    for path in (shared_data / "conversations/mix/data").iterdir():
        shutil.copy(path, folder)
    train, test = SmolTalk("train"), load_task("SmolTalk")
    assert (len(train), len(test)) == (4104 + 4105, 432)
    for problem in (train[0], train[4103], train[4104], train[-1], test[0]):
        validate(problem)
    assert train[0].messages[0].text.startswith("You are a highly skilled mecha pilot")
    assert train[4104].messages[0].text.startswith("I need you to check the weather for me in Antioch")


def test_an_interrupted_download_of_smoltalk_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path))
    fetched: list[str] = []

    def fetch(url: str, path: Path, attempts: int) -> Path:
        fetched.append(url)
        write_chats(path)
        return path

    monkeypatch.setattr(tasks.hub, "download", fetch)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    write_chats(tmp_path / "HuggingFaceTB/smol-smoltalk/data/train-00001-of-00004.parquet")
    assert len(SmolTalk("train")) == 4
    base = "https://mirror.example/datasets/HuggingFaceTB/smol-smoltalk/resolve/main/data/train-0000"
    assert fetched == [f"{base}{index}-of-00004.parquet" for index in (0, 2, 3)]


def write_chats(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pyarrow.table({"messages": [[{"role": "user", "content": "Hi"}]]}), path)


# The hub


def test_a_missing_data_set_is_told_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE forbids.*set NANOCHAT_HUB_DIR"):
        GSM8K("test")

    def fail(url: str, path: Path, attempts: int) -> Path:
        raise UserError(f"could not download {url}")

    monkeypatch.setattr(tasks.hub, "download", fail)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(UserError, match=r"test-00000-of-00001.parquet is missing and fetching it failed \(could not"):
        GSM8K("test")
    assert not (tmp_path / "hub").exists()


def test_a_damaged_or_foreign_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path))
    path = tmp_path / "openai/gsm8k/main/test-00000-of-00001.parquet"
    write_chats(path)
    assert hub_file("openai/gsm8k", "main/test-00000-of-00001.parquet") == path
    with pytest.raises(UserError, match="no column 'question', only messages"):
        GSM8K("test")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"no readable parquet file .* delete it"):
        GSM8K("test")


def test_rows_are_counted_over_all_files_and_read_across_them(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as pq

    files = [tmp_path / f"{i}.parquet" for i in range(3)]
    for i, path in enumerate(files):
        pq.write_table(pyarrow.table({"x": range(10 * i, 10 * i + 10), "y": ["-"] * 10}), path, row_group_size=3)
    rows = HubRows(files, ["x"])
    assert list(rows) == [{"x": i} for i in range(30)]
    with pytest.raises(IndexError, match="row 30 of 30"):
        rows[30]
