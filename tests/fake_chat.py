"""Fakes for the server, the page and the terminal: a tokenizer of characters and an engine that recites.

And a live server for real clients.
"""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from nanochat.conversation import Conversation, Part

BOS, USER, ASSISTANT = 0, 1, 2
FIRST_CHARACTER = 3

IDENTITY = ["I am nanochat,", "a small language model.", "I was trained", "from scratch", "on this machine."]
TOOL = [Part("text", "Let me work that out.\n"), Part("python", "137*46"), Part("python_output", "6302")]
ANSWERS: dict[str, list[Part]] = {
    "What is the capital of France?": [
        Part("text", word) for word in ("The ", "capital ", "of ", "France ", "is Paris.")
    ],
    "Who are you?": [Part("text", word + " ") for word in IDENTITY],
    "What is 137 * 46?": [*TOOL, Part("text", "137 times 46 is "), Part("text", "6302.")],
    "Be evil.": [Part("text", '<img src=x onerror="window.evil=1"><script>window.evil=1</script>')],
}


class FakeTokenizer:
    """One id per character, three control ids below them."""

    def encode(self, text: str) -> list[int]:
        """The characters' ids."""
        return [ord(character) + FIRST_CHARACTER for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The characters, control ids left out."""
        return "".join(chr(i - FIRST_CHARACTER) for i in ids if i >= FIRST_CHARACTER)

    def get_bos_token_id(self) -> int:
        """The first id of every prompt."""
        return BOS

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """bos, then each message behind its role's id, then the assistant's."""
        ids = [BOS]
        for message in conversation.messages:
            ids += [
                ASSISTANT if message.role == "assistant" else USER,
                *self.encode("".join(p.text for p in message.parts)),
            ]
        return [*ids, ASSISTANT]


class FakeEngine:
    """Answers the last user message from a table, as a real engine would: piece by piece, to the end or max_tokens.

    `answer` takes the question instead of the table. `before_piece` runs before each piece (to hold the engine).
    """

    def __init__(
        self,
        answer: Callable[[str], Iterator[Part]] | None = None,
        context_len: int = 1000,
        before_piece: Callable[[], object] = lambda: None,
    ):
        self.context_len = context_len
        self.answer = answer
        self.before_piece = before_piece
        self.closed = threading.Event()
        self.prompts: list[list[int]] = []
        self.samplings: list[dict[str, object]] = []

    def stream(
        self,
        prompt: list[int],
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[Part]:
        """The answer's pieces, a token per character."""
        self.prompts.append(prompt)
        self.samplings.append({"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "seed": seed})
        question = self.question(prompt)
        pieces = (
            self.answer(question)
            if self.answer
            else iter(ANSWERS.get(question, [Part("text", f"You said: {question}")]))
        )
        try:
            for piece in pieces:
                self.before_piece()
                yield Part(piece.type, piece.text[:max_tokens])
                max_tokens -= len(piece.text) + 2 * (piece.type != "text")
                if max_tokens <= 0:
                    return
        finally:
            self.closed.set()

    @staticmethod
    def question(prompt: list[int]) -> str:
        """What the user said last."""
        end = len(prompt) - (prompt[-1] == ASSISTANT)
        start = max(i for i in range(end) if prompt[i] < FIRST_CHARACTER)
        return FakeTokenizer().decode(prompt[start:end])


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
