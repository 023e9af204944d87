"""Fakes for the server and the terminal: a tokenizer of characters and an engine that recites. Light to import."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanochat import chat_format
from nanochat.command import UserError
from nanochat.conversation import Conversation, Part
from nanochat.serving.wire import Facts
from nanochat.transcript import Piece

if TYPE_CHECKING:
    from nanochat.rows import TokenLogprob, Update
    from nanochat.sampling import SamplingParams

SPECIALS = ["bos", "user_start", "user_end", "assistant_start", "assistant_end"]
SPECIALS += ["python_start", "python_end", "output_start", "output_end"]
NAMES = [f"<|{name}|>" for name in SPECIALS]
FIRST_CHARACTER = len(NAMES)

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
    """One id per character, nine control ids below them."""

    def encode(self, text: str) -> list[int]:
        """The characters' ids."""
        return [ord(character) + FIRST_CHARACTER for character in text]

    def encode_special(self, name: str) -> int:
        """A control token's id."""
        return NAMES.index(name)

    def decode(self, ids: Iterable[int]) -> str:
        """The characters, control ids by their names."""
        return "".join(NAMES[i] if i < FIRST_CHARACTER else chr(i - FIRST_CHARACTER) for i in ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The same in UTF-8."""
        return self.decode(ids).encode()

    def get_special_tokens(self) -> set[str]:
        """The control tokens' names."""
        return set(NAMES)

    def get_vocab_size(self) -> int:
        """All of Unicode."""
        return FIRST_CHARACTER + 0x110000

    def get_bos_token_id(self) -> int:
        """The first id of every prompt."""
        return 0

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """As the real one."""
        return chat_format.render_prompt(conversation, self)

    def render_conversation(self, conversation: Conversation, max_tokens: int = 2048) -> tuple[list[int], list[int]]:
        """As the real one."""
        return chat_format.render_conversation(conversation, self, max_tokens)


@dataclass
class FakeStats:
    """What a fake engine has to say of itself."""

    running: int
    waiting: int
    max_rows: int


@dataclass
class _Row:
    request: int
    sample: int
    params: "SamplingParams"
    prompt: list[int]
    pieces: Iterator[Part]
    said: int = 0


@dataclass
class FakeEngine:
    """Answers the last user message from a table, one piece a step for each row, to the end or max_tokens.

    `answer` takes the question instead of the table. `before_step` runs before each step that does something (to hold
    the engine, or to break it). Every character is a token, and so are the marks around a tool's pieces.
    """

    answer: Callable[[str], Iterable[Part]] | None = None
    context_len: int = 1000
    before_step: Callable[[], object] = lambda: None
    max_rows: int = 4
    prompts: list[list[int]] = field(default_factory=list)
    params: "list[SamplingParams]" = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    rows: list[_Row] = field(default_factory=list)
    most_rows: int = 0
    tidied: int = 0

    def submit(self, prompt: Sequence[int], params: "SamplingParams", n: int = 1) -> int:
        """Take a prompt."""
        from nanochat.rows import ContextOverflow

        if len(prompt) + (params.max_tokens > 0) > self.context_len:
            raise ContextOverflow(f"the prompt has {len(prompt)} tokens")
        request = len(self.prompts)
        self.prompts.append(list(prompt))
        self.params.append(params)
        question = self.question(self.prompts[-1])
        for sample in range(n):
            pieces = (
                self.answer(question) if self.answer else ANSWERS.get(question, [Part("text", f"You said: {question}")])
            )
            self.rows.append(_Row(request, sample, params, self.prompts[-1], iter(pieces)))
        return request

    @property
    def busy(self) -> bool:
        """Whether there are rows."""
        return bool(self.rows)

    def step(self) -> "list[Update]":
        """One piece for every row that is running."""
        if not self.rows:
            return []
        self.before_step()
        running = self.rows[: self.max_rows]
        self.most_rows = max(self.most_rows, len(running))
        updates = [self._update(row) for row in running]
        ended = {(update.request, update.sample) for update in updates if update.finish_reason}
        self.rows = [row for row in self.rows if (row.request, row.sample) not in ended]
        return updates

    def cancel(self, request: int) -> None:
        """Forget a prompt."""
        self.cancelled.append(request)
        self.rows = [row for row in self.rows if row.request != request]

    def stats(self) -> FakeStats:
        """How many rows there are."""
        return FakeStats(min(len(self.rows), self.max_rows), max(0, len(self.rows) - self.max_rows), self.max_rows)

    def tidy(self) -> None:
        """Note that it was asked to."""
        self.tidied += 1

    def stream(
        self,
        prompt: list[int],
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[Piece]:
        """The pieces of one answer."""
        from nanochat.sampling import SamplingParams

        self.submit(prompt, SamplingParams(max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed))
        while self.busy:
            for update in self.step():
                yield from update.pieces

    @staticmethod
    def question(prompt: list[int]) -> str:
        """What the user said last; of a prompt that is no conversation, all of it."""
        text = FakeTokenizer().decode(prompt)
        return text.rpartition("<|user_start|>")[2].partition("<|user_end|>")[0].removeprefix("<|bos|>")

    def _update(self, row: _Row) -> "Update":
        from nanochat.rows import Update

        first = row.said == 0
        scored = row.params.prompt_logprobs
        read = None
        if first and row.sample == 0 and scored is not None:
            read = tuple(logprob(id, scored) if place else None for place, id in enumerate(row.prompt))
        room = min(row.params.max_tokens, self.context_len - len(row.prompt)) - row.said
        piece = next(row.pieces, None) if room else None
        if piece is None:
            return Update(row.request, row.sample, prompt_logprobs=read, finish_reason="stop" if room else "length")
        text = piece.text[:room]
        ids = FakeTokenizer().encode(text)
        if piece.type != "text":
            ids = [5 if piece.type == "python" else 7, *ids, 6 if piece.type == "python" else 8]
        row.said += len(ids)
        wanted = row.params.logprobs
        return Update(
            row.request, row.sample, (Piece(piece.type, text),), tuple(ids), (1,) * len(ids),
            tuple(logprob(id, wanted) for id in ids) if wanted is not None else (), read,
            "length" if len(ids) >= room else None,
        )  # fmt: skip


def logprob(id: int, alternatives: int) -> "TokenLogprob":
    """Every id has the same one, and others beside it are less likely."""
    from nanochat.rows import TokenLogprob

    return TokenLogprob(id, -0.25, tuple((id + place, -0.25 - place) for place in range(alternatives)))


def endless(_: str) -> Iterator[Part]:
    """An answer that never ends by itself, a letter a step."""
    while True:
        yield Part("text", "x")


def slow() -> None:
    """Before a step: a step that takes its time."""
    time.sleep(0.002)


def talker() -> FakeEngine:
    """An engine whose answers never end by themselves."""
    return FakeEngine(endless, context_len=10**9, before_step=slow)


@contextmanager
def make_endless() -> Iterator[tuple[FakeEngine, Facts]]:
    """For a worker process."""
    yield talker(), {"step": 1}


@contextmanager
def make_nothing() -> Iterator[tuple[FakeEngine, Facts]]:
    """For a worker process: a person's mistake."""
    raise UserError("there is no model")
    yield
