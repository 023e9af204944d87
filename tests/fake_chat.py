"""A pool whose workers are threads over fake engines, a live server for real clients, a checkpoint that babbles."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fake_engine import ANSWERS, FIRST_CHARACTER, NAMES, FakeEngine, FakeTokenizer, endless, logprob, talker
from fastapi import FastAPI

from nanochat.serving import worker
from nanochat.serving.pool import Pool
from nanochat.serving.wire import Facts

__all__ = ["ANSWERS", "FIRST_CHARACTER", "NAMES", "FakeEngine", "FakeTokenizer", "endless", "logprob", "talker"]


class WorkerThread:
    """A worker's loop in a thread, in the place of a process."""

    def __init__(self, engine: FakeEngine, far_end: socket.socket, facts: Facts):
        self._connection = far_end.dup()
        self._thread = threading.Thread(target=self._run, args=(engine, facts), daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """As if it had died: nothing is heard of it any more."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread, but not for one that was killed."""
        self._thread.join(timeout)

    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def _run(self, engine: FakeEngine, facts: Facts) -> None:
        with self._connection, suppress(EOFError, OSError, WorkerDeath):
            worker.serve(engine, self._connection, facts)


class WorkerDeath(Exception):
    """Raised by a test's engine to end its worker."""


def pool_of(*engines: object, max_waiting: int = 32, facts: Facts | None = None) -> Pool:
    """A pool whose workers are threads over these engines; one that died is started anew with its engine emptied."""
    given = engines or (FakeEngine(),)

    def launch(index: int, pinned: Facts | None, far_end: socket.socket) -> WorkerThread:
        engine = given[index]
        if isinstance(engine, FakeEngine):
            engine.rows.clear()
        return WorkerThread(engine, far_end, facts or {})  # type: ignore[arg-type]

    return Pool(launch, len(given), max_waiting)


@contextmanager
def live_server(app: FastAPI) -> Iterator[str]:
    """The app behind uvicorn, in a thread, on a port that was free; yields its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()  # clients that come early wait in the socket's queue
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait(true: Callable[[], bool]) -> bool:
    """Whether something becomes true: within two minutes, so that a test that would hang fails."""
    pause = threading.Event()
    return any(true() or pause.wait(0.01) for _ in range(12_000))


def save_random_checkpoint(stage: str, context_len: int = 128) -> None:
    """A real tokenizer and a real, untrained model in the base directory: it babbles through every room."""
    import torch

    from nanochat import paths
    from nanochat.checkpoint_files import save_checkpoint
    from nanochat.checkpoint_manager import tokenizer_sha256
    from nanochat.gpt import GPT
    from nanochat.gpt_config import config_for_depth
    from nanochat.tokenizer import RustBPETokenizer

    if not paths.tokenizer_dir().exists():
        text = "The capital of France is Paris. Who are you? What is 137 * 46? The sky is blue."
        RustBPETokenizer.train_from_iterator([text], vocab_size=300).save(paths.tokenizer_dir())
    vocab_size = RustBPETokenizer.from_directory(paths.tokenizer_dir()).get_vocab_size()
    config = config_for_depth(1, vocab_size=vocab_size, sequence_len=context_len)
    model = GPT(config, torch.float32)
    model.init_weights()
    meta = {"model": config.to_dict(), "tokenizer_sha256": tokenizer_sha256()}
    save_checkpoint(paths.checkpoints_dir(stage, "d1"), 7, model.state_dict(), meta)
