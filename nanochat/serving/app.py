"""The server's routes: `create_app` takes a pool and a tokenizer, returns a FastAPI application. Handlers stay thin.

GET  /                            the page, in one response
POST /v1/chat/completions         OpenAI's chat completions; without /v1 it streams unless told otherwise
POST /v1/completions              OpenAI's completions; these and the models are there without /v1 too
GET  /v1/models, /v1/models/{id}
POST /tokenize, /detokenize       GET /tokenizer_info
GET  /health, /ready, /stats, /metrics

Lesson: lessons/24_serving
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from nanochat.serving.errors import ApiError
from nanochat.serving.guard import Guard
from nanochat.serving.journal import Journal
from nanochat.serving.metrics import Metrics
from nanochat.serving.page import build_page
from nanochat.serving.pool import Pool
from nanochat.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    Defaults,
    DetokenizeRequest,
    Limits,
    TokenizeRequest,
)
from nanochat.serving.service import Service
from nanochat.serving.vocabulary import ServedTokenizer

OPEN_PATHS = ("/", "/health", "/ready")  # no key is asked for here


class ErrorFields(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every refusal looks like."""

    error: ErrorFields


REFUSED: dict[int | str, str] = {
    400: "A mistake in the request",
    401: "No valid key",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "Too many requests of this client",
    500: "The model failed",
    503: "The server is busy or stopping",
    "default": "Any other refusal",
}
REFUSALS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorBody, "description": text} for status, text in REFUSED.items()
}
ANSWERS: dict[int | str, dict[str, object]] = {
    200: {"description": "The answer, whole or as events", "content": {"text/event-stream": {}}},
    **REFUSALS,
}


def create_app(
    pool: Pool,
    tokenizer: ServedTokenizer,
    name: str = "nanochat",
    chats: bool = True,
    defaults: Defaults | None = None,
    limits: Limits | None = None,
    api_key: str | None = None,
    allow_origins: Sequence[str] = (),
    journal: Journal | None = None,
) -> FastAPI:
    """The application; it starts the pool if nobody has, and closes it. `name` is the model's name for clients."""
    limits = limits or Limits()
    metrics = Metrics(pool)
    service = Service(pool, tokenizer, name, chats, defaults or Defaults(), limits, metrics, journal)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not pool.started:
            await pool.start()
        yield
        await pool.close()

    # FastAPI's own documentation pages fetch scripts from elsewhere, so only the schema (/openapi.json) is served.
    app = FastAPI(title="nanochat", docs_url=None, redoc_url=None, lifespan=lifespan)
    for router, prefixes in ((_openai_routes(service), ("/v1", "")), (_other_routes(service), ("",))):
        for prefix in prefixes:
            app.include_router(router, prefix=prefix)
    _answer_errors_as_openai_does(app)
    app.add_middleware(Guard, limits=limits, api_key=api_key, open_paths=OPEN_PATHS, observe=metrics.observe)
    if allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    return app


def _openai_routes(service: Service) -> APIRouter:
    """What stands under /v1, and without it too."""
    routes = APIRouter()

    @routes.post("/chat/completions", response_model=None, responses=ANSWERS)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        bare = not request.url.path.startswith("/v1/")
        return service.chat(body, request, body.stream is not False if bare else bool(body.stream))

    @routes.post("/completions", response_model=None, responses=ANSWERS)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return service.complete(body, request)

    @routes.get("/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [service.model()]}

    @routes.get("/models/{id:path}", responses=REFUSALS)
    async def model(id: str) -> dict[str, object]:
        return service.model(id)

    return routes


def _other_routes(service: Service) -> APIRouter:
    """The page, the tokenizer, and what an operator asks."""
    routes = APIRouter()
    page, policy = build_page()

    @routes.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})

    @routes.post("/tokenize", responses=REFUSALS)
    async def tokenize(body: TokenizeRequest) -> dict[str, object]:
        return service.tokenize(body)

    @routes.post("/detokenize", responses=REFUSALS)
    async def detokenize(body: DetokenizeRequest) -> dict[str, object]:
        return service.detokenize(body)

    @routes.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, object]:
        return service.tokenizer_info()

    @routes.get("/health")
    async def health() -> dict[str, object]:
        return service.health()

    @routes.get("/ready", response_model=None, responses={503: {"description": "No worker takes requests now"}})
    async def ready() -> Response:
        status = "ready" if service.pool.ready else "stopping" if service.pool.draining else "starting"
        return JSONResponse({"status": status}, 200 if service.pool.ready else 503)

    @routes.get("/stats")
    async def stats() -> dict[str, object]:
        return {"model": service.name, **service.metrics.stats()}

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


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
        message = str(error.detail)
        if error.status_code == 404:
            message = f"no such path: {request.method} {request.url.path}"
        return await refused(request, ApiError(error.status_code, message, headers=dict(error.headers or {})))

    async def ours(request: Request, error: Exception) -> Response:
        return await refused(request, ApiError(500, "the server failed; its log says why", type="server_error"))

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, ours)
