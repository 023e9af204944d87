"""The lessons: every start fails its check, every solution passes, every notebook runs; the driver keeps its word."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lessons import __main__ as driver
from lessons import checking, learner
from lessons.crates import Crate, CrateError
from lessons.learner import SHELF, Lesson
from nanochat import command
from nanochat.command import UserError

ROOT = SHELF.parent
LESSONS = learner.lessons()
NAMES = [lesson.folder.name for lesson in LESSONS]
MOST_LINES_OF_CODE = 150
MOST_BYTES_OF_A_NOTEBOOK = 300_000

every_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=NAMES)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A learner's folder that is not there yet."""
    folder = tmp_path / "mine"
    monkeypatch.setenv("NANOCHAT_LESSON_DIR", str(folder))
    return folder


@pytest.fixture
def shared_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """One target folder for all tests of crates, so that a library is built once."""
    monkeypatch.setenv("CARGO_TARGET_DIR", os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target" / "lessons")))


def drive(*arguments: str) -> None:
    command.run(driver.main, driver.Config, arguments)


# --- the lessons themselves -------------------------------------------------------------------------------------------


def checked(lesson: Lesson, work: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The driver's check, in a process of its own, of a start or a solution as if a learner had written it."""
    driver.copied(lesson, work, folder)
    return subprocess.run(
        [sys.executable, "-m", "lessons", "check", str(lesson.number), "--dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NANOCHAT_BASE_DIR": str(folder.parent / "base")},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.slow
@every_lesson
def test_the_solution_passes_its_check(lesson: Lesson, own: Path, shared_target: None) -> None:
    done = checked(lesson, lesson.solution, own)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@every_lesson
def test_the_start_fails_its_check_in_words(lesson: Lesson, own: Path, shared_target: None) -> None:
    done = checked(lesson, lesson.start, own)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert f"python -m lessons hint {lesson.number}" in done.stdout
    assert re.search(r"^  (not yet|RED) ", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.slow
@every_lesson
def test_the_notebook_runs(lesson: Lesson, own: Path, shared_target: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_LESSON_QUICK", "1")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(own.parent / "base"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(lesson.folder / "lesson.ipynb", as_version=4)
    resources = {"metadata": {"path": str(lesson.folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()


@every_lesson
def test_a_lesson_is_whole(lesson: Lesson) -> None:
    for name in ("lesson.ipynb", "check.py", "hints.md", "journal.md"):
        assert (lesson.folder / name).is_file(), name
    assert lesson.start.exists()
    assert lesson.solution.exists()
    assert (lesson.folder / "hints.md").read_text(encoding="utf-8").count("\n---\n") >= 1


@every_lesson
def test_a_solution_is_short(lesson: Lesson) -> None:
    path = lesson.solution / "src" / "lib.rs" if lesson.is_crate else lesson.solution
    text = path.read_text(encoding="utf-8")
    lines = dict(enumerate(text.splitlines(), start=1))
    if not lesson.is_crate:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
                lines = {n: line for n, line in lines.items() if not node.lineno <= n <= (node.end_lineno or 0)}
    code = [line for line in lines.values() if line.strip() and not line.strip().startswith(("#", "//"))]
    assert 5 < len(code) <= MOST_LINES_OF_CODE


@every_lesson
def test_a_notebook_has_its_outputs_and_nothing_of_the_machine(lesson: Lesson) -> None:
    path = lesson.folder / "lesson.ipynb"
    assert path.stat().st_size < MOST_BYTES_OF_A_NOTEBOOK
    text = path.read_text(encoding="utf-8")
    for trace in (str(ROOT), str(Path.home()) + "/", "/tmp/", "/home/", "/Users/", "Warning:", "Traceback"):
        assert trace not in text, trace
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "a cell was not run"
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]), "no picture"
    assert not [output for cell in cells for output in cell["outputs"] if output.get("name") == "stderr"]
    assert "<details><summary>" in text, "no question with a folded answer"


@every_lesson
def test_a_start_has_the_signatures_of_its_solution(lesson: Lesson) -> None:
    if lesson.is_crate:
        start, solution = (
            (path / "src" / "lib.rs").read_text(encoding="utf-8") for path in (lesson.start, lesson.solution)
        )
        signature = re.compile(r"pub fn \w+[^{]*")
        found, wanted = (set(map(str.strip, signature.findall(text))) for text in (start, solution))
    else:
        found, wanted = (signatures(path) for path in (lesson.start, lesson.solution))
    assert found <= wanted


def signatures(path: Path) -> set[str]:
    """Names, arguments and results of a file's public functions and methods."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {f"{one.name}({ast.unparse(one.args)}) -> {one.returns and ast.unparse(one.returns)}" for one in functions}


# --- the index --------------------------------------------------------------------------------------------------------


def rows() -> dict[int, list[str]]:
    """The index's row of each lesson: its cells."""
    text = (SHELF / "README.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d+ \| \[", line)]
    return {int(row[0]): row for row in cells}


def test_the_index_has_every_lesson_in_order() -> None:
    assert list(rows()) == [lesson.number for lesson in LESSONS]
    for lesson in LESSONS:
        assert f"]({lesson.folder.name}/lesson.ipynb)" in rows()[lesson.number][1]


def test_a_lesson_needs_only_earlier_ones() -> None:
    for number, row in rows().items():
        assert all(int(needed) < number for needed in re.findall(r"\d+", row[3])), row


@every_lesson
def test_the_product_files_of_a_lesson_are_there_and_link_back(lesson: Lesson) -> None:
    for target in re.findall(r"\]\(\.\./([^)]+)\)", rows()[lesson.number][4]):
        text = (ROOT / target).read_text(encoding="utf-8")
        assert re.search(rf"Lessons?: .*\b{lesson.folder.name}\b", text), f"{target} does not name {lesson.folder.name}"


def test_every_link_back_leads_to_a_lesson() -> None:
    places = [
        path for folder in ("nanochat", "scripts", "tasks", "rustbpe/src") for path in (ROOT / folder).rglob("*.*")
    ]
    texts = [path.read_text(encoding="utf-8") for path in places if path.suffix in (".py", ".rs")]
    named = {
        name for text in texts for line in re.findall(r"Lessons?: (.*)", text) for name in re.findall(r"\d\d_\w+", line)
    }
    assert named
    assert named <= set(NAMES)


# --- the driver -------------------------------------------------------------------------------------------------------


def test_start_copies_and_never_writes_over_work(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive("start", "1")
    work = own / "01_toy_bpe.py"
    assert work.read_text(encoding="utf-8") == learner.find(1).start.read_text(encoding="utf-8")
    assert "python -m lessons check 1" in capsys.readouterr().out
    work.write_text("mine = 1\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        drive("start", "1")
    assert ended.value.code == 2
    assert "reset 1" in capsys.readouterr().err
    assert work.read_text(encoding="utf-8") == "mine = 1\n"


def test_reset_keeps_every_older_work(own: Path) -> None:
    for n in range(3):
        if n == 0:
            drive("start", "1")
        else:
            drive("reset", "1")
        (own / "01_toy_bpe.py").write_text(f"mine = {n}\n", encoding="utf-8")
    drive("reset", "1")
    assert [(own / f"01_toy_bpe.{n}.py").read_text(encoding="utf-8") for n in (1, 2, 3)] == [
        f"mine = {n}\n" for n in range(3)
    ]
    assert "NotImplementedError" in (own / "01_toy_bpe.py").read_text(encoding="utf-8")


def test_hints_come_one_at_a_time_and_then_all(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hints = (learner.find(1).folder / "hints.md").read_text(encoding="utf-8").split("\n---\n")
    for n, hint in enumerate(hints):
        drive("hint", "1")
        shown = capsys.readouterr().out
        assert hint.strip() in shown
        assert f"hint {n + 1} of {len(hints)}" in shown
        assert n + 1 == len(hints) or hints[n + 1].strip() not in shown
    drive("hint", "1")
    shown = capsys.readouterr().out
    assert all(hint.strip() in shown for hint in hints)
    assert "diff 1" in shown


def test_a_hint_can_be_asked_for_by_function(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive("hint", "1", "train")
    first = capsys.readouterr().out
    assert first.startswith("`train`")
    drive("hint", "1", "train")
    second = capsys.readouterr().out
    assert "train" in second
    assert second != first
    drive("hint", "1")
    assert "hint 1 of" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        drive("hint", "1", "nothing_of_the_kind")
    assert "no hint of lesson 1 names" in capsys.readouterr().err


def test_diff_shows_both(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver.copied(learner.find(1), learner.find(1).solution, own)
    drive("diff", "1")
    assert "to the letter" in capsys.readouterr().out
    (own / "01_toy_bpe.py").write_text("mine = 1\n", encoding="utf-8")
    drive("diff", "1")
    shown = capsys.readouterr().out
    assert "-mine = 1" in shown
    assert "+def count_pairs" in shown


def test_list_says_what_is_started(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive("start", "1")
    capsys.readouterr()
    drive("list")
    lines = capsys.readouterr().out.splitlines()
    assert [int(line[:2]) for line in lines[:-1]] == [lesson.number for lesson in LESSONS]
    assert [line.split()[0] for line in lines[:-1] if "started" in line] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["check"], "which lesson"),
        (["check", "99"], "no lesson 99"),
        (["check", "1"], "python -m lessons start 1"),
        (["diff", "1"], "python -m lessons start 1"),
        (["reset", "1"], "python -m lessons start 1"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    own: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        drive(*arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_load_takes_the_learners_own_file_else_the_solution(own: Path) -> None:
    assert learner.load(1).merge([1, 2], (1, 2), 256) == [256]
    own.mkdir()
    (own / "01_toy_bpe.py").write_text("def merge(*_):\n    return 'mine'\n", encoding="utf-8")
    assert learner.load(1).merge([1, 2], (1, 2), 256) == "mine"
    (own / "01_toy_bpe.py").write_text("def merge(*_):\n    return 'changed'\n", encoding="utf-8")
    assert learner.load(1).merge([1, 2], (1, 2), 256) == "changed"


def test_a_crate_starts_with_the_learners_crates_where_there_are_some(own: Path) -> None:
    drive("start", "3")
    drive("start", "5")
    manifest = (own / "05_rust_from_python" / "Cargo.toml").read_text(encoding="utf-8")
    assert f'"{(own / "03_bpe_in_rust").as_posix()}"' in manifest
    assert f'"{(SHELF / "04_parallel" / "solution").as_posix()}"' in manifest


@pytest.mark.slow
def test_a_learners_crate_and_the_solution_are_told_apart(own: Path, shared_target: None) -> None:
    solution = learner.crate(2)
    assert solution.run("greet", "Ada") == "Hello, Ada!\n"
    driver.copied(learner.find(2), learner.find(2).start, own)
    mine = learner.crate(2)
    with pytest.raises(NotImplementedError, match="greet"):
        mine.run("greet", "Ada")
    assert Crate(solution.folder, solution.lesson).run("greet", "Ada") == "Hello, Ada!\n"
    (mine.folder / "src" / "lib.rs").write_text("pub fn greet(", encoding="utf-8")
    with pytest.raises(CrateError, match="does not compile"):
        learner.crate(2).run("greet", "Ada")


# --- what a check says ------------------------------------------------------------------------------------------------


def test_a_check_tells_sentences_and_the_first_that_is_wrong(own: Path, tmp_path: Path) -> None:
    work = own / "01_toy_bpe.py"
    own.mkdir()
    work.write_text("def f(n):\n    raise NotImplementedError('f')\n\ndef g(n):\n    return 1 // n\n", encoding="utf-8")
    folder = tmp_path / "01_toy_bpe"
    folder.mkdir()
    (folder / "check.py").write_text(
        "import pytest\n"
        "from lessons.learner import load\n"
        "mine = load(1)\n"
        "def test_one_is_one():\n    assert mine.g(1) == 1\n"
        "@pytest.mark.parametrize('n', [1, 0])\n"
        "def test_it_divides(n):\n    assert mine.g(n) == 1\n"
        "def test_two_is_two():\n    found = mine.g(1)\n    assert found == 2, f'two words, {found}'\n"
        "def test_f_is_there():\n    mine.f(1)\n",
        encoding="utf-8",
    )
    program = (
        "import sys; from pathlib import Path; from lessons import checking; from lessons.learner import Lesson;"
        "outcome = checking.check(Lesson(Path(sys.argv[1])), Path(sys.argv[2])); print('\\n'.join(outcome.lines()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(own)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout.splitlines() == [
        "  green    one is one",
        "  RED      it divides",
        "           ZeroDivisionError: integer division or modulo by zero",
        "           in g, 01_toy_bpe.py line 5: return 1 // n",
        "  RED      two is two",
        "  not yet  f is there",
    ]


def test_an_outcome_without_tests_is_not_passed(tmp_path: Path) -> None:
    assert not checking.Outcome(tmp_path).passed


def test_there_is_no_lesson_twice() -> None:
    assert len({lesson.number for lesson in LESSONS}) == len(LESSONS)
    with pytest.raises(UserError, match="no lesson 77"):
        learner.find(77)
