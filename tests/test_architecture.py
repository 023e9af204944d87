"""The house holds: floors, doors, the cellar, short files, and modules that do nothing when imported.

The plan is read from the docstring of `nanochat/__init__.py`.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import nanochat

ROOT = Path(__file__).parent.parent
MOST_LINES = 400
TASKS_SEE_UP_TO = 1
TORCH_ENTERS_AT = 2

Report = dict[str, object]


def floors() -> dict[int, list[str]]:
    """Every floor's rooms from left to right; an indented line goes on with the floor above it."""
    found = re.findall(r"^(\d) \w+ +((?:.+|\n +)+)", nanochat.__doc__ or "", re.MULTILINE)
    return {int(floor): names.split() for floor, names in found}


def plan() -> dict[str, tuple[int, int]]:
    """Every room's floor and place from the left."""
    return {name: (floor, place) for floor, names in floors().items() for place, name in enumerate(names)}


def room_of(path: Path) -> str:
    """The room that a file of nanochat belongs to: the module, or the package that counts as one room."""
    inside = path.relative_to(ROOT / "nanochat")
    return inside.parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, also inside functions; relative ones resolved."""
    found: set[str] = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("nanochat.")} & plan().keys()


def python_files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_plan_is_read_and_names_every_room_once() -> None:
    assert sorted(floors()) == [0, 1, 2, 3, 4]
    assert sum(map(len, floors().values())) == len(plan())
    assert plan()["paths"] == (0, 0)
    assert {"report", "tokenizer", "tinyworld", "runtime", "gpt", "engine"} <= plan().keys()


def test_every_room_of_the_plan_is_there() -> None:
    assert plan().keys() - {room_of(path) for path in python_files("nanochat")} == set()


def test_every_module_has_its_word_in_the_plan() -> None:
    rooms = {room_of(path) for path in python_files("nanochat")} - {"__init__"}
    assert rooms - plan().keys() == set()


def test_a_room_imports_only_from_below_and_from_its_left() -> None:
    wrong = []
    for path in python_files("nanochat"):
        room = room_of(path)
        if room not in plan():
            continue
        floor, place = plan()[room]
        for other in rooms_imported(path) - {room}:
            other_floor, other_place = plan()[other]
            if other_floor > floor or (other_floor == floor and other_place > place):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert wrong == []


def test_nothing_imports_a_script_and_rooms_import_no_task() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder, forbidden in (("nanochat", {"scripts", "tasks"}), ("tasks", {"scripts"}), ("scripts", {"scripts"}))
        for path in python_files(folder)
        for name in imports_of(path)
        if name.split(".")[0] in forbidden
    ]
    assert wrong == []


def test_tasks_see_the_ground_and_the_tokens_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {room}"
        for path in python_files("tasks")
        for room in rooms_imported(path)
        if plan()[room][0] > TASKS_SEE_UP_TO
    ]
    assert wrong == []


def test_one_rust_module_alone_knows_python() -> None:
    folder = ROOT / "rustbpe" / "src"
    sources = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.rs")}
    knowing = {name for name, text in sources.items() if re.search(r"\b(pyo3|PyResult|Py[A-Z]\w+)\b", text)}
    assert "python.rs" in knowing
    assert {name for name in knowing if name != "python.rs" and not name.startswith("python/")} == set()


def test_no_file_is_longer_than_one_reason_to_exist() -> None:
    files = [*python_files("nanochat"), *python_files("scripts"), *python_files("tasks"), *python_files("bench")]
    files += (ROOT / "rustbpe" / "src").rglob("*.rs")
    counts = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: lines for name, lines in counts.items() if lines > MOST_LINES} == {}


# Runs in a fresh interpreter: imports the modules named, and reports what that did besides. `given` modules are
# imported before the watch begins: torch asks ldconfig for libraries when it is imported, which is its own business.
WATCH = r"""
import importlib, io, json, os, sys

blocked, given, modules = map(json.loads, sys.argv[1:])
for name in blocked:
    sys.modules[name] = None
for name in given:
    importlib.import_module(name)

NEVER = ("socket.", "subprocess.", "shutil.", "signal.", "urllib.", "os.system", "os.exec", "os.fork", "os.spawn",
         "os.posix_spawn", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.putenv")
acts, failures = [], {}
current = ""


def watch(event, arguments):
    if not current:
        return
    writes = False
    if event == "open":
        path, mode, flags = arguments
        writes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes or event.startswith(NEVER):
        acts.append(f"{current}: {event} {arguments!r:.120}")


sys.dont_write_bytecode = True
sys.addaudithook(watch)
out, err = sys.stdout, sys.stderr
for name in modules:
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    current = name
    try:
        importlib.import_module(name)
    except BaseException as failure:
        failures[name] = f"{type(failure).__name__}: {failure}"
    current = ""
    said = sys.stdout.getvalue() + sys.stderr.getvalue()
    sys.stdout, sys.stderr = out, err
    if said:
        acts.append(f"{name} says {said!r:.200}")
print(json.dumps({"acts": acts, "failures": failures, "torch": "torch" in sys.modules}))
"""


def imported(modules: list[str], tmp_path: Path, blocked: Sequence[str] = (), given: Sequence[str] = ()) -> Report:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NANOCHAT_BASE_DIR": str(tmp_path / "base")}
    environment.pop("GOMP_SPINCOUNT", None)
    done = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(blocked), json.dumps(given), json.dumps(modules)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "base").exists()
    report: Report = json.loads(done.stdout.splitlines()[-1])
    return report


def test_importing_any_module_does_nothing_even_without_posix(tmp_path: Path) -> None:
    modules = [module_name(path) for folder in ("nanochat", "scripts", "tasks") for path in python_files(folder)]
    blocked = ["fcntl", "resource", "termios", "readline", "pwd"]
    report = imported(modules, tmp_path, blocked, given=["torch"])
    assert report["failures"] == {}
    # the one thing that has to be done before torch is imported; see scripts/__init__.py
    assert report["acts"] == ["scripts: os.putenv (b'GOMP_SPINCOUNT', b'10000')"]


def test_torch_enters_the_house_on_the_machine_floor(tmp_path: Path) -> None:
    low = {room for room, (floor, _) in plan().items() if floor < TORCH_ENTERS_AT}
    modules = [module_name(path) for path in python_files("nanochat") if room_of(path) in low]
    modules += [module_name(path) for path in python_files("tasks")]
    report = imported(modules, tmp_path)
    assert report["failures"] == {}
    assert report["torch"] is False


@pytest.mark.parametrize(
    ("line", "act"),
    [
        ("open('out.txt', 'w').close()", "open"),
        ("import pathlib; pathlib.Path('new').mkdir()", "os.mkdir"),
        ("import socket; socket.socket().close()", "socket"),
        ("import subprocess; subprocess.run(['true'])", "subprocess"),
        ("print('hello')", "says"),
        ("import fcntl", "ModuleNotFoundError"),
    ],
)
def test_the_watch_sees_a_module_that_does_something(line: str, act: str, tmp_path: Path) -> None:
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat" / "__init__.py").touch()  # without it, an installed nanochat would come before this one
    (tmp_path / "nanochat" / "busy.py").write_text(line + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", WATCH, '["fcntl"]', "[]", '["nanochat.busy"]'],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert act in done.stdout
