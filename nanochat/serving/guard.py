"""The gate in front of the application: key, sizes, rates and headers, before anything is parsed.

Clients are told apart by their address (an IPv6 network of 64 bits is one).

Lesson: lessons/24_serving
"""

import asyncio
import hashlib
import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.serving.errors import ApiError, busy, too_many
from nanochat.serving.protocol import Limits

BURST_SECONDS = 10.0  # of its rate, a client may save up so much
MOST_CLIENTS = 10_000  # that are remembered

SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

Observe = Callable[[Scope, int, float], object]


class Guard:
    """ASGI middleware. `observe` is told every response's scope, status and seconds."""

    def __init__(
        self, app: ASGIApp, limits: Limits, api_key: str | None, open_paths: Collection[str], observe: Observe
    ):
        self._app = app
        self._limits = limits
        self._key = None if api_key is None else _digest(api_key.encode("utf-8"))
        self._open_paths = frozenset(open_paths)
        self._observe = observe
        self._clients = Clients(limits.requests_per_minute, limits.requests_at_once)
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 499  # unless a response begins: the client left

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._admit(scope, receive, with_headers)
        except ApiError as refusal:
            response = JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)
            await response(scope, receive, with_headers)
        finally:
            self._observe(scope, status, time.monotonic() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._key is not None and scope["path"] not in self._open_paths:
            self._check_key(headers)
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.max_body_bytes:
            raise ApiError(413, self._too_large())
        if self._requests >= self._limits.max_requests:
            raise busy(f"{self._requests} requests are under way, which is all that this server takes; try again soon")
        client = name_of_client(scope)
        self._clients.enter(client)
        self._requests += 1
        try:
            await self._app(scope, self._bounded(receive), send)
        finally:
            self._requests -= 1
            self._clients.leave(client)

    def _check_key(self, headers: Headers) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(_digest(given.strip().encode("latin-1")), self._key or b"")
        if scheme.lower() != "bearer" or not right:
            message = "no valid API key: send the one that this server was started with as Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _bounded(self, receive: Receive) -> Receive:
        """A `receive` that counts bytes and seconds until the body is there."""
        loop = asyncio.get_running_loop()
        deadline, received, more = loop.time() + self._limits.body_seconds, 0, True

        async def bounded() -> Message:
            nonlocal received, more
            if not more:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                seconds = self._limits.body_seconds
                raise HTTPException(408, f"the request's body did not arrive within {seconds:g} seconds") from None
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
            if received > self._limits.max_body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return bounded

    def _too_large(self) -> str:
        return f"the request is larger than {self._limits.max_body_bytes} bytes"


@dataclass
class _Client:
    tokens: float
    at: float
    active: int = 0


class Clients:
    """Requests by client: a bucket of tokens that fills at the allowed rate, and a count of those under way."""

    def __init__(self, per_minute: int, at_once: int, now: Callable[[], float] = time.monotonic):
        self._per_second = per_minute / 60
        self._capacity = max(1.0, self._per_second * BURST_SECONDS)
        self._at_once = at_once
        self._now = now
        self._known: OrderedDict[str, _Client] = OrderedDict()

    def enter(self, name: str) -> None:
        """Count a request. Raises ApiError (429) when there are too many."""
        now = self._now()
        client = self._known.setdefault(name, _Client(self._capacity, now))
        self._known.move_to_end(name)
        if len(self._known) > MOST_CLIENTS:
            self._forget_one()
        if self._at_once and client.active >= self._at_once:
            raise too_many(f"{client.active} of your requests are under way, at most {self._at_once} may be", 1)
        if self._per_second:
            client.tokens = min(self._capacity, client.tokens + (now - client.at) * self._per_second)
            client.at = now
            if client.tokens < 1:
                wait = math.ceil((1 - client.tokens) / self._per_second)
                per_minute = round(self._per_second * 60)
                raise too_many(f"more than {per_minute} requests a minute; try again in {wait} s", wait)
            client.tokens -= 1
        client.active += 1

    def leave(self, name: str) -> None:
        """A request has ended."""
        if client := self._known.get(name):
            client.active -= 1

    def _forget_one(self) -> None:
        """Forget the client that was heard of longest ago and asks for nothing now."""
        idle = next((name for name, client in self._known.items() if not client.active), None)
        if idle is not None:
            del self._known[idle]


def name_of_client(scope: Scope) -> str:
    """Who asks."""
    host = scope["client"][0] if scope.get("client") else "unknown"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(host)


def _digest(key: bytes) -> bytes:
    """Of one length whatever the key's, so that comparing two takes one time."""
    return hashlib.sha256(key).digest()
