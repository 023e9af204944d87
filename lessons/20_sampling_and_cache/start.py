"""Lesson 20: from logits to the next id, and a cache of keys and values, on top of lesson 10's forward pass.

The check calls these by name: probabilities, draw, Cache, attend, forward_cached, generate, flops, cache_bytes. Of
Cache it asks only that `Cache()` is an empty one. Any design of your own is welcome behind them.

`tenth` is lesson 10: your own file where there is one, else its solution. Of it you will want embed, linear, rms_norm,
split_heads, merge_heads, rotary_table, rotate, softmax, mlp and logits.

Shapes: B rows, T new tokens, S tokens in all (cached and new), C width, H heads, D = C / H, V vocabulary.
"""

import torch

from lessons.learner import load

tenth = load(10)

Weights = dict[str, torch.Tensor]


def probabilities(logits: torch.Tensor, temperature: float, top_k: int | None = None) -> torch.Tensor:
    """What each id is drawn with, (..., V) from logits (..., V).

    Only the `top_k` likeliest ids can be drawn (None: all). At temperature 0 the likeliest has all of the probability;
    a small temperature must not overflow.
    """
    raise NotImplementedError("lesson 20: probabilities is yours to write")


def draw(chances: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An id per row (B,), each as often as its chance in (B, V) says; an id of chance 0 never.

    Try it without torch.multinomial: throw an arrow with torch.rand(..., generator=generator).
    """
    raise NotImplementedError("lesson 20: draw is yours to write")


class Cache:
    """The keys and values of the tokens read so far, by layer."""

    def __init__(self) -> None:
        raise NotImplementedError("lesson 20: Cache is yours to write")


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The last T tokens' q (B, H, T, D) look at k and v (B, H, S, D) of all S tokens up to themselves: (B, H, T, D).

    With T = S this is lesson 10's attention.
    """
    raise NotImplementedError("lesson 20: attend is yours to write")


def forward_cached(weights: Weights, ids: torch.Tensor, heads: int, cache: Cache) -> torch.Tensor:
    """Logits (B, T, V) of T new ids (B, T) that follow on what the cache holds; it takes them up.

    The new tokens stand at the positions behind the cached ones. With an empty cache this is lesson 10's forward.
    """
    raise NotImplementedError("lesson 20: forward_cached is yours to write")


def generate(
    weights: Weights,
    heads: int,
    prompt: torch.Tensor,
    tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    cached: bool = True,
) -> torch.Tensor:
    """prompt (B, T) and `tokens` ids behind it, (B, T + tokens).

    With `cached` the prompt is read once and then one id at a time; without, all of it again for every id. Both give
    the same ids for the same seed.
    """
    raise NotImplementedError("lesson 20: generate is yours to write")


def flops(width: int, layers: int, vocab: int, new: int, seen: int) -> int:
    """FLOPs of the matrix products of one `forward_cached` of `new` tokens, with `seen` in the cache, one row.

    (n, k) times (k, m) is 2 n k m FLOPs. Masked scores are computed too, so count the whole rectangle.
    """
    raise NotImplementedError("lesson 20: flops is yours to write")


def cache_bytes(width: int, layers: int, rows: int, tokens: int, bytes_per_value: int = 4) -> int:
    """Bytes of the keys and values of `rows` rows of `tokens` tokens."""
    raise NotImplementedError("lesson 20: cache_bytes is yours to write")
