"""Chat in the browser, and serve the model to OpenAI's clients.

    python -m scripts.chat_web
    python -m scripts.chat_web --num-gpus 4 --host 0.0.0.0 --port 8000

The address that it prints shows the page; /v1/chat/completions answers clients. Without -i it takes sft, else mid.
"""

import errno
import os
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from nanochat import command
from nanochat.command import UserError
from nanochat.serving.protocol import Defaults, Limits

if TYPE_CHECKING:
    from nanochat.runtime import Runtime


@dataclass(frozen=True)
class Config:
    """Flags."""

    source: Annotated[Literal["mid", "sft", "rl"] | None, arg(aliases=["-i"])] = None
    """The stage to load."""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """The model's tag, for example d4; the newest when not given."""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """The step; the last one when not given."""
    num_gpus: Annotated[int, arg(aliases=["-n"])] = 1
    """How many GPUs serve, each with an engine of its own; 1 on CPU."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: Annotated[int, arg(aliases=["-p"])] = 8000
    """The port to listen on."""
    temperature: Annotated[float, arg(aliases=["-t"])] = Defaults.temperature
    """Sampling temperature where a request does not say."""
    top_k: Annotated[int, arg(aliases=["-k"])] = Defaults.top_k or 0
    """Sample from this many likeliest tokens where a request does not say; 0 takes all."""
    max_tokens: Annotated[int, arg(aliases=["-m"])] = Defaults.max_tokens
    """Length of an answer where a request does not say."""
    device_type: Literal["", "cuda", "mps", "cpu"] = ""
    """Where to compute; by itself it takes cuda, else mps, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The format of matrix products."""
    dry_run: bool = False
    """Print the plan and end."""


def main(config: Config) -> None:
    """Take the port, load one model per device, serve until Ctrl-C."""
    check(config)
    if config.dry_run:
        what = config.source or "sft, else mid"
        print(
            f"would serve the {what} checkpoint at {address(config.host, config.port)} by {config.num_gpus} engine(s)"
        )
        return
    with take_port(config.host, config.port) as listening:
        import uvicorn

        from nanochat.checkpoint_manager import load_model
        from nanochat.engine import Engine
        from nanochat.runtime import Runtime
        from nanochat.serving.app import create_app
        from nanochat.serving.pool import Pool

        stage = config.source or choose_stage()
        with Runtime.start(device_type=config.device_type, dtype=config.dtype) as runtime:
            loaded = [
                load_model(stage, one, config.model_tag, config.step) for one in devices(runtime, config.num_gpus)
            ]
            _, tokenizer, meta = loaded[0]
            app = create_app(
                Pool([Engine(model, its_tokenizer) for model, its_tokenizer, _ in loaded]),
                tokenizer,
                name=f"nanochat-{meta['tag']}-{stage}",
                defaults=Defaults(config.temperature, config.top_k or None, config.max_tokens),
            )
            print(f"serving {stage} {meta['tag']}, step {meta['step']}, on {len(loaded)} x {runtime.device_name}")
            print(f"chat at {address(config.host, config.port)}  (Ctrl-C ends)", flush=True)
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
            server.run(sockets=[listening])


def check(config: Config) -> None:
    """Raise UserError for a flag that nothing can serve."""
    if not 0 <= config.temperature <= 2:
        raise UserError(f"--temperature must be between 0 and 2, got {config.temperature}")
    if config.top_k < 0:
        raise UserError(f"--top_k must be at least 0 (0 takes all tokens), got {config.top_k}")
    if not 1 <= config.max_tokens <= Limits.max_tokens:
        raise UserError(f"--max_tokens must be between 1 and {Limits.max_tokens}, got {config.max_tokens}")
    if not 1 <= config.port <= 65535:
        raise UserError(f"--port must be between 1 and 65535, got {config.port}")
    if config.num_gpus < 1:
        raise UserError(f"--num-gpus must be at least 1, got {config.num_gpus}")


def take_port(host: str, port: int) -> socket.socket:
    """Listen on the port before anything slow happens. Raises UserError when it is taken or the host is not ours."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as refusal:
        raise UserError(f"--host={host} is no address of this machine: {refusal.strerror}") from refusal
    try:
        if os.name == "posix":  # elsewhere the option would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as refusal:
        listening.close()
        if refusal.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} on {host} is in use; choose another, for example --port={port % 65535 + 1}"
            ) from None
        raise UserError(f"cannot listen on {host}:{port}: {refusal.strerror}") from refusal
    return listening


def choose_stage() -> str:
    """The best stage that knows how to chat. Raises UserError when there is none."""
    from nanochat.checkpoint_manager import newest_stage

    stage = newest_stage(("sft", "mid", "base"))
    if stage == "base":
        raise UserError(
            "there is only a base checkpoint, which continues text and cannot chat: run `python -m scripts.mid_train`"
            " first, or let it continue a text by `python -m scripts.chat_cli -i base`"
        )
    return stage or "base"  # when there is nothing, load_model names the first command


def devices(runtime: "Runtime", count: int) -> list["Runtime"]:
    """One runtime per engine. Raises UserError when there are fewer devices."""
    import torch

    present = torch.cuda.device_count() if runtime.device.type == "cuda" else 1
    if count > present:
        raise UserError(
            f"--num-gpus={count}, but there is {present} {runtime.device.type} device here; at most {present}"
        )
    if count == 1:
        return [runtime]
    return [replace(runtime, device=torch.device(runtime.device.type, index)) for index in range(count)]


def address(host: str, port: int) -> str:
    """What to type into a browser on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/"


if __name__ == "__main__":
    command.run(main, Config)
