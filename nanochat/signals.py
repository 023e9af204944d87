"""A request to stop, by SIGTERM or Ctrl-C, that a loop honours at its next step.

Lesson: lessons/19_validation
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

PASSED_ON_SECONDS = 1.0
"""Launchers pass one signal on along several ways: so long what comes again is the same request."""
TYPED_SECONDS = 0.1
"""The same without a launcher, where no hand is so quick."""
HEARD = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Inside `with` the first SIGTERM or Ctrl-C makes `asked` true and calls `on_first`; a later one ends at once.

    A thread hears the signals, so that a process whose main thread waits inside a library can be ended too. With
    `deadline_seconds` the process ends (128 + the signal's number) when the block has not been left so long after the
    first: one that waits for a dead rank never comes to its next step. Does nothing outside of the main thread.
    """

    def __init__(self, on_first: Callable[[], None], deadline_seconds: float | None = None):
        self.asked = False
        self._on_first, self._deadline = on_first, deadline_seconds
        launched = any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"))
        self._same_seconds = PASSED_ON_SECONDS if launched else TYPED_SECONDS
        self._restore: Callable[[], None] | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self
        inbox, outbox = socket.socketpair()
        outbox.setblocking(False)
        before_fd = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, _heard_by_the_thread) for number in HEARD}
        thread = threading.Thread(target=self._listen, args=(inbox,), name="signals", daemon=True)
        thread.start()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)
            outbox.close()
            thread.join()
            inbox.close()

        self._restore = restore
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None

    def _listen(self, inbox: socket.socket) -> None:
        first = 0.0
        while True:
            try:
                received = inbox.recv(1)
            except TimeoutError:
                os._exit(128 + signal.SIGTERM)
            if not received:
                return
            if received[0] not in HEARD:
                continue
            if not self.asked:
                self.asked, first = True, time.monotonic()
                inbox.settimeout(self._deadline)
                self._on_first()
            elif time.monotonic() - first > self._same_seconds:
                os._exit(128 + received[0])


def _heard_by_the_thread(number: int, frame: FrameType | None) -> None:
    """Python tells a signal to a file descriptor only where it has a handler too."""
