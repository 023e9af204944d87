"""Drives the lessons: what there is, a start in your own folder, checks, hints, and the solution beside yours.

python -m lessons list
python -m lessons start 1
python -m lessons check 1
python -m lessons hint 1
python -m lessons diff 1
python -m lessons reset 1
"""

import difflib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from tyro.conf import Positional

from lessons import crates, learner
from lessons.learner import SHELF, Lesson
from nanochat import command
from nanochat.command import UserError

ROW = re.compile(r"^\| (\d+) \| \[([^\]]+)\]\([^)]*\) \| (\d+) \|", re.MULTILINE)
"""A lesson's row in README.md: its number, title and minutes."""
PROGRESS = ".lessons.json"
"""The file of `Progress` in the learner's folder."""


class Progress(TypedDict):
    """What is remembered of a learner: places of the hints shown by lesson, lessons whose check was green."""

    hints: dict[str, list[int]]
    green: list[int]


@dataclass(frozen=True)
class Config:
    """What to do, with which lesson, in which folder."""

    action: Positional[Literal["list", "start", "check", "hint", "diff", "reset"]]
    """list all lessons; start one; check your work; show the next hint; diff yours and the solution; reset yours."""
    number: Positional[int | None] = None
    """The lesson."""
    about: Positional[str | None] = None
    """For a hint: the function that it should be about."""
    dir: Path | None = None
    """Your own folder (default: NANOCHAT_LESSON_DIR, else my_nanochat at the top of the repository)."""


def main(config: Config) -> None:
    """Do what was asked for."""
    if config.dir is not None:
        os.environ["NANOCHAT_LESSON_DIR"] = str(config.dir)
    folder = learner.own_folder().resolve()
    if config.action == "list":
        print(listed(folder))
        return
    if config.number is None:
        raise UserError(f"which lesson? `python -m lessons {config.action} 1`, and `python -m lessons list` shows all")
    lesson = learner.find(config.number)
    if config.action == "start":
        print(started(lesson, folder))
    elif config.action == "reset":
        print(moved_aside(lesson, folder))
        print(started(lesson, folder))
    elif config.action == "hint":
        print(next_hint(lesson, folder, config.about))
    elif config.action == "diff":
        print(compared(lesson, folder))
    else:
        green = check(lesson, folder)
        sys.stdout.flush()
        if not green:
            sys.exit(1)


def listed(folder: Path) -> str:
    """All lessons: number, state, minutes, title."""
    rows = {int(number): (title, minutes) for number, title, minutes in ROW.findall(_read(SHELF / "README.md"))}
    green = _progress(folder)["green"]
    lines = []
    for lesson in learner.lessons():
        title, minutes = rows[lesson.number]
        state = "green" if lesson.number in green else "started" if lesson.work(folder).exists() else ""
        lines.append(f"{lesson.number:2}  {state:7}  {minutes:>3} min  {title}")
    return "\n".join([*lines, f"your folder: {folder}"])


def started(lesson: Lesson, folder: Path) -> str:
    """Copy the start into the learner's folder. Raises UserError where there is work already."""
    work, number = copied(lesson, lesson.start, folder), lesson.number
    return "\n".join(
        [
            f"read   {_near(lesson.folder / 'lesson.ipynb')} (`uv run jupyter lab` opens it)",
            f"write  {_near(work / 'src' / 'lib.rs' if lesson.is_crate else work)}",
            f"then   python -m lessons check {number}, and when you are stuck python -m lessons hint {number}",
        ]
    )


def copied(lesson: Lesson, source: Path, folder: Path) -> Path:
    """Copy a file or crate to where the learner's work on a lesson lies. Raises UserError where there is some."""
    work = lesson.work(folder)
    if work.exists():
        raise UserError(f"{work} is there already: `python -m lessons reset {lesson.number}` moves it aside")
    folder.mkdir(parents=True, exist_ok=True)
    part = work.with_name(f".{work.name}.part")
    if lesson.is_crate:
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part, ignore=shutil.ignore_patterns("target"))
        crates.repoint(
            part / "Cargo.toml", {other.folder.name: learner.whose(other.number) for other in learner.lessons()}
        )
    else:
        shutil.copyfile(source, part)
    part.rename(work)
    return work


