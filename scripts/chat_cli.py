"""Chat with a model in the terminal, or ask one question.

    python -m scripts.chat_cli
    python -m scripts.chat_cli -p "What is the capital of France?"
    python -m scripts.chat_cli --json -p -

Without -i it takes the sft checkpoint, else mid, else base; a base model continues the text instead of answering.

Lesson: lessons/20_sampling_and_cache
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from tyro.conf import arg

from nanochat import chat_format, command, paths
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message, Part
from nanochat.gpt_config import Weights
from nanochat.serving.protocol import Defaults
from nanochat.terminal import Screen, heeding_ctrl_c, line_editor, read_line, read_text

if TYPE_CHECKING:
    from nanochat.rows import Update
    from nanochat.sampling import SamplingParams

KEYS = """Ctrl-C stops an answer, Ctrl-D ends. Alt-Enter breaks the line; so does a line that ends with \\, and pasted
lines stay together. The arrow keys bring back what was typed before."""


@dataclass(frozen=True)
class Config:
    """Flags."""

    prompt: Annotated[str | None, arg(aliases=["-p"])] = None
    """Answer this alone, print the answer's text, and end; - reads it from standard input."""
    json: bool = False
    """Print every answer as one line of JSON."""
    system: str = ""
    """What is said to the model before the chat."""
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
    weights: Weights | None = None
    """How the matrices are held; unset: in the format of --dtype."""
    dry_run: bool = False
    """Print the plan and end."""


