"""The first signal asks, a later one ends the process, and afterwards signals are what they were before."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from nanochat import signals
from nanochat.signals import StopRequest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself these signals")


def ending_of(work: Callable[[], None]) -> int:
    """The exit code of a process of its own that does `work`, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(which: signal.Signals) -> None:
    before, heard = signal.getsignal(which), threading.Event()
    with StopRequest(heard.set) as stop:
        assert not stop.asked
        os.kill(os.getpid(), which)
        assert heard.wait(60)
        assert stop.asked
    assert signal.getsignal(which) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


@pytest.mark.parametrize(("which", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_later_signal_ends_at_once_also_where_python_does_nothing(
    which: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "TYPED_SECONDS", 0.0)

    def work() -> None:
        heard = threading.Event()
        with StopRequest(heard.set):
            os.kill(os.getpid(), which)
            heard.wait(60)
            # blocked in the kernel: no Python code of this thread runs, as in a library that waits for a dead rank
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            threading.Thread(target=os.kill, args=(os.getpid(), which)).start()
            signal.sigwait({signal.SIGUSR1})

    assert ending_of(work) == code


@pytest.mark.parametrize(("launcher", "code"), [("TORCHELASTIC_RUN_ID", 7), ("SLURM_JOB_ID", 7), (None, 130)])
def test_a_launchers_signal_that_comes_twice_is_one_request_and_a_typed_one_two(
    launcher: str | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launchers pass it on along several ways. A second Ctrl-C of a hand within a second used to be lost."""
    monkeypatch.setattr(signals, "TYPED_SECONDS", 0.0)
    monkeypatch.setattr(signals, "PASSED_ON_SECONDS", 600.0)
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    if launcher:
        monkeypatch.setenv(launcher, "1")

    def work() -> None:
        heard = threading.Event()
        with StopRequest(heard.set):
            os.kill(os.getpid(), signal.SIGINT)
            heard.wait(60)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.5 if launcher else 60)
        os._exit(7)

    assert ending_of(work) == code


def test_who_does_not_come_to_the_next_step_in_time_is_ended() -> None:
    def work() -> None:
        with StopRequest(lambda: None, deadline_seconds=0.01):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)

    assert ending_of(work) == 143


def test_no_deadline_runs_while_nobody_has_asked() -> None:
    def work() -> None:
        with StopRequest(lambda: None, deadline_seconds=0.01):
            threading.Event().wait(0.05)
        os._exit(7)

    assert ending_of(work) == 7


def test_outside_of_the_main_thread_nothing_is_changed() -> None:
    before, asked = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopRequest(lambda: None) as stop:
            asked.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (asked, signal.getsignal(signal.SIGTERM)) == ([False], before)
