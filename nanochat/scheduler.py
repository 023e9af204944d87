"""What the engine says about a sample as it grows."""

from dataclasses import dataclass
from typing import Literal

from nanochat.command import UserError
from nanochat.conversation import PartType

FinishReason = Literal["stop", "length", "cancelled", "error"]


class ContextOverflow(UserError):
    """The prompt leaves no room for an answer."""


@dataclass(frozen=True)
class Piece:
    """A bit of an answer as it comes: of what is said, of a tool call, or of what the tool answered."""

    type: PartType
    text: str


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