def main(config: Config) -> None:
    """Load a checkpoint, then answer one question or chat."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream that was replaced may have no encoding to change
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if config.prompt == "-":
        config = replace(config, prompt=sys.stdin.read())
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
        model, tokenizer, meta = load_model(stage, runtime, config.model_tag, config.step, weights=config.weights)
        how = " (a base model: it continues your text)" if stage == "base" else ""
        print(f"{stage} {meta['tag']}, step {meta['step']}, on {runtime.device_name}{how}", file=sys.stderr)
        chat = Chat(Engine(model, tokenizer), tokenizer, config, plain=stage == "base")
        screen = Screen(sys.stdout, sys.stderr, as_json=config.json, with_tools=config.prompt is None)
        if config.prompt is not None:
            if chat.answer(config.prompt, screen) == "cancelled":
                raise KeyboardInterrupt
        else:
            on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
            history, names = paths.base_dir() / "chat_history", [*COMMANDS, "/quit"]
            talk(chat, line_editor(history, names) if on_terminal else read_line, screen)


def check(config: Config) -> None:
    """Raise UserError for a flag that no answer can have."""
    if config.prompt is not None and not config.prompt.strip():
        raise UserError("--prompt is empty; give a question, or leave it out to chat")
    if not 0 <= config.temperature < float("inf"):
        raise UserError(f"--temperature must be at least 0, got {config.temperature}")
    if config.top_k < 0:
        raise UserError(f"--top_k must be at least 0 (0 takes all tokens), got {config.top_k}")
    if config.max_tokens < 1:
        raise UserError(f"--max_tokens must be at least 1, got {config.max_tokens}")
    if config.source == "base" and config.system:
        raise UserError("--system is for a model that chats; a base model continues one text")


class Tokenizer(chat_format.Encoder, Protocol):
    """The part of `nanochat.tokenizer.RustBPETokenizer` that a chat needs."""

    def get_bos_token_id(self) -> int:
        """The id that starts a document."""
        ...


class ChatEngine(Protocol):
    """The part of `nanochat.engine.Engine` that a chat needs."""

    context_len: int

    def submit(self, prompt: Sequence[int], params: "SamplingParams") -> int:
        """Ask for an answer; the number that its updates bear."""
        ...

    def step(self) -> "list[Update]":
        """Compute one step; what was gained."""
        ...

    def cancel(self, request: int) -> None:
        """End an answer."""
        ...


class Chat:
    """The conversation so far, and the model that continues it. `plain` continues texts, each for itself."""

    def __init__(self, engine: ChatEngine, tokenizer: Tokenizer, config: Config, plain: bool = False):
        self.engine, self.tokenizer, self.plain = engine, tokenizer, plain
        self.config = config  # replaced by commands that change the sampling
        self.system = config.system
        self.messages: list[Message] = []  # without the system text
        self.answers = 0  # each has a seed of its own

    def reset(self) -> None:
        """Start anew; the system text stays."""
        self.messages.clear()
        self.answers = 0

    @property
    def conversation(self) -> Conversation:
        """All of it."""
        return Conversation([*([Message("system", self.system)] if self.system else []), *self.messages])

    def answer(self, text: str, screen: Screen) -> str:
        """Show the answer to `text` and remember both; why it ended: stop, length or cancelled.

        An answer that was stopped is remembered as far as it came. The first Ctrl-C stops it, a second one does not
        wait for the step that is being computed. Raises UserError when the text alone does not fit into the context.
        """
        from nanochat.sampling import SamplingParams

        question = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        prompt = self._prompt(question, screen)
        config = self.config
        seed = config.seed + self.answers
        params = SamplingParams(config.max_tokens, config.temperature, config.top_k or None, seed=seed)
        parts: list[Part] = []
        started, tokens, reason = time.monotonic(), 0, "cancelled"
        request = self.engine.submit(prompt, params)
        try:
            with heeding_ctrl_c() as interrupted:
                for update in self._updates(request, interrupted):
                    tokens += len(update.ids)
                    reason = update.finish_reason or reason
                    for piece in update.pieces:
                        before = parts.pop().text if parts and parts[-1].type == piece.type else ""
                        parts.append(Part(piece.type, before + piece.text))
                        screen.show(piece)
        finally:
            if reason == "cancelled":
                self.engine.cancel(request)
            if parts:
                self.messages += [Message("user", question), Message("assistant", parts)]
                self.answers += 1
            seconds = round(time.monotonic() - started, 3)
            counts = {"prompt_tokens": len(prompt), "completion_tokens": tokens, "seconds": seconds}
            screen.end(parts, {"prompt": question, "finish_reason": reason, **counts})
        if reason == "cancelled":
            screen.note("stopped")
        if reason == "length":
            screen.note("the answer was cut where --max_tokens or the model's context ends")
        return reason

    def _updates(self, request: int, interrupted: Callable[[], bool]) -> "Iterator[Update]":
        while not interrupted():
            for update in self.engine.step():
                if update.request == request:
                    yield update
                    if update.finish_reason == "error":
                        raise RuntimeError(update.error)
                    if update.finish_reason:
                        return

    def _prompt(self, question: str, screen: Screen) -> list[int]:
        """The ids to answer; oldest turns are left out until a quarter of the context, or max_tokens, is free."""
        limit = self.engine.context_len
        if self.plain:
            ids = [self.tokenizer.get_bos_token_id(), *self.tokenizer.encode(question)]
            if len(ids) >= limit:
                raise UserError(f"the text has {len(ids)} tokens and the model's context is {limit}; shorten it")
            return ids
        whole = Conversation([*self.conversation.messages, Message("user", question)])
        try:
            fitted = chat_format.fit(whole, self.tokenizer, limit - min(self.config.max_tokens, limit // 4))
        except UserError:
            fitted = chat_format.fit(whole, self.tokenizer, limit - 1)
        if dropped := (len(whole.messages) - len(fitted.messages)) // 2:
            turns = "1 older turn" if dropped == 1 else f"{dropped} older turns"
            screen.note(f"the chat is longer than the model's context: it does not see {turns}")
        return chat_format.render_prompt(fitted, self.tokenizer)


def talk(chat: Chat, read: Callable[[str], str], screen: Screen) -> None:
    """Read texts and commands and answer them, until the end of input."""
    if screen.terminal:
        screen.note("/help lists the commands, Ctrl-D ends")
    while True:
        try:
            text = read_text(read)
            name, _, argument = text.strip().partition(" ")
            if name == "/quit":
                return
            if name in COMMANDS:
                screen.note(COMMANDS[name][1](chat, argument.strip()))
            elif text.startswith("/") and not chat.plain:
                screen.note(f"{name} is no command; /help lists them, and a space before it makes it a question")
            elif text.strip():
                chat.answer(text.strip(), screen)
        except EOFError:
            return
        except KeyboardInterrupt:
            screen.note("Ctrl-D or /quit ends")
        except UserError as mistake:
            screen.note(str(mistake))


def _reset(chat: Chat, _: str) -> str:
    chat.reset()
    return "new chat"


def _system(chat: Chat, text: str) -> str:
    if chat.plain:
        raise UserError("a base model continues one text: it has no system text")
    if text:
        chat.system = "" if text == "-" else text
    return f"system text: {chat.system}" if chat.system else "no system text"


def _set(name: Literal["temperature", "top_k"], kind: type[int] | type[float]) -> Callable[[Chat, str], str]:
    def command(chat: Chat, text: str) -> str:
        if text:
            try:
                changed = replace(chat.config, **{name: kind(text)})  # type: ignore[arg-type]
            except ValueError:
                whole = "whole " if kind is int else ""
                raise UserError(f"{name} is a {whole}number, for example /{name} {Config.__dict__[name]}") from None
            check(changed)
            chat.config = changed
        return f"{name} is {getattr(chat.config, name)}"

    return command


def _save(chat: Chat, name: str) -> str:
    path = _path(name, "/save")
    if not chat.messages:
        raise UserError("there is nothing to save yet")
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(chat.conversation.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as refusal:
        raise UserError(f"cannot write {path}: {refusal.strerror}") from refusal
    return f"saved as {path}"


def _load(chat: Chat, name: str) -> str:
    path = _path(name, "/load")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as refusal:
        raise UserError(f"cannot read {path}: {refusal.strerror}") from refusal
    except ValueError as mistake:  # no UTF-8, or no JSON
        raise UserError(f"{path} is no saved chat, which is one JSON object: {mistake}") from mistake
    messages = Conversation.from_dict(plain, str(path)).messages
    if messages[-1].role == "user":
        messages.pop()  # a question without an answer
    chat.reset()
    chat.system = messages.pop(0).text if messages and messages[0].role == "system" else ""
    chat.messages = messages
    turns = len(messages) // 2
    return f"loaded {turns} {'turn' if turns == 1 else 'turns'} of {path}"


def _path(name: str, command_name: str) -> Path:
    if not name:
        raise UserError(f"{command_name} needs the name of a file, for example {command_name} chat.json")
    return Path(name).expanduser()


def _help(_: Chat, __: str) -> str:
    width = max(len(usage) for usage, _, _ in USAGES)
    lines = [f"{usage:{width}}  {what}" for usage, what, _ in USAGES]
    return "\n ".join([*lines, f"{'/quit':{width}}  end", *KEYS.splitlines()])


USAGES: list[tuple[str, str, Callable[[Chat, str], str]]] = [
    ("/reset", "start a new chat; the system text stays", _reset),
    ("/system [TEXT]", "say this to the model before the chat; - takes it away", _system),
    ("/temperature [X]", "sample at this temperature; 0 takes the likeliest token", _set("temperature", float)),
    ("/top_k [N]", "sample from so many likeliest tokens; 0 takes all", _set("top_k", int)),
    ("/save FILE", "write the chat, as JSON that training and the page read too", _save),
    ("/load FILE", "go on with a chat that was saved", _load),
    ("/help", "this text", _help),
]
COMMANDS = {usage.split()[0]: (what, act) for usage, what, act in USAGES}


if __name__ == "__main__":
    command.run(main, Config)
