"""Tasks: views, mixtures and sequences; own files and own classes."""

import gzip
import json
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks
from nanochat.command import UserError
from tasks import load_mixture, load_task
from tasks.common import Conversation, Message, Part, Task, TaskMixture, TaskSequence
from tasks.customjson import CustomJSON
from tasks.humaneval import HumanEval


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
