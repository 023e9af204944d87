"""What one request wants of its samples, and from logits to the next ids.

Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from nanochat.command import UserError


@dataclass(frozen=True)
class SamplingParams:
    """How a prompt is to be answered. Raises UserError that names the field which no answer can have.

    `logprobs` and `prompt_logprobs` ask for the logarithm of each id's probability, in the model's own distribution
    before temperature and cuts, with so many of the likeliest ids beside it.
    """

    max_tokens: int = 256
    """Ids of an answer at most; 0 reads the prompt alone."""
    temperature: float = 1.0
    """0 takes the likeliest id always."""
    top_k: int | None = None
    """Draw from so many likeliest ids; None or 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest ids that have so much of the probability."""
    min_p: float = 0.0
    """Leave out ids less likely than so much of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Logits of ids in the prompt and the answer are divided by it where positive, else multiplied."""
    presence_penalty: float = 0.0
    """Taken off the logit of every id of the answer."""
    frequency_penalty: float = 0.0
    """The same, for each time that it stands there."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these ids."""
    seed: int | None = None
    """The same seed, the same samples; None: the engine draws one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; what is said ends before them."""
    stop_ids: tuple[int, ...] = ()
    """Further ids that end the answer."""
    logprobs: int | None = None
    """So many alternatives beside each sampled id's logprob; None: no logprobs."""
    prompt_logprobs: int | None = None
    """The same for the ids of the prompt."""
    tools: bool = True
    """Run the calculator on what the model sends to it."""

    def __post_init__(self) -> None:
        least = {"max_tokens": 0, "temperature": 0, "top_k": 0, "logprobs": 0, "prompt_logprobs": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise UserError(f"{name} must be {low} or more, got {value}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must be from 0 to 1, got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name} must be a number, got {getattr(self, name)}")
        if not all(math.isfinite(bias) for bias in self.logit_bias.values()):
            raise UserError(f"logit_bias must hold numbers, got {dict(self.logit_bias)}")
        if not all(self.stop):
            raise UserError("stop must not hold an empty text: it would end every answer before its first letter")


def sample(
    logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> torch.Tensor:
    """One id per row (B,) of logits (B, V): the likeliest at temperature 0, else drawn from the `top_k` likeliest.

    A `top_k` of None or 0 draws from all. An id whose logit is -inf is never drawn.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    if top_k and top_k < logits.size(-1):
        values, ids = logits.topk(top_k, dim=-1)
        return ids.gather(1, _draw(values, temperature, generator)).squeeze(1)
    return _draw(logits, temperature, generator).squeeze(1)


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator | None) -> torch.Tensor:
    below_the_best = logits - logits.amax(dim=-1, keepdim=True)  # at most 0: no temperature makes it overflow
    return torch.multinomial((below_the_best / temperature).softmax(dim=-1), 1, generator=generator)
