"""uvicorn, with what a public address needs besides: bounded patience, enough descriptors, a drain before the end.

Lesson: lessons/24_serving
"""

import asyncio
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from nanochat.serving.pool import Pool

SWEEP_TICKS = 10  # uvicorn ticks ten times a second
LEAVE_SECONDS = 2.0  # for the last writes, once the drain is over


class Server(uvicorn.Server):
    """Closes connections that ask for nothing within `head_seconds`; SIGTERM and Ctrl-C drain the pool first."""

    def __init__(self, app: FastAPI, pool: Pool, head_seconds: float, drain_seconds: float, proxies: list[str]):
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",  # bounds the size of a head
                ws="none",
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies,
                timeout_graceful_shutdown=round(drain_seconds + LEAVE_SECONDS),
            )
        )
        self._pool = pool
        self._head_seconds, self._drain_seconds = head_seconds, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._silent_since: dict[Any, tuple[object, float]] = {}  # connection -> its last request, and when it ended

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal, then drain."""
        self._loop = asyncio.get_running_loop()
        raise_file_limit()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal."""
        if not self.should_exit and self._loop is not None:
            self._loop.call_soon_threadsafe(self._pool.drain, self._drain_seconds)
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Now and then, look for connections that ask for nothing."""
        if counter % SWEEP_TICKS == 0:
            self._sweep(time.monotonic())
        return await super().on_tick(counter)

    def _sweep(self, now: float) -> None:
        """Abort those that for too long have begun no request (what they have sent is no head yet), nor left.

        One that is to be closed and reads no more holds what was written to it: it is gone, too.
        """
        silent = {}
        for connection in self.server_state.connections:
            request = getattr(connection, "cycle", None)
            under_way = request is not None and not request.response_complete
            if under_way and not connection.transport.is_closing():
                continue
            last, since = self._silent_since.get(connection, (request, now))
            silent[connection] = (request, since if last is request else now)
            if now - silent[connection][1] > self._head_seconds:
                connection.transport.abort()
        self._silent_since = silent


def raise_file_limit() -> None:
    """Allow as many connections as the system lets us have open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
