"""One sample under way: what it has said, what its next id means, and what is told about it.

Lesson: lessons/20_sampling_and_cache
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from nanochat.command import UserError
from nanochat.sampling import SamplingParams, Seen
from nanochat.tokenizer import RustBPETokenizer
from nanochat.tools import run_tool
from nanochat.transcript import Marks, Piece, Transcript


class ContextOverflow(UserError):
    """The prompt leaves no room for an answer."""


FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """An id's logarithm of its probability, and the likeliest ids in its place with theirs, likeliest first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Update:
    """What one sample gained in one step."""

    request: int
    """The number that `submit` returned."""
    sample: int
    """Which of the request's n samples."""
    pieces: tuple[Piece, ...] = ()
    """Whole characters. They may lag behind the ids: half a character and what may become a stop text wait."""
    ids: tuple[int, ...] = ()
    """Sampled or forced by the tool; the id that ended the answer is among them."""
    mask: tuple[int, ...] = ()
    """1 where the id was sampled, 0 where it was forced."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per id, when asked for."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """Once, with the first update of sample 0, when asked for; None for the first id, which nothing precedes."""
    finish_reason: FinishReason | None = None
    """Why it ended, in its last update."""
    error: str | None = None
    """What went wrong, when the reason is `error`."""


@dataclass(frozen=True)
class Speech:
    """What is needed to understand ids: their bytes, the marks among them, and the names of tools that are on."""

    tokenizer: RustBPETokenizer
    marks: Marks
    tools: Sequence[str] = ()


@dataclass(eq=False)
class Row:
    """One sample. `tokens` are the prompt's and the answer's ids, of which the answer may have `room`."""

    request: int
    sample: int
    params: SamplingParams
    speech: Speech
    tokens: list[int]
    prompt_tokens: int
    room: int
    random: random.Random
    keep: bool
    """Whether what was read of it is to be kept when it ends."""
    seen: Seen | None = None
    transcript: Transcript | None = None
    forced: deque[int] = field(default_factory=deque)
    """Ids of a tool's answer that come next, whatever is sampled."""
    call: list[int] | None = None
    """What has been sent to a tool so far."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None

    @property
    def most_tokens(self) -> int:
        """What prompt and answer may have together."""
        return self.prompt_tokens + self.room

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's logprobs are asked for, and to be told with this sample."""
        return self.params.prompt_logprobs is not None and self.sample == 0

    def take(self, token: int, logprob: TokenLogprob | None) -> Update:
        """Take the next id, if there is room for one; what was gained. A negative one says that there is none."""
        prompt_logprobs = None if self.prompt_logprobs is None else tuple(self.prompt_logprobs)
        self.prompt_logprobs = None
        if token < 0:
            self.finish_reason, self.keep = "error", False
            return Update(self.request, self.sample, finish_reason="error", error="the model's logits are no numbers")
        if self.room == 0:
            self.finish_reason = "length"
            return Update(self.request, self.sample, prompt_logprobs=prompt_logprobs, finish_reason="length")
        forced = bool(self.forced)
        if forced:
            self.forced.popleft()
        self.tokens.append(token)
        if self.seen is not None:
            self.seen.add(token)
        if not forced:
            self._understand(token)
        pieces = self._speak(token)
        if self.finish_reason is None and len(self.tokens) == self.most_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None and self.transcript is not None:
            self.transcript.end()
            pieces += self.transcript.drain()
        return Update(
            self.request,
            self.sample,
            pieces,
            (token,),
            (0 if forced else 1,),
            () if logprob is None else (logprob,),
            prompt_logprobs,
            self.finish_reason,
        )

    def _understand(self, token: int) -> None:
        """What a sampled id does: end the answer, call a tool."""
        marks = self.speech.marks
        if token in marks.ends or token in self.params.stop_ids:
            self.finish_reason = "stop"
        elif not self.params.tools:
            return
        elif token == marks.python_start:
            self.call = []
        elif token == marks.python_end and self.call is not None:
            answer = run_tool(self.speech.tokenizer.decode(self.call), self.speech.tools)
            self.forced.extend([marks.output_start, *self.speech.tokenizer.encode(answer), marks.output_end])
            self.call = None
        elif self.call is not None:
            self.call.append(token)

    def _speak(self, token: int) -> tuple[Piece, ...]:
        """What an id adds to the text; the one that ended the answer adds nothing."""
        if self.transcript is None:
            return ()
        if self.finish_reason is None:
            self.transcript.take(token)
        if self.transcript.stopped:
            self.finish_reason = "stop"
        return self.transcript.drain()
