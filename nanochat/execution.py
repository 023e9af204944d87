"""Programs that a model wrote, each in a fresh Python process with limits.

Held everywhere: a fresh process without the environment, site-packages, standard input or our folder, a clock, a cap
on output. Held where the system has `resource`: memory, processor seconds, size of files, open files, no core file.
This is no wall against a hostile program: it may read what our user may read, and use the network. What it can not do
is pass by printing or by leaving early: the verdict needs a nonce that the process reads only after the program's end.

Lesson: lessons/22_tools
"""

import contextlib
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from typing import IO

FILE_BYTES = 16 << 20
OPEN_FILES = 64
VERDICT_BYTES = 4096
"""Of the verdict at most, so that it arrives in one piece (PIPE_BUF)."""

# Runs in the child. It reads its orders from standard input: a line with the program's length and the limits, the
# program, and behind it the nonce, which stays in the pipe until the program is done. Everything that it needs
# afterwards is bound to local names first, for programs replace functions of `os` and `sys`.
_CHILD = r"""
def run():
    import os, sys
    read, write, leave, show = os.read, os.write, os._exit, sys.__excepthook__
    orders, verdict, null = os.dup(0), os.dup(2), os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    def take(size):
        data = b""
        while len(data) < size:
            piece = read(orders, size - len(data))
            if not piece:
                leave(3)
            data += piece
        return data
    line = b""
    while not line.endswith(b"\n"):
        line += take(1)
    size, *limits = line.split()
    program = take(int(size))
    for limit in limits:
        import resource
        name, soft, hard = limit.decode().split(":")
        resource.setrlimit(getattr(resource, name), (int(soft), int(hard)))
    def flush():
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                pass
    def attempt():
        try:
            text = program.decode("utf-8", "surrogatepass")
            exec(compile(text, "<program>", "exec"), {"__name__": "__main__"})
            return b"+"
        except BaseException as problem:
            try:
                problem.__traceback__ = problem.__traceback__.tb_next
                show(type(problem), problem, problem.__traceback__)
                words = str(problem)[:500]
            except BaseException:
                words = "?"
            return ("-" + type(problem).__name__[:100] + (": " + words if words else "")).encode("utf-8", "replace")
    status = attempt()
    flush()
    nonce = take(32)
    write(verdict, nonce + status + nonce)
    leave(0)
run()
"""


@dataclass(frozen=True)
class ExecutionResult:
    """What became of a program: `success` when it ran to its end without an exception, else `error` says why not."""

    success: bool
    stdout: str
    stderr: str
    error: str | None
    timed_out: bool
    truncated: bool
    """Whether it wrote more than was kept."""
    limits: tuple[str, ...]
    """What was limited; on systems without `resource` only time and output."""


@dataclass
class _Capture:
    """Reads a pipe to its end and keeps the first `cap` bytes and the last few, so that nobody fills our memory."""

    pipe: IO[bytes]
    cap: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)

    def run(self) -> None:
        """Read until every writer has closed the pipe."""
        while piece := os.read(self.pipe.fileno(), 1 << 16):
            room = self.cap - len(self.head)
            self.head += piece[:room]
            self.tail += piece[room:]
            if len(self.tail) > VERDICT_BYTES:
                del self.tail[:-VERDICT_BYTES]

    def content(self) -> bytes:
        """What was kept."""
        return bytes(self.head + self.tail)


