"""From a `Config` to a command line: flags by tyro, a person's mistake as one sentence and exit code 2.

A script defines a frozen dataclass `Config` and `main(config)`, and ends with `run(main, Config)`.
Dashes and underscores in flags mean the same.

Lesson: lessons/00_setting_up
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

C = TypeVar("C")


class UserError(Exception):
    """A person's mistake, told in one sentence: what was given, what is allowed, which command to run next."""


def run(main: Callable[[C], None], config_class: type[C], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line into a `config_class` and call `main` with it.

    `UserError`, and the operating system's refusals (no such file, no space, no permission), end the process with
    exit code 2 and one line on standard error; Ctrl-C with 130. Any other exception is ours and keeps its traceback.
    """
    import tyro

    room = sys.modules[main.__module__]
    # a help text is wrapped paragraph by paragraph: every command of the docstring becomes one of its own
    description = re.sub(r"\n\s*(?=(python|torchrun) )", "\n\n", room.__doc__ or "")
    program = f"python -m {room.__spec__.name.removesuffix('.__main__')}" if room.__spec__ else None
    config = tyro.cli(config_class, prog=program, args=arguments, description=description)
    try:
        main(config)
        sys.stdout.flush()
    except UserError as mistake:
        sys.exit(_complain(str(mistake)))
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at the end
        sys.exit(141)
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as refusal:
        sys.exit(_complain(f"{refusal.strerror}: {refusal.filename}"))
    except OSError as refusal:
        if refusal.errno not in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EADDRINUSE):
            raise
        sys.exit(_complain(f"{refusal.strerror}: {refusal.filename or 'while writing'}"))
    except KeyboardInterrupt:
        sys.exit(130)


def _complain(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
