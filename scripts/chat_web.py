"""Chat in the browser, and serve the model to OpenAI's clients.

    python -m scripts.chat_web
    python -m scripts.chat_web --num-gpus 4 --host 0.0.0.0 --port 8000

The address that it prints shows the page; /v1/chat/completions answers clients. Without -i it takes sft, else mid.
NANOCHAT_API_KEY in the environment is an --api_key that no list of processes shows.

Lesson: lessons/24_serving
"""

import asyncio
import errno
import ipaddress
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from nanochat import command
from nanochat.command import UserError
from nanochat.gpt_config import Weights
from nanochat.serving.protocol import Defaults, Limits
from nanochat.tools import check_tools


@dataclass(frozen=True)
class Config:
    """Flags."""

    source: Annotated[Literal["base", "mid", "sft", "rl"] | None, arg(aliases=["-i"])] = None
    """The stage to load; base answers completions only."""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """The model's tag, for example d4; the newest when not given."""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """The step; the last one when not given."""
    num_gpus: Annotated[int, arg(aliases=["-n"])] = 1
    """How many GPUs serve, each by processes of its own."""
    num_workers: Annotated[int, arg(aliases=["-w"])] = 1
    """Processes on each device, each with a model of its own; on a CPU they share the cores."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: Annotated[int, arg(aliases=["-p"])] = 8000
    """The port to listen on."""
    api_key: str | None = None
    """Ask clients for this key (Authorization: Bearer)."""
    allow_origins: tuple[str, ...] = ()
    """Web sites whose pages may call this server (CORS), for example https://example.org; * is any."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For tells the client's address."""
    temperature: Annotated[float, arg(aliases=["-t"])] = Defaults.temperature
    """Sampling temperature where a request does not say."""
    top_k: Annotated[int, arg(aliases=["-k"])] = Defaults.top_k or 0
    """Sample from this many likeliest tokens where a request does not say; 0 takes all."""
    max_tokens: Annotated[int, arg(aliases=["-m"])] = Defaults.max_tokens
    """Length of an answer where a request does not say."""
    tools: tuple[str, ...] = ()
    """Further tools for the model beside the calculator: convert."""
    max_rows: int = 64
    """Answers that a worker writes together."""
    cache_gb: float | None = None
    """Memory of each worker for the texts it reads and writes; a third of what is free when not given."""
    max_waiting: int = 256
    """Prompts that may wait for a worker; more are refused."""
    queue_seconds: float = 60.0
    """How long they may wait."""
    limits: Limits = field(default_factory=Limits)
    """What a request and a client may ask for."""
    drain_seconds: float = 30.0
    """How long answers under way may go on after SIGTERM or Ctrl-C."""
    log_conversations: Path | None = None
    """Keep every request and answer in this file, a line of JSON each."""
    device_type: Literal["", "cuda", "mps", "cpu"] = ""
    """Where to compute; by itself it takes cuda, else mps, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The format of matrix products."""
    weights: Weights | None = None
    """How the matrices are held; unset: in the format of --dtype."""
    dry_run: bool = False
    """Print the plan and end."""


def main(config: Config) -> None:
    """Take the port, load one model per worker, serve until a signal."""
    check(config)
    if config.dry_run:
        what = config.source or "sft, else mid"
        workers = config.num_gpus * config.num_workers
        print(f"would serve the {what} checkpoint at {address(config.host, config.port)} by {workers} worker(s)")
        return
    with take_port(config.host, config.port) as listening:
        asyncio.run(serve(config, listening))


