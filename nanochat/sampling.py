"""What one request wants of its samples, and from logits to the next ids.

Shapes: B rows, V vocabulary.

Lesson: lessons/20_sampling_and_cache
"""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
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
        if 0 < self.temperature < 1e-30:  # the likeliest id is certain, and the next float32 is 0
            object.__setattr__(self, "temperature", 0.0)
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


class Sampler:
    """Draws the next ids of rows whose parameters stay what they are; rows of equal kind are drawn in one go."""

    def __init__(self, params: Sequence[SamplingParams], forbidden: Sequence[int], softcap: float | None):
        self.params, self.forbidden, self.softcap = params, frozenset(forbidden), softcap
        kinds: dict[_Kind, list[int]] = {}
        for row, one in enumerate(params):
            kinds.setdefault(_Kind.of(one), []).append(row)
        self.groups = [_Group(kind, rows, [params[row] for row in rows]) for kind, rows in kinds.items()]

    def draw(self, raw: torch.Tensor, uniforms: Sequence[float], seen: Sequence["Seen | None"]) -> list[int]:
        """An id per row of raw logits (B, V); -1 where they are no numbers.

        `uniforms` are numbers above 0 and at most 1, one per row: a row's id depends on nothing but its logits, its
        parameters and its number. `seen` are the ids so far of those rows that `needs_seen`.
        """
        if len(self.groups) == 1:
            return self._draw_group(self.groups[0], raw, uniforms, seen)
        drawn = [0] * len(self.params)
        for group in self.groups:
            part = raw[torch.tensor(group.rows, device=raw.device)]
            of_group = self._draw_group(group, part, [uniforms[r] for r in group.rows], [seen[r] for r in group.rows])
            for row, token in zip(group.rows, of_group, strict=True):
                drawn[row] = token
        return drawn

    def _draw_group(
        self, group: "_Group", raw: torch.Tensor, uniforms: Sequence[float], seen: Sequence["Seen | None"]
    ) -> list[int]:
        kind, softcap = group.kind, self.softcap
        if kind.adjusted:
            raw, softcap = self._without_forbidden(capped(raw, softcap)), None
            for row, (one, so_far) in enumerate(zip(group.params, seen, strict=True)):
                _adjust(raw[row], one, so_far)
        if kind.greedy or 0 < kind.top_k < raw.size(-1):
            # Hardly ever is a forbidden id among the likeliest: to look is cheaper than to fill in all rows.
            values, ids = _largest(raw, kind)
            if not self.forbidden.isdisjoint(itertools.chain(*ids)):
                values, ids = _largest(self._without_forbidden(raw.clone()), kind)
            if kind.greedy:
                return [own[0] if best == best else -1 for own, (best, *_) in zip(ids, values, strict=True)]
            rows = zip(values, ids, group.params, uniforms, strict=True)
            places = [_draw_few(values, one, uniform, softcap) for values, _, one, uniform in rows]
            return [
                own[place] if place is not None and place >= 0 else -1 for own, place in zip(ids, places, strict=True)
            ]
        logits = self._without_forbidden(capped(raw, softcap))
        return _draw_cut(logits, group, uniforms) if kind.cut else _draw_many(logits, group, uniforms)

    def _without_forbidden(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits, in place, without those that no assistant may say."""
        return logits.index_fill_(1, torch.tensor([*self.forbidden], device=logits.device).long(), float("-inf"))


def _largest(logits: torch.Tensor, kind: "_Kind") -> tuple[list[list[float]], list[list[int]]]:
    """Values and ids of each row's largest logits, the largest first."""
    if kind.greedy:
        values, ids = logits.max(dim=-1, keepdim=True)
    else:
        values, ids = top(logits, kind.top_k)
    return values.tolist(), ids.tolist()


def _draw_few(
    values: Sequence[float],
    params: SamplingParams,
    uniform: float,
    softcap: float | None,
    total: float | None = None,
) -> int | None:
    """The place of the logit drawn from a row's largest, largest first; -1 where they are no numbers.

    In Python: for the fifty of one row that takes a fourth of the time that tensors do. `total` is the weight of all
    logits where these are not all that may be drawn; None where some behind them may be drawn too.
    """
    if softcap is not None:
        values = [softcap * math.tanh(value / softcap) if value > -math.inf else value for value in values]
    best = values[0]
    if not best > -math.inf:
        return -1
    weights = [math.exp((value - best) / params.temperature) for value in values]
    sums = list(itertools.accumulate(weights))
    kept, share = len(weights), params.top_p * (sums[-1] if total is None else total)
    if total is not None and weights[-1] >= params.min_p and (params.top_p == 1 or sums[-1] < share):
        return None
    if params.top_p < 1:  # those in front of which less than top_p lies
        kept = 1 + bisect.bisect_left(sums, share)
    if params.min_p > 0:
        kept = min(kept, sum(weight >= params.min_p for weight in weights))
    return bisect.bisect_left(sums, uniform * sums[min(kept, len(sums)) - 1])


def _draw_cut(logits: torch.Tensor, group: "_Group", uniforms: Sequence[float]) -> list[int]:
    """Ids drawn from as many of the likeliest as top_p and min_p leave of all (B, V): some hundred, mostly."""
    if logits.size(-1) <= 4 * CANDIDATES:
        return _draw_many(logits, group, uniforms)
    temperature = group.columns[0].to(logits.device)
    totals = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).exp_().sum(-1).tolist()
    values, ids = (part.tolist() for part in top(logits, CANDIDATES))
    rows = zip(values, group.params, uniforms, totals, strict=True)
    places = [_draw_few(own, one, uniform, None, total) for own, one, uniform, total in rows]
    drawn = [own[place] if place is not None and place >= 0 else -1 for own, place in zip(ids, places, strict=True)]
    if left := [row for row, place in enumerate(places) if place is None]:
        of_left = _Group(group.kind, left, [group.params[row] for row in left])
        for row, token in zip(left, _draw_many(logits[left], of_left, [uniforms[row] for row in left]), strict=True):
            drawn[row] = token
    return drawn