def execute_code(
    code: str, timeout_seconds: float = 5.0, memory_bytes: int = 256 << 20, output_bytes: int = 1 << 16
) -> ExecutionResult:
    """Run a Python program (standard library only) to its end or to a limit, and say what became of it.

    `output_bytes` are kept of standard output and of standard error each. Never raises for anything that the program
    does. Works in any thread. Processes that it leaves behind in its session are killed.
    """
    limits = _limits(timeout_seconds, memory_bytes)
    nonce = secrets.token_hex(16).encode()
    program = code.encode("utf-8", "surrogatepass")
    header = " ".join([str(len(program)), *(f"{name}:{soft}:{hard}" for name, soft, hard in limits.values())])
    with tempfile.TemporaryDirectory(prefix="nanochat-program-", ignore_cleanup_errors=True) as folder:
        process = _start(folder)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        captures = [_Capture(process.stdout, output_bytes), _Capture(process.stderr, output_bytes)]
        readers = [threading.Thread(target=capture.run, daemon=True) for capture in captures]
        for reader in readers:
            reader.start()
        timed_out = False
        try:
            # A child that is gone already has closed the pipe (Windows: EINVAL); its exit code tells why.
            with contextlib.suppress(OSError), process.stdin as orders:
                orders.write(header.encode() + b"\n" + program + nonce)
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _kill(process)
        for reader, capture in zip(readers, captures, strict=True):
            # A process that left its session may hold the pipe open: then its reader stays behind, and we go on.
            reader.join(timeout=1.0)
            if not reader.is_alive():
                capture.pipe.close()
    return _judge(process.returncode, captures, nonce, timed_out, timeout_seconds, ("time", "output", *limits))


def _start(folder: str) -> subprocess.Popen[bytes]:
    """A fresh interpreter in a session of its own: isolated (-I), no site-packages (-S), no bytecode files (-B)."""
    # Windows cannot start Python without the place of its system libraries.
    environment = {name: os.environ[name] for name in ("SYSTEMROOT",) if os.name == "nt" and name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment,
        start_new_session=os.name == "posix",
    )


def _limits(timeout_seconds: float, memory_bytes: int) -> dict[str, tuple[str, int, int]]:
    """What this system can limit: a word for it, then the resource's name, soft and hard limit."""
    try:
        import resource  # noqa: F401  (not there on Windows)
    except ImportError:
        return {}
    cpu_seconds = math.ceil(timeout_seconds)
    limits = {
        "memory": ("RLIMIT_AS", memory_bytes, memory_bytes),
        # At the soft limit it gets SIGXCPU, at the hard one SIGKILL.
        "cpu": ("RLIMIT_CPU", cpu_seconds, cpu_seconds + 1),
        "file size": ("RLIMIT_FSIZE", FILE_BYTES, FILE_BYTES),
        "open files": ("RLIMIT_NOFILE", OPEN_FILES, OPEN_FILES),
        "core": ("RLIMIT_CORE", 0, 0),
    }
    if sys.platform == "darwin":
        # Every process there maps far more than it uses, and a limit below that is refused.
        del limits["memory"]
    return limits


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it left in its session."""
    if os.name == "posix":
        # On macOS a group of which only a zombie is left answers with "not permitted".
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _judge(
    exit_code: int,
    captures: list[_Capture],
    nonce: bytes,
    timed_out: bool,
    timeout_seconds: float,
    limits: tuple[str, ...],
) -> ExecutionResult:
    out, err = (capture.content() for capture in captures)
    said, _, rest = err.partition(nonce)
    verdict, closed, _ = rest.partition(nonce)
    cpu_spent = os.name == "posix" and exit_code == -signal.SIGXCPU
    error: str | None
    if timed_out or cpu_spent:
        error = f"timed out after {timeout_seconds:g} seconds"
    elif closed:
        error = None if verdict == b"+" else verdict[1:].decode(errors="replace")
    elif exit_code < 0:
        error = f"killed by signal {-exit_code}"
    else:
        error = f"left early with exit code {exit_code}"
    return ExecutionResult(
        success=error is None,
        stdout=out[: captures[0].cap].decode(errors="replace"),
        stderr=said[: captures[1].cap].decode(errors="replace"),
        error=error,
        timed_out=timed_out or cpu_spent,
        truncated=len(out) > captures[0].cap or len(said) > captures[1].cap,
        limits=limits,
    )
