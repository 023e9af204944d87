"""Where the lessons and the learner's files are, and whose code a lesson goes on with.

A lesson's work is one file, `start.py`, or a Rust crate, the folder `start/`. The learner's copy of it lies in their
own folder as `NN_name.py` or `NN_name/`.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lessons import crates
from lessons.crates import Crate
from nanochat.command import UserError

SHELF = Path(__file__).parent


@dataclass(frozen=True)
class Lesson:
    """One lesson, by its folder."""

    folder: Path

    @property
    def number(self) -> int:
        """The number that its folder's name begins with."""
        return int(self.folder.name[:2])

    @property
    def is_crate(self) -> bool:
        """Whether the work is a Rust crate."""
        return (self.folder / "start").is_dir()

    @property
    def start(self) -> Path:
        """What the learner begins with."""
        return self.folder / ("start" if self.is_crate else "start.py")

    @property
    def solution(self) -> Path:
        """One way to write it."""
        return self.folder / ("solution" if self.is_crate else "solution.py")

    def work(self, own_folder: Path) -> Path:
        """The learner's own file, or crate; it need not be there yet."""
        return own_folder / (self.folder.name if self.is_crate else f"{self.folder.name}.py")


def lessons() -> list[Lesson]:
    """All lessons in order: the folders with a notebook."""
    return [Lesson(notebook.parent) for notebook in sorted(SHELF.glob("[0-9][0-9]_*/lesson.ipynb"))]


def find(number: int) -> Lesson:
    """The lesson of a number. Raises UserError where there is none."""
    for lesson in lessons():
        if lesson.number == number:
            return lesson
    last = lessons()[-1].number
    raise UserError(f"there is no lesson {number}, they go from 0 to {last}: `python -m lessons list` shows them")


def own_folder() -> Path:
    """The learner's folder: `NANOCHAT_LESSON_DIR`, by default `my_nanochat` at the top of the repository."""
    given = os.environ.get("NANOCHAT_LESSON_DIR")
    return Path(given).expanduser() if given else SHELF.parent / "my_nanochat"


def whose(number: int) -> Path:
    """The learner's own file or crate of a lesson where there is one, else the solution."""
    lesson = find(number)
    own = lesson.work(own_folder())
    return own if own.exists() else lesson.solution


def load(number: int) -> ModuleType:
    """The code of a lesson as a module: the learner's own where there is one, else the solution.

    A crate that is a Python module is built first. Raises UserError where the build fails.
    """
    path = whose(number)
    if path.is_dir():
        return crates.module(crate(number))
    module = ModuleType(f"lesson_{number:02d}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look a class's module up by its name
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)  # import could take an older version
    return module


def crate(number: int) -> Crate:
    """The crate of a Rust lesson: the learner's own where there is one, else the solution."""
    return Crate(whose(number), find(number).folder.name)