async def serve(config: Config, listening: socket.socket) -> None:
    """Start the workers, then the front, and end them in turn."""
    from nanochat.serving.app import create_app
    from nanochat.serving.journal import Journal
    from nanochat.serving.load import Load
    from nanochat.serving.pool import Handle, Pool
    from nanochat.serving.server import Server
    from nanochat.serving.wire import Facts
    from nanochat.serving.worker import start_process
    from nanochat.tokenizer import get_tokenizer

    workers = config.num_gpus * config.num_workers
    load = Load(
        config.source, config.model_tag, config.step, config.device_type, config.dtype, config.weights, config.max_rows,
        None if config.cache_gb is None else round(config.cache_gb * 2**30), config.tools, config.num_gpus, workers,
    )  # fmt: skip
    api_key = config.api_key or os.environ.get("NANOCHAT_API_KEY") or None
    journal = Journal(config.log_conversations) if config.log_conversations else None

    def launch(index: int, pinned: Facts | None, far_end: socket.socket) -> Handle:
        return start_process(load.of(index, pinned), far_end)

    pool = Pool(launch, workers, config.max_waiting, config.queue_seconds)
    try:
        await pool.start()
        facts = pool.facts
        app = create_app(
            pool,
            get_tokenizer(),
            name=f"nanochat-{facts['tag']}-{facts['stage']}",
            chats=bool(facts["chats"]),
            defaults=Defaults(config.temperature, config.top_k or None, max_tokens=config.max_tokens),
            limits=config.limits,
            api_key=api_key,
            allow_origins=config.allow_origins,
            journal=journal,
        )
        print(f"serving {facts['stage']} {facts['tag']}, step {facts['step']}, on {workers} x {facts['device']}")
        if api_key is None and not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
            print("whoever reaches this address may use it: ask for a key by NANOCHAT_API_KEY=... or --api_key")
        print(f"chat at {address(config.host, config.port)}  (Ctrl-C ends)", flush=True)
        server = Server(app, pool, config.limits.body_seconds, config.drain_seconds, list(config.trusted_proxies))
        await server.serve([listening])
    finally:
        await pool.close()
        if journal is not None:
            journal.close()


def check(config: Config) -> None:
    """Raise UserError for a flag that nothing can serve."""
    if not 0 <= config.temperature <= 2:
        raise UserError(f"--temperature must be between 0 and 2, got {config.temperature}")
    if config.top_k < 0:
        raise UserError(f"--top_k must be at least 0 (0 takes all tokens), got {config.top_k}")
    if not 1 <= config.max_tokens <= config.limits.max_tokens:
        raise UserError(f"--max_tokens must be between 1 and {config.limits.max_tokens}, got {config.max_tokens}")
    if config.cache_gb is not None and config.cache_gb <= 0:
        raise UserError(f"--cache_gb must be above 0, got {config.cache_gb}")
    check_tools(config.tools)
    if not 1 <= config.port <= 65535:
        raise UserError(f"--port must be between 1 and 65535, got {config.port}")
    for name, least in (
        ("num_gpus", 1),
        ("num_workers", 1),
        ("max_rows", 1),
        ("max_waiting", 0),
        ("queue_seconds", 0),
        ("drain_seconds", 0),
    ):
        if getattr(config, name) < least:
            flag = name.replace("_", "-") if name.startswith("num") else name
            raise UserError(f"--{flag} must be at least {least}, got {getattr(config, name)}")
    for name, value in vars(config.limits).items():
        least = 0 if name in ("requests_per_minute", "requests_at_once") else 1
        if value < least:
            raise UserError(f"--limits.{name} must be at least {least}, got {value}")


def take_port(host: str, port: int) -> socket.socket:
    """Listen on the port before anything slow happens. Raises UserError when it is taken or the host is not ours."""
    try:
        family, kind, protocol = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][:3]
        listening = socket.socket(family, kind, protocol)  # without TCP's number asyncio leaves its delays on
    except OSError as refusal:
        raise UserError(f"--host={host} is no address of this machine: {refusal.strerror}") from refusal
    try:
        if os.name == "posix":  # elsewhere the option would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as refusal:
        listening.close()
        if refusal.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} on {host} is in use; choose another, for example --port={port % 65535 + 1}"
            ) from None
        raise UserError(f"cannot listen on {host}:{port}: {refusal.strerror}") from refusal
    return listening


def address(host: str, port: int) -> str:
    """What to type into a browser on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/"


if __name__ == "__main__":
    command.run(main, Config)
