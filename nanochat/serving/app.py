"""The server: `create_app` takes a pool and a tokenizer, returns a FastAPI application. Handlers stay thin.

    GET  /                      the page, in one response
    POST /v1/chat/completions   OpenAI's chat completions
    POST /chat/completions      the same; streams unless told otherwise
    GET  /v1/models, /health

Generation runs in the pool's threads and tokenizing in a thread of its own, never on the event loop.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.conversation import Conversation
from nanochat.serving.page import build_page
from nanochat.serving.pool import GenerationError, Job, Pool, PoolBusyError
from nanochat.serving.protocol import Answer, ApiError, ChatRequest, Defaults, Limits, event


class ChatTokenizer(Protocol):
    """The part of `nanochat.tokenizer.RustBPETokenizer` that the server needs."""

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """The ids of the conversation up to where the assistant speaks."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...


def create_app(
    pool: Pool,
    tokenizer: ChatTokenizer,
    name: str = "nanochat",
    defaults: Defaults | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """The application; it closes the pool when it shuts down. `name` is the model's name as clients see it."""
    defaults, limits = defaults or Defaults(), limits or Limits()
    page, policy = build_page()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(pool.close)

    # FastAPI's own documentation pages fetch scripts from elsewhere, so only the schema (/openapi.json) is served.
    app = FastAPI(title="nanochat", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes)
    _answer_errors_as_openai_does(app)

    async def complete(body: ChatRequest, request: Request, stream: bool) -> Response:
        conversation = body.conversation(limits)
        sampling = body.sampling(defaults, limits)
        prompt = await asyncio.to_thread(tokenizer.render_for_completion, conversation)
        if len(prompt) >= pool.context_len:
            raise ApiError(
                400,
                f"the conversation has {len(prompt)} tokens and the model reads at most {pool.context_len - 1} before"
                " it answers: start a new chat or shorten the messages",
                param="messages",
                code="context_length_exceeded",
            )
        try:
            job = pool.submit(prompt, sampling)
        except PoolBusyError as busy:
            raise ApiError(
                503,
                f"the server is busy (answers under way: {pool.running}, waiting: {pool.waiting}); try again soon",
                type="server_error",
                code="server_busy",
                headers={"Retry-After": "1"},
            ) from busy
        answer = Answer(name, job, pool.context_len, tokenizer.encode)
        if stream:
            return JobResponse(job, answer)
        return await _whole(job, answer, request)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await complete(body, request, stream=bool(body.stream))

    @app.post("/chat/completions", response_model=None)
    async def chat_completions_streaming(body: ChatRequest, request: Request) -> Response:
        return await complete(body, request, stream=body.stream is not False)

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "nanochat"}]}

    @app.get("/health")
    async def health() -> dict[str, object]:
        counts = {"workers": pool.workers, "running": pool.running, "waiting": pool.waiting}
        return {"status": "ok", "model": name, **counts}

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        return HTMLResponse(page, headers=headers | {"X-Content-Type-Options": "nosniff"})

    return app


class JobResponse(StreamingResponse):
    """A job's pieces as server-sent events; however the response ends, the job ends with it."""

    def __init__(self, job: Job, answer: Answer):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._events(answer), media_type="text/event-stream", headers=headers)
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.cancel()

    async def _events(self, answer: Answer) -> AsyncIterator[str]:
        yield answer.first()
        try:
            async for piece in self.job.pieces():
                yield answer.piece(piece)
        except GenerationError as failure:
            yield event(ApiError(500, str(failure), type="server_error").body())
        else:
            yield answer.last()


async def _whole(job: Job, answer: Answer, request: Request) -> Response:
    """The answer in one response; a client that goes away meanwhile ends the job."""

    async def collect() -> None:
        async for piece in job.pieces():
            answer.add(piece)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    collecting, leaving = asyncio.ensure_future(collect()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)  # nobody reads it
        collecting.result()
        return JSONResponse(answer.whole())
    except GenerationError as failure:
        raise ApiError(500, str(failure), type="server_error") from failure
    finally:
        job.cancel()
        collecting.cancel()
        leaving.cancel()


class BodyLimit:
    """Refuses a request body above `max_bytes` before anything parses it."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its bytes."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, f"the request is larger than {self.max_bytes} bytes")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


def _answer_errors_as_openai_does(app: FastAPI) -> None:
    """Every error in OpenAI's shape: validation as 400, unknown paths as 404, our own failures without a traceback."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body(), error.status, headers=error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = [part for part in first["loc"] if part != "body"]
        # A union's branches ("str", "list[RequestPart]") are no part of what the client wrote.
        param = ".".join(str(p) for p in place if isinstance(p, int) or p.isidentifier()) or None
        if first["type"] == "json_invalid":
            param, message = None, f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}"
        elif not place:
            message = "the body must be a JSON object, sent with Content-Type: application/json"
        else:
            problem = first["msg"].removeprefix("Value error, ")
            message = f"{param}: {problem[:1].lower()}{problem[1:]}"
        return await refused(request, ApiError(400, message, param=param))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = (
            f"no such path: {request.method} {request.url.path}" if error.status_code == 404 else str(error.detail)
        )
        headers = dict(error.headers or {})
        return await refused(request, ApiError(error.status_code, message, headers=headers))

    async def ours(request: Request, error: Exception) -> Response:
        return await refused(request, ApiError(500, "the server failed; its log says why", type="server_error"))

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, ours)
