"""Running a lesson's check: pytest, told as a list of sentences that are green or red."""

import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lessons.learner import Lesson

MOST_LINES = 24


@dataclass
class Outcome:
    """What a check found."""

    own_folder: Path
    sentences: dict[str, str] = field(default_factory=dict)
    """Every test's name as a sentence, and its state: green, RED, or "not yet" where something is not written."""
    first_wrong: list[str] = field(default_factory=list)
    """What is wrong with the first one that is not green."""

    @property
    def passed(self) -> bool:
        """Whether there were tests and all are green."""
        return set(self.sentences.values()) == {"green"}

    def lines(self) -> list[str]:
        """One a sentence, and below the first that is not green what is wrong."""
        lines = []
        told = [f"           {line}" for line in self.first_wrong]
        for sentence, state in self.sentences.items():
            lines.append(f"  {state:7}  {sentence}")
            if state != "green":
                lines += told
                told = []
        return lines

    # --- pytest's hooks -----------------------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.sentences.setdefault(sentence_of(report.nodeid), "green")

    def pytest_exception_interact(
        self, node: pytest.Item | pytest.Collector, call: pytest.CallInfo[object], report: object
    ) -> None:
        assert call.excinfo is not None
        wrong = call.excinfo.value
        sentence = sentence_of(node.nodeid) if isinstance(node, pytest.Item) else "the code is read without an error"
        if self.sentences.get(sentence, "green") == "green":
            self.sentences[sentence] = "not yet" if isinstance(wrong, NotImplementedError) else "RED"
        self.first_wrong = self.first_wrong or self._told(wrong)

    def _told(self, wrong: BaseException) -> list[str]:
        """The exception in words, and the line of the learner's file that it comes from, if it does."""
        kind = "" if isinstance(wrong, AssertionError) else f"{type(wrong).__name__}: "
        words = f"{kind}{wrong}".partition("\nassert ")[0]  # pytest takes the values apart behind it
        lines = [line for line in words.splitlines() if line.strip()] or [kind]
        if len(lines) > MOST_LINES:
            lines = [*lines[:MOST_LINES], "..."]
        for frame in reversed(traceback.extract_tb(wrong.__traceback__)):
            if Path(frame.filename).is_relative_to(self.own_folder):
                return [*lines, f"in {frame.name}, {Path(frame.filename).name} line {frame.lineno}: {frame.line}"]
        return lines


def sentence_of(nodeid: str) -> str:
    """A test's name as words, without its parameters."""
    return nodeid.partition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")


def check(lesson: Lesson, own_folder: Path) -> Outcome:
    """Run a lesson's check on the work in a learner's folder."""
    os.environ["NANOCHAT_LESSON_DIR"] = str(own_folder)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # others' plugins take longer to import than a check takes
    sys.dont_write_bytecode = True
    outcome = Outcome(own_folder)
    flags = ["-p", "no:terminal", "-p", "no:cacheprovider", "-o", "addopts=", "--import-mode=importlib"]
    pytest.main([*flags, str(lesson.folder / "check.py")], plugins=[outcome])
    return outcome
