"""A config as a command line; mistakes as one sentence and exit code 2."""

import errno
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanochat import command
from nanochat.command import UserError

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Config:
    """Flags."""

    some_number: int = 3
    """A number."""
    what: str = ""
    """What goes wrong."""


def main(config: Config) -> None:
    """Fail as asked."""
    wrongs: dict[str, BaseException] = {
        "mistake": UserError("the number is 3, allowed is 4"),
        "missing": FileNotFoundError(errno.ENOENT, "No such file or directory", "notes.txt"),
        "full": OSError(errno.ENOSPC, "No space left on device", "model.safetensors"),
        "ours": OSError(errno.EIO, "Input/output error"),
        "stopped": KeyboardInterrupt(),
    }
    if config.what:
        raise wrongs[config.what]
    print(config.some_number)


def shout(config: Config) -> None:
    """Print more than a pipe holds."""
    print("loud " * 100_000)


@pytest.mark.parametrize("flag", ["--some_number=5", "--some-number=5"])
def test_dashes_and_underscores_mean_the_same(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    command.run(main, Config, [flag])
    assert capsys.readouterr().out == "5\n"


@pytest.mark.parametrize(
    ("what", "code", "sentence"),
    [
        ("mistake", 2, "error: the number is 3, allowed is 4\n"),
        ("missing", 2, "error: No such file or directory: notes.txt\n"),
        ("full", 2, "error: No space left on device: model.safetensors\n"),
        ("stopped", 130, ""),
    ],
)
def test_a_persons_mistake_is_one_sentence(
    what: str, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.run(main, Config, [f"--what={what}"])
    assert ended.value.code == code
    assert capsys.readouterr().err == sentence


def test_our_own_mistake_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="Input/output"):
        command.run(main, Config, ["--what=ours"])


def test_help_names_the_command_and_shows_each_example_on_a_line_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.tok_eval", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage: python -m scripts.tok_eval" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.strip() == "python -m scripts.tok_eval"]


def test_output_into_a_closed_pipe_ends_without_a_traceback() -> None:
    program = f"{sys.executable} -c 'from tests.test_command import *; command.run(shout, Config, [])' | head -c 1"
    done = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "l"
    assert done.stderr == ""
