"""A worker's loop, without a process of its own."""

import contextlib
import socket
import threading
import time

import pytest
from fake_engine import FakeEngine

from nanochat.serving import worker


def test_an_idle_worker_gives_memory_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TIDY_EVERY_SECONDS", 0.01)
    engine = FakeEngine()
    near, far = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(EOFError):
            worker.serve(engine, far, {})

    thread = threading.Thread(target=serve)
    with near, far:
        thread.start()
        patience = time.monotonic() + 60
        while engine.tidied < 3 and time.monotonic() < patience:
            time.sleep(0.01)
        near.shutdown(socket.SHUT_WR)
        thread.join(60)
    assert engine.tidied >= 3
    assert not thread.is_alive()