def moved_aside(lesson: Lesson, folder: Path) -> str:
    """Rename the learner's work to a numbered backup."""
    work = _work(lesson, folder)
    n = 1
    while (backup := work.with_name(f"{work.stem}.{n}{work.suffix}")).exists():
        n += 1
    work.rename(backup)
    return f"moved  {_near(work)} to {backup.name}"


def next_hint(lesson: Lesson, folder: Path, about: str | None) -> str:
    """The first hint not shown yet that names `about`, and how many there are. Raises UserError where none names it."""
    hints = [hint.strip() for hint in _read(lesson.folder / "hints.md").split("\n---\n")]
    places = [n for n, hint in enumerate(hints) if about is None or about.lower() in hint.lower()]
    if not places:
        raise UserError(f"no hint of lesson {lesson.number} names {about!r}: `python -m lessons hint {lesson.number}`")
    progress = _progress(folder)
    shown = progress["hints"].setdefault(str(lesson.number), [])
    new = next((n for n in places if n not in shown), None)
    if new is None:
        every = "\n\n".join(hints[n] for n in places)
        return f"{every}\n\nThese were all. `python -m lessons diff {lesson.number}` shows the solution beside yours."
    shown.append(new)
    _keep_progress(folder, progress)
    return f"{hints[new]}\n\n(hint {new + 1} of {len(hints)})"


def compared(lesson: Lesson, folder: Path) -> str:
    """What would have to change in the learner's work to make it the solution."""
    work = _work(lesson, folder)
    inside = "src/*.rs" if lesson.is_crate else lesson.solution.name
    theirs = sorted(lesson.solution.glob(inside)) if lesson.is_crate else [lesson.solution]
    lines: list[str] = []
    for their in theirs:
        mine = work / their.relative_to(lesson.solution) if lesson.is_crate else work
        before = _read(mine).splitlines() if mine.exists() else []
        names = (f"yours: {_near(mine)}", f"solution: {_near(their)}")
        lines += difflib.unified_diff(before, _read(their).splitlines(), *names, lineterm="")
    return "\n".join(lines) or "yours is the solution, to the letter"


def check(lesson: Lesson, folder: Path) -> bool:
    """Run the check, say what is green and what is red, and remember a lesson that is done."""
    from lessons import checking

    work = _work(lesson, folder)
    outcome = checking.check(lesson, folder)
    print("\n".join([f"{lesson.folder.name}, your {_near(work)}", *outcome.lines()]))
    green = list(outcome.sentences.values()).count("green")
    if not outcome.passed:
        helps = f"`python -m lessons hint {lesson.number}` helps"
        print(f"{green} of {len(outcome.sentences)} green: the first other one is next; {helps}")
        return False
    progress = _progress(folder)
    progress["green"] = sorted({*progress["green"], lesson.number})
    _keep_progress(folder, progress)
    print(f"all {green} green; now {_near(lesson.folder / 'journal.md')}, and go on")
    return True


def _work(lesson: Lesson, folder: Path) -> Path:
    work = lesson.work(folder)
    if not work.exists():
        raise UserError(f"{work} is not there yet: `python -m lessons start {lesson.number}` makes it")
    return work


def _progress(folder: Path) -> Progress:
    try:
        progress: Progress = json.loads(_read(folder / PROGRESS))
    except FileNotFoundError:
        return {"hints": {}, "green": []}
    return progress


def _keep_progress(folder: Path, progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{PROGRESS}.part"
    part.write_text(json.dumps(progress), encoding="utf-8")
    part.replace(folder / PROGRESS)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _near(path: Path) -> Path:
    """The path from here, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    command.run(main, Config)