def _draw_many(logits: torch.Tensor, group: "_Group", uniforms: Sequence[float]) -> list[int]:
    """Ids drawn from all logits (B, V)."""
    ids, device = None, logits.device
    if group.kind.cut:
        logits, ids = logits.sort(dim=-1, descending=True)
    temperature, top_p, min_p = (column.to(device) for column in group.columns)
    best = logits.amax(dim=-1, keepdim=True)
    weights = ((logits - best) / temperature).exp_()  # at most 1: no temperature makes it overflow
    if ids is not None:
        sums = weights.cumsum(-1)
        weights = weights.masked_fill_(sums - weights >= top_p * sums[:, -1:], 0)
        weights = weights.masked_fill_(weights < min_p, 0)
    sums = weights.cumsum(-1)  # (B, V); the first id whose sum reaches the number has a weight above 0
    index = torch.searchsorted(sums, torch.tensor(uniforms, device=device).unsqueeze(1) * sums[:, -1:])
    numbers = best.isfinite()
    index = index.clamp_max_(logits.size(-1) - 1)
    drawn: list[int] = (index if ids is None else ids.gather(1, index)).where(numbers, -1).squeeze(1).tolist()
    return drawn


@dataclass(frozen=True)
class _Kind:
    """What rows must have alike to be drawn in one go."""

    greedy: bool
    adjusted: bool
    top_k: int
    cut: bool

    @classmethod
    def of(cls, params: SamplingParams) -> "_Kind":
        adjusted = bool(params.logit_bias) or needs_seen(params)
        if params.temperature == 0:
            return cls(True, adjusted, 0, False)
        return cls(False, adjusted, params.top_k or 0, params.top_p < 1 or params.min_p > 0)


class _Group:
    """Rows of one kind; `columns` are their temperatures, top_p and min_p, (B, 1) each."""

    def __init__(self, kind: _Kind, rows: Sequence[int], params: Sequence[SamplingParams]):
        self.kind, self.rows, self.params = kind, rows, params
        self.columns = torch.tensor([(one.temperature, one.top_p, one.min_p) for one in params]).unsqueeze(2).unbind(1)


@dataclass
class Seen:
    """The ids of a prompt, and how often each has come in the answer."""

    prompt: frozenset[int]
    answer: dict[int, int] = field(default_factory=dict)

    def add(self, token: int) -> None:
        """Count an id of the answer."""
        self.answer[token] = self.answer.get(token, 0) + 1


def needs_seen(params: SamplingParams) -> bool:
    """Whether what was said before changes the logits."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def _adjust(logits: torch.Tensor, params: SamplingParams, seen: Seen | None) -> None:
    """Penalties and bias upon the logits (V,) of one row, in place."""
    if seen is not None and params.repetition_penalty != 1:  # CTRL, arXiv:1909.05858, section 4.1
        ids = torch.tensor([*seen.prompt.union(seen.answer)], device=logits.device)
        old = logits[ids]
        logits[ids] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
    changes = dict(params.logit_bias)
    if seen is not None and (params.presence_penalty or params.frequency_penalty):
        for token, count in seen.answer.items():
            penalty = params.presence_penalty + params.frequency_penalty * count
            changes[token] = changes.get(token, 0.0) - penalty
    if changes:
        logits[torch.tensor([*changes], device=logits.device)] += torch.tensor(
            [*changes.values()], device=logits.device
        )


CANDIDATES = 256
"""Of the likeliest ids, where top_p or min_p cut all."""
BLOCK = 128
"""Logits whose largest is looked at first."""


def top(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest logits of each row (B, V) and their ids, (B, k) both, the largest first.

    With several rows of many logits it is found first which blocks they lie in: those with the k largest maxima.
    """
    rows, vocabulary = logits.shape
    if rows < 4 or vocabulary < 2 * BLOCK * k or vocabulary % BLOCK:
        return logits.topk(k, dim=-1)
    blocks = logits.view(rows, -1, BLOCK)
    best = blocks.amax(-1).topk(k, dim=-1, sorted=False).indices  # (B, k)
    values, places = blocks.gather(1, best.unsqueeze(2).expand(-1, -1, BLOCK)).view(rows, -1).topk(k, dim=-1)
    return values, best.gather(1, places // BLOCK) * BLOCK + places % BLOCK


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Logits in float32 squeezed into (-softcap, softcap), -inf left as it is."""
    logits = logits.float()
    if softcap is None:
        return logits
    return (logits / softcap).tanh_().mul_(softcap).masked_fill_(logits.isneginf(), float("-inf"))


def logprobs_of(
    raw: torch.Tensor, ids: Sequence[int], tops: Sequence[int], softcap: float | None
) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    """For each row of raw logits (B, V): the logprob of its id, and the likeliest `tops` ids with theirs.

    In the model's own distribution: before ids are forbidden, before temperature and cuts.
    """
    logprobs = capped(raw, softcap).log_softmax(dim=-1)
    own = logprobs.gather(1, torch.tensor(ids, device=raw.device).unsqueeze(1)).squeeze(1).tolist()
    if not max(tops, default=0):
        return [(logprob, ()) for logprob in own]
    values, places = (part.tolist() for part in logprobs.topk(min(max(tops), raw.size(-1)), dim=-1))
    return [
        (logprob, tuple(zip(places[row][:top], values[row][:top], strict=True)))
        for row, (logprob, top) in enumerate(zip(own, tops, strict=True))
    ]
