"""Chat with a model in the terminal, or ask one question.

    python -m scripts.chat_cli
    python -m scripts.chat_cli -p "What is the capital of France?"

Without -i it takes the sft checkpoint, else mid, else base; a base model continues the text instead of answering.
"""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TextIO

from tyro.conf import arg

from nanochat import command
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message, Part
from nanochat.serving.protocol import Defaults
from nanochat.transcript import Piece

HELP = """/clear  start a new chat
/help   this text
/quit   end (as does Ctrl-D); Ctrl-C stops an answer"""


@dataclass(frozen=True)
class Config:
    """Flags."""

    prompt: Annotated[str | None, arg(aliases=["-p"])] = None
    """Answer this alone, print the answer's text, and end."""
    source: Annotated[Literal["base", "mid", "sft", "rl"] | None, arg(aliases=["-i"])] = None
    """The stage to load."""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """The model's tag, for example d4; the newest when not given."""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """The step; the last one when not given."""
    temperature: Annotated[float, arg(aliases=["-t"])] = Defaults.temperature
    """Sampling temperature; 0 takes the likeliest token always."""
    top_k: Annotated[int, arg(aliases=["-k"])] = Defaults.top_k or 0
    """Sample from this many likeliest tokens; 0 takes all."""
    max_tokens: Annotated[int, arg(aliases=["-m"])] = Defaults.max_tokens
    """Length of an answer at most."""
    seed: int = 42
    """The same seed, the same answers."""
    device_type: Literal["", "cuda", "mps", "cpu"] = ""
    """Where to compute; by itself it takes cuda, else mps, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The format of matrix products."""
    dry_run: bool = False
    """Print the plan and end."""


def main(config: Config) -> None:
    """Load a checkpoint, then answer one question or chat."""
    check(config)
    if config.dry_run:
        what = "answer one prompt" if config.prompt is not None else "chat"
        print(f"would load the {config.source or 'sft, else mid, else base'} checkpoint and {what}")
        return
    from nanochat.checkpoint_manager import load_model, newest_stage
    from nanochat.engine import Engine
    from nanochat.runtime import Runtime

    stage = config.source or newest_stage() or "base"  # when there is nothing, load_model names the first command
    with Runtime.start(device_type=config.device_type, dtype=config.dtype, seed=config.seed) as runtime:
        model, tokenizer, meta = load_model(stage, runtime, config.model_tag, config.step)
        how = " (a base model: it continues your text)" if stage == "base" else ""
        print(f"{stage} {meta['tag']}, step {meta['step']}, on {runtime.device_name}{how}", file=sys.stderr)
        chat = Chat(Engine(model, tokenizer), tokenizer, config, plain=stage == "base")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError):  # a stream that was replaced may have no encoding to change
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        if config.prompt is not None:
            chat.answer(config.prompt, Screen(sys.stdout, with_tools=False), sys.stderr)
        else:
            with contextlib.suppress(ImportError):  # line editing for input(), where the platform has it
                import readline  # noqa: F401
            talk(chat, input, sys.stdout)


def check(config: Config) -> None:
    """Raise UserError for a flag that no answer can have."""
    if config.prompt is not None and not config.prompt.strip():
        raise UserError("--prompt is empty; give a question, or leave it out to chat")
    if config.temperature < 0:
        raise UserError(f"--temperature must be at least 0, got {config.temperature}")
    if config.top_k < 0:
        raise UserError(f"--top_k must be at least 0 (0 takes all tokens), got {config.top_k}")
    if config.max_tokens < 1:
        raise UserError(f"--max_tokens must be at least 1, got {config.max_tokens}")


