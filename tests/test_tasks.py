"""Tasks: views, mixtures and sequences; every real data set as it lies on the hub; own files and own classes."""

import gzip
import json
import re
import shutil
import sys
import types
from base64 import b64decode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks
import tasks.hub
from nanochat.calculator import use_calculator
from nanochat.command import UserError
from nanochat.conversation import validate
from tasks import load_mixture, load_task
from tasks.arc import ARC, ARCChallenge, ARCEasy
from tasks.common import Conversation, Message, Part, Task, TaskMixture, TaskSequence
from tasks.customjson import CustomJSON
from tasks.gsm8k import GSM8K, answer_parts, final_number
from tasks.hub import HubRows, hub_file
from tasks.humaneval import HumanEval, Program, program_text
from tasks.mmlu import MMLU
from tasks.multiple_choice import multiple_choice
from tasks.smoltalk import SmolTalk


@pytest.fixture
def hub(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real data sets, and no way to anywhere else."""
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(shared_data / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return shared_data / "hub"


class Numbers(Task):
    """Problem i asks for i."""

    def __init__(self, count: int, start: int = 0, stop: int | None = None, step: int = 1, name: str = ""):
        super().__init__(start, stop, step)
        self.count, self.name = count, name

    def num_examples(self) -> int:
        return self.count

    def get_example(self, index: int) -> Conversation:
        assert 0 <= index < self.count
        return Conversation([Message("user", "number?"), Message("assistant", f"{self.name}{index}")])


def answers(task: Task) -> list[str]:
    return [problem.answer for problem in task]


# Views, mixtures, sequences


@given(st.integers(0, 20), st.integers(0, 25), st.none() | st.integers(0, 25), st.integers(1, 7))
def test_a_view_is_what_a_slice_of_the_list_is(count: int, start: int, stop: int | None, step: int) -> None:
    if stop is not None and stop < start:
        with pytest.raises(ValueError, match="a view needs"):
            Numbers(count, start, stop, step)
        return
    view = Numbers(count, start, stop, step)
    expected = [str(i) for i in range(count)][start:stop:step]
    assert answers(view) == expected
    assert len(view) == len(expected)
    if expected:
        assert view[-1].answer == expected[-1]
    with pytest.raises(IndexError):
        view[len(expected)]


def test_a_mixture_has_every_problem_once_per_mention_in_an_order_fixed_by_the_seed() -> None:
    parts = [Numbers(30, name="a"), Numbers(10, step=2, name="b"), Numbers(10, step=2, name="b")]
    mixture = TaskMixture(parts, seed=1)
    assert len(mixture) == 40
    assert sorted(answers(mixture)) == sorted(answers(parts[0]) + 2 * answers(parts[1]))
    assert answers(mixture) == answers(TaskMixture(parts, seed=1))
    assert answers(mixture) != answers(TaskMixture(parts, seed=2))
    beginning = "".join(answer[0] for answer in answers(mixture)[:20])
    assert {"a", "b"} == set(beginning), "tasks are mixed from the beginning on"


def test_a_sequence_is_one_task_after_the_other() -> None:
    sequence = TaskSequence([Numbers(3, name="a"), Numbers(0), Numbers(2, name="b")])
    assert answers(sequence) == ["a0", "a1", "a2", "b0", "b1"]
    assert len(sequence) == 5


# A user's own class


class Echo(Task):
    """Exactly what the README tells people to write: the methods, and no call of super().__init__."""

    def __init__(self) -> None:
        self.words = ["red", "green"]

    @property
    def eval_type(self):
        return "generative"

    def num_examples(self):
        return len(self.words)

    def get_example(self, index):
        word = self.words[index]
        return Conversation([Message(role="user", content=f"Say {word}"), Message(role="assistant", content=word)])

    def evaluate(self, problem, completion):
        return completion.strip() == problem.answer.strip()


def test_a_users_class_works_after_one_line_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("tasks.mytask")
    module.MyTask = Echo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tasks.mytask", module)
    monkeypatch.setitem(tasks.REGISTRY, "MyTask", "tasks.mytask:MyTask")
    task = load_task("mytask")
    assert isinstance(task, Echo)
    assert len(task) == 2
    assert [task.evaluate(problem, " green\n") for problem in task] == [False, True]
    assert task.reward(task[0], "red") == 1.0
    assert len(TaskMixture([task, task])) == 4
    assert answers(TaskSequence([task, Numbers(1)])) == ["red", "green", "0"]


def test_an_unknown_task_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no task is called 'ARC'; known are ARC-Easy, ARC-Challenge, MMLU"):
        load_task("ARC")


def test_only_a_task_that_takes_it_is_given_leave_to_run_programs(hub: Path) -> None:
    allowed, refused = load_task("HumanEval", unsafe_exec=True), load_task("HumanEval")
    assert isinstance(allowed, HumanEval)
    assert isinstance(refused, HumanEval)
    assert (allowed.unsafe_exec, refused.unsafe_exec) == (True, False)
    assert len(load_task("GSM8K", unsafe_exec=True)) == 1319


def test_a_mixture_is_told_by_names_counts_and_files(hub: Path, shared_data: Path) -> None:
    chats = shared_data / "conversations/instructions_small.jsonl.gz"
    mixture = load_mixture(["GSM8K:100", "arc-easy"], "train", [str(chats)])
    assert len(mixture) == 100 + 2251 + 1100
    assert len(load_mixture(["GSM8K:9999999"], "train")) == 7473
    for spec in ("GSM8K:", "GSM8K:0", "GSM8K:-1", "GSM8K:many"):
        with pytest.raises(UserError, match="write GSM8K:1000, or GSM8K"):
            load_mixture([spec], "train")
    with pytest.raises(UserError, match="no conversation in an empty list of tasks"):
        load_mixture([], "train")


# The real data sets


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


# CustomJSON

HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_customjson_reads_both_forms_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    tool = [{"role": "system", "content": "s"}, HELLO[0], {"role": "assistant", "content": parts}]
    lines = [json.dumps({"messages": HELLO}), "", json.dumps(HELLO), json.dumps({"messages": tool, "id": 7})]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    task = CustomJSON(path)
    assert len(task) == 3
    assert task[0] == task[1] == Conversation([Message("user", "Hi"), Message("assistant", "Hello")])
    assert task[2].messages[2].content == [Part("python", "1+1"), Part("python_output", "2")]
    assert task.evaluate(task[0], " Hello ")
    assert answers(CustomJSON(str(path), start=1, stop=2)) == ["Hello"]


def test_customjson_reads_gzip_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(gzip.compress(json.dumps(HELLO).encode()))
    assert answers(CustomJSON(path)) == ["Hello"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [("identity_bare_lists", 500), ("instructions_small", 1100), ("topical_chat", 1617), ("dolly_hhrlhf_small", 1000)],
)
def test_customjson_reads_real_chats(shared_data: Path, name: str, rows: int) -> None:
    task = CustomJSON(shared_data / f"conversations/{name}.jsonl.gz")
    assert len(task) == rows
    assert all(problem.answer for problem in task)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"chats.jsonl line 2: not JSON .*; expected one conversation per line"),
        (b"hello", r"line 2: not JSON \(Expecting value at column 1\)"),
        (b'"hello"', "line 2: expected"),
        (b"3", "line 2: expected"),
        (b"null", "line 2: expected"),
        (b"[]", "line 2: a conversation needs at least one message"),
        (b'{"text": "x"}', "line 2: expected"),
        (b'{"messages": "x"}', "line 2: expected"),
        (b'[{"role": "user"}]', "line 2, message 1: expected"),
        (b'[{"role": "bot", "content": "x"}]', "line 2, message 1: role is 'bot', allowed are system, user, assistant"),
        (b'[{"role": "assistant", "content": "x"}]', "line 2, message 1: role is 'assistant', expected 'user'"),
        (b'[{"role": "user", "content": null}]', "line 2, message 1: content must be"),
        (b'[{"role": "user", "content": [{"type": "text", "text": "x"}]}]', "line 2, message 1: only the assistant"),
        (b"\xff\xfe[", "line 2: not UTF-8"),
        (b"[" * 100_000, "line 2: (nested too deeply|not JSON)"),
    ],
)
def test_a_malformed_line_is_told_with_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(json.dumps(HELLO).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=message) as raised:
        CustomJSON(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(path))


def test_a_file_without_conversations_is_told(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    with pytest.raises(UserError, match=r"chats.jsonl does not exist; expected"):
        CustomJSON(path)
    with pytest.raises(UserError, match="is a folder"):
        CustomJSON(tmp_path)
    for content in (b"", b"\n \n", b"\xef\xbb\xbf\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"chats.jsonl is empty; expected"):
            CustomJSON(path)
    path.write_bytes(gzip.compress(json.dumps(HELLO).encode())[:-9])
    with pytest.raises(UserError, match="gzip data are damaged"):
        CustomJSON(path)
