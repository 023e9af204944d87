"""Programs in a process of their own: what passes, what fails and how, and that no limit can be talked away."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanochat.execution import FILE_BYTES, VERDICT_BYTES, _Capture, execute_code

posix = pytest.mark.skipif(os.name != "posix", reason="limits by the system need POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_a_program_that_ends_passes_and_its_output_is_returned() -> None:
    result = execute_code("import sys\nprint('héllo')\nprint('oops', file=sys.stderr)\nassert 1 + 1 == 2")
    assert (result.success, result.stdout, result.stderr, result.error) == (True, "héllo\n", "oops\n", None)
    assert not result.timed_out
    assert not result.truncated


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("assert 1 == 2, 'one is not two'", "AssertionError: one is not two"),
        ("def f(:", "SyntaxError: "),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("undefined", "NameError: name 'undefined'"),
        ("input()", "EOFError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("class E(Exception):\n  def __str__(self): raise self\nraise E", "E: ?"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("'\ud800'", "UnicodeEncodeError"),
        ("\0", "SyntaxError|ValueError"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
        ("raise ValueError('é' * 10**6)", "ValueError: éééé"),
    ],
)
def test_an_exception_fails_and_is_named(code: str, error: str) -> None:
    result = execute_code(code)
    assert not result.success
    assert result.error is not None
    assert any(result.error.startswith(word) for word in error.split("|")), result.error
    assert len(result.error) < 1000


def test_the_trace_shows_the_programs_line_and_none_of_ours() -> None:
    result = execute_code("x = 1\ny = 0\nx / y")
    assert 'File "<program>", line 3' in result.stderr
    assert "<string>" not in result.stderr


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "print('success'); print('+'); import os; os._exit(0)",
        "import sys; sys.stderr.write('+' * 10000); sys.stderr.flush(); import os; os._exit(0)",
        "import sys; sys.stderr.write('0' * 32 + '+' + '0' * 32); sys.exit()",
        "import os; os.write(2, b'+'); os.kill(os.getpid(), 9)",
        "import os; os.execv('/bin/true', ['true'])",
        "import os\nos.write = lambda *a: 0\nos.read = lambda *a: b''\nassert False",
        "import builtins\nbuiltins.BaseException = ValueError\nassert False",
        "import sys\nsys.excepthook = sys.__excepthook__ = lambda *a: None\nassert False",
    ],
)
@posix
def test_leaving_early_or_printing_a_verdict_is_no_success(code: str) -> None:
    result = execute_code(code)
    assert not result.success
    assert result.error


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import os; os.close(0); os.close(1); os.close(2)",
        "import os, sys\nfor module in (os, sys):\n  for name in list(vars(module)): setattr(module, name, None)",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    ],
)
@posix
def test_an_odd_program_that_ends_is_a_success_all_the_same(code: str) -> None:
    result = execute_code(code)
    assert result.success, result.error


def test_a_program_that_hangs_is_ended() -> None:
    result = execute_code("print('begun', flush=True)\nwhile True: pass", timeout_seconds=0.7)
    assert (result.success, result.timed_out, result.stdout) == (False, True, "begun\n")
    assert result.error == "timed out after 0.7 seconds"


@posix
def test_processor_time_spent_in_threads_counts_as_timed_out() -> None:
    """Two hashing threads spend more processor time than the clock shows; on one core the clock ends them."""
    code = (
        "import hashlib, threading\nblock = bytes(1 << 24)\n"
        "def burn():\n  while True: hashlib.sha256(block)\n"
        "threading.Thread(target=burn).start()\nburn()"
    )
    assert execute_code(code, timeout_seconds=1).timed_out


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_memory_is_limited() -> None:
    result = execute_code("x = bytearray(1 << 30)", memory_bytes=128 << 20)
    assert result.error == "MemoryError"
    assert execute_code("x = bytearray(64 << 20)", memory_bytes=256 << 20).success


@posix
def test_the_size_of_files_is_limited() -> None:
    code = f"with open('big', 'wb') as file:\n  for _ in range(20): file.write(bytes({FILE_BYTES // 16}))"
    assert not execute_code(code).success
    assert execute_code("open('small', 'w').write('x' * 1000); assert open('small').read()").success


@posix
def test_the_number_of_open_files_is_limited() -> None:
    result = execute_code("files = [open('f', 'w') for _ in range(1000)]")
    assert "Too many open files" in str(result.error)


@posix
def test_a_program_can_not_raise_its_soft_limits() -> None:
    code = """
import resource
for name in ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE"):
    soft, hard = resource.getrlimit(getattr(resource, name))
    assert soft == hard != resource.RLIM_INFINITY, name
"""
    assert execute_code(code).success or sys.platform == "darwin"


def test_output_is_capped_while_it_is_read() -> None:
    result = execute_code("import sys\nfor _ in range(2000): print('x' * 9999); sys.stderr.write('y' * 999)")
    assert result.success
    assert result.truncated
    assert result.stdout == ("x" * 9999 + "\n") * 6 + "x" * (65536 - 60000)
    assert result.stderr == "y" * 65536


def test_what_is_not_kept_takes_no_memory() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe, ThreadPoolExecutor(1) as pool:
        capture = _Capture(pipe, cap=100)
        done = pool.submit(capture.run)
        with os.fdopen(writing, "wb") as output:
            output.write(b"a" * 100 + b"b" * 1_000_000 + b"c" * VERDICT_BYTES)
        done.result()
    assert capture.content() == b"a" * 100 + b"c" * VERDICT_BYTES


def test_it_runs_in_an_empty_folder_without_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    code = "import os, sys\nprint(os.listdir(), 'API_KEY' in os.environ, os.getcwd(), sys.argv, sys.stdin.read())"
    listing, seen, folder, rest = execute_code(code).stdout.split(" ", 3)
    assert (listing, seen, rest) == ("[]", "False", "['-c'] \n")
    assert folder != os.getcwd()
    assert not Path(folder).exists()


@linux
def test_a_process_left_behind_is_killed() -> None:
    code = "import subprocess, sys\nprint(subprocess.Popen(['/bin/sleep', '600']).pid)"
    result = execute_code(code)
    assert result.success
    assert not alive(int(result.stdout))


@linux
def test_a_process_that_left_the_session_does_not_hold_us_up() -> None:
    """It can not be found by its group any more; it keeps the pipes open, and we return all the same."""
    code = "import subprocess\nprint(subprocess.Popen(['/bin/sleep', '3'], start_new_session=True).pid)"
    result = execute_code(code)
    assert result.success
    assert int(result.stdout) > 0


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_programs_run_side_by_side_in_threads() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(execute_code, [f"print({i})" for i in range(6)])
        assert [result.stdout for result in results] == [f"{i}\n" for i in range(6)]


def test_a_long_program_arrives_whole() -> None:
    lines = 40_000  # more than a pipe holds
    result = execute_code("".join(f"x{i} = {i}\n" for i in range(lines)) + f"assert x{lines - 1} == {lines - 1}")
    assert result.success, result.error


def test_without_the_systems_limits_it_says_so_and_keeps_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert execute_code("print(1)").limits == ("time", "output")
    assert execute_code("while True: pass", timeout_seconds=0.5).timed_out


@linux
def test_the_result_names_what_was_limited() -> None:
    expected = ("time", "output", "memory", "cpu", "file size", "open files", "core")
    assert execute_code("").limits == expected