class Tokenizer(Protocol):
    """The part of `nanochat.tokenizer.RustBPETokenizer` that a chat needs."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...

    def get_bos_token_id(self) -> int:
        """The id that starts a document."""
        ...

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """The ids of the conversation up to where the assistant speaks."""
        ...


class StreamingEngine(Protocol):
    """The part of `nanochat.engine.Engine` that a chat needs."""

    @property
    def context_len(self) -> int:
        """Most tokens that prompt and answer may have together."""
        ...

    def stream(
        self, prompt: list[int], /, *, max_tokens: int, temperature: float, top_k: int | None, seed: int
    ) -> Iterator[Piece]:
        """Generate the answer to `prompt`, piece by piece; closing the iterator ends the generation."""
        ...


class Chat:
    """The conversation so far, and the model that continues it. `plain` continues texts, each for itself."""

    def __init__(self, engine: StreamingEngine, tokenizer: Tokenizer, config: Config, plain: bool = False):
        self.engine, self.tokenizer, self.config, self.plain = engine, tokenizer, config, plain
        self.messages: list[Message] = []
        self.turns = 0

    def clear(self) -> None:
        """Start anew."""
        self.messages.clear()
        self.turns = 0

    def answer(self, text: str, screen: "Screen", notices: TextIO) -> None:
        """Show the answer to `text` and remember both; an answer that was stopped is remembered as far as it came.

        Raises UserError when the text alone does not fit into the context.
        """
        self.messages.append(Message("user", text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")))
        parts: list[Part] = []
        try:
            prompt = self._fit(notices)
            for piece in self.engine.stream(
                prompt,
                max_tokens=self.config.max_tokens,
                temperature=self.config.temperature,
                top_k=self.config.top_k or None,
                seed=self.config.seed + self.turns,
            ):
                before = parts.pop().text if parts and parts[-1].type == piece.type else ""
                parts.append(Part(piece.type, before + piece.text))
                screen.show(piece)
        finally:
            if parts:
                screen.end()
                self.messages.append(Message("assistant", parts))
                self.turns += 1
            else:
                self.messages.pop()

    def _fit(self, notices: TextIO) -> list[int]:
        """The prompt; oldest turns are dropped until a quarter of the context, or max_tokens, is free."""
        room = self.engine.context_len - min(self.config.max_tokens, self.engine.context_len // 4)
        dropped = 0
        while len(prompt := self._render()) > room and len(self.messages) > 1:
            del self.messages[:2]
            dropped += 1
        if dropped:
            print(f"(the chat outgrew the model's context: {dropped} oldest turn(s) dropped)", file=notices)
        if len(prompt) >= self.engine.context_len:
            limit = self.engine.context_len
            raise UserError(f"the text has {len(prompt)} tokens and the model's context is {limit}; shorten it")
        return prompt

    def _render(self) -> list[int]:
        if self.plain:
            del self.messages[:-1]
            return [self.tokenizer.get_bos_token_id(), *self.tokenizer.encode(self.messages[-1].text)]
        return self.tokenizer.render_for_completion(Conversation(self.messages))


class Screen:
    """Shows pieces as they come: text as it is, a tool call as `[137*46 = 6302]`, dim on a terminal."""

    def __init__(self, out: TextIO, with_tools: bool = True):
        self.out, self.with_tools = out, with_tools
        self.terminal = out.isatty()
        colour = self.terminal and "NO_COLOR" not in os.environ
        self.dim, self.bright = ("\x1b[2m", "\x1b[0m") if colour else ("", "")
        self.last = "text"

    def show(self, piece: Piece) -> None:
        """Write one piece."""
        if piece.type == "text":
            self._close_call()
            self._write(piece.text)
        elif self.with_tools:
            if piece.type != self.last:
                if piece.type == "python":
                    self._close_call()
                self.out.write(f"{self.dim}[" if piece.type == "python" or self.last == "text" else " = ")
            self._write(piece.text)
        self.last = piece.type
        self.out.flush()

    def end(self) -> None:
        """End the line."""
        self._close_call()
        self.last = "text"
        self.out.write("\n")
        self.out.flush()

    def _close_call(self) -> None:
        if self.with_tools and self.last != "text":
            self.out.write(f"]{self.bright}")

    def _write(self, text: str) -> None:
        # A model may spell the codes that move a terminal's cursor or rename its window: they stay out of it.
        shown = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
        self.out.write(shown if self.terminal else text)


def talk(chat: Chat, read: Callable[[str], str], out: TextIO) -> None:
    """Read lines and answer them until the end of input."""
    screen = Screen(out)
    print("/help lists the commands, Ctrl-D ends.", file=out)
    while True:
        try:
            line = read("\n> ").strip()
        except EOFError:
            print(file=out)
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit ends)", file=out)
            continue
        if line == "/quit":
            return
        if line == "/clear":
            chat.clear()
            print("(new chat)", file=out)
        elif line == "/help":
            print(HELP, file=out)
        elif line.startswith("/") and not chat.plain:
            print(f"({line.split()[0]} is no command; /help lists them)", file=out)
        elif line:
            try:
                chat.answer(line, screen, out)
            except KeyboardInterrupt:
                print("(stopped)", file=out)
            except UserError as mistake:
                print(f"({mistake})", file=out)


if __name__ == "__main__":
    command.run(main, Config)
