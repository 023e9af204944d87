"""How a job's answer leaves: as a stream of server-sent events, or whole.

However a response ends, its job ends with it.

Lesson: lessons/24_serving
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from nanochat.serving.answers import Answer, event
from nanochat.serving.errors import of_generation
from nanochat.serving.pool import GenerationError, Job
from nanochat.serving.wire import Gain

KEEP_ALIVE_SECONDS = 10.0  # of silence, before a comment says that the stream lives
FLUSH_SECONDS = 30.0  # that a client has to read the rest once its time is over

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class JobResponse(Response):
    """A job's answer. `begun` is called once, when its first tokens have come, `ended` when all is told."""

    media_type = "text/event-stream"

    def __init__(
        self,
        job: Job,
        answer: Answer,
        stream: bool,
        seconds: float,
        begun: Callable[[], object],
        ended: Callable[[], Awaitable[object]],
    ):
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._job, self._answer, self._stream, self._seconds = job, answer, stream, seconds
        self._begun, self._ended, self._has_begun = begun, ended, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the end, the client's leaving or the deadline."""
        late = GenerationError(f"the answer took longer than {self._seconds:g} seconds", "late")
        deadline = asyncio.get_running_loop().call_later(self._seconds, self._job.fail, late)
        tell = self._events if self._stream else self._whole
        telling = asyncio.ensure_future(tell(scope, receive, send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait(
                {telling, leaving}, timeout=self._seconds + FLUSH_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if telling.done():
                telling.result()
        finally:
            deadline.cancel()
            self._job.cancel()
            for task in (telling, leaving):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task
            await self._ended()

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while gains := await self._next():
                self._answer.grow(gains)
            response = JSONResponse(self._answer.whole())
        except GenerationError as failure:
            response = _refusal(failure)
        await response(scope, receive, send)

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What has come together goes out in one write. The status waits for the first of it: it may be a refusal."""
        started = False
        more = True
        while more:
            try:
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    gains = await self._next()
                more = not self._job.done
                text = self._answer.events(gains) + ("" if more else self._answer.end())
            except TimeoutError:
                if not self._job.dispatched:
                    continue  # the queue may still refuse it
                text = ": still here\n\n"
            except GenerationError as failure:
                if not started:
                    await _refusal(failure)(scope, receive, send)
                    return
                more, text = False, event(of_generation(failure).body())
            if not started:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                started = True
            await send({"type": "http.response.body", "body": text.encode("utf-8"), "more_body": more})

    async def _next(self) -> list[tuple[int, Gain]]:
        gains = await self._job.take()
        if not self._has_begun:
            self._has_begun = True
            self._begun()
        return gains


def _refusal(failure: GenerationError) -> JSONResponse:
    error = of_generation(failure)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
