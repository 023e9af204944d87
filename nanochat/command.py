"""From a `Config` to a command line: flags by tyro, a person's mistake as one sentence and exit code 2.

A script defines a frozen dataclass `Config` and `main(config)`, and ends with `run(main, Config)`.
Dashes and underscores in flags mean the same.
"""

import errno
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

    config = tyro.cli(config_class, args=arguments, description=sys.modules[main.__module__].__doc__)
    try:
        main(config)
    except UserError as mistake:
        sys.exit(_complain(str(mistake)))
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
