"""Lesson 20: from logits to the next id, and a cache of keys and values, on top of lesson 10's forward pass."""

import math

import torch

from lessons.learner import load

tenth = load(10)

Weights = dict[str, torch.Tensor]


def probabilities(logits: torch.Tensor, temperature: float, top_k: int | None = None) -> torch.Tensor:
    """What each id is drawn with, (..., V) from logits (..., V)."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    if top_k is not None and top_k < logits.size(-1):
        kept = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -math.inf).scatter(-1, kept.indices, kept.values)
    below_the_best = logits - logits.amax(-1, keepdim=True)
    return tenth.softmax(below_the_best / temperature)


def draw(chances: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An id per row (B,), each as often as its chance in (B, V) says."""
    upto = chances.cumsum(-1)
    arrow = torch.rand(len(chances), 1, generator=generator) * upto[:, -1:]
    return (upto <= arrow).sum(-1)


class Cache:
    """The keys and values of the tokens read so far, by layer."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.length = 0

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put k and v (B, H, T, D) of new tokens behind what the layer holds; all of them (B, H, S, D)."""
        if layer in self.layers:
            before = self.layers[layer]
            k, v = torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)
        self.layers[layer] = k, v
        return k, v


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The last T tokens' q (B, H, T, D) look at all S keys and values up to themselves: (B, H, T, D)."""
    new, seen = q.size(2), k.size(2)
    scores = q @ k.mT / math.sqrt(q.size(3))  # (B, H, T, S)
    later = torch.ones(new, seen, dtype=torch.bool, device=q.device).triu(seen - new + 1)
    return tenth.softmax(scores.masked_fill(later, -math.inf)) @ v


def forward_cached(weights: Weights, ids: torch.Tensor, heads: int, cache: Cache) -> torch.Tensor:
    """Logits (B, T, V) of T new ids (B, T) that follow on what the cache holds; it takes them up."""
    x = tenth.rms_norm(tenth.embed(weights["transformer.wte.weight"], ids))
    new, width = x.shape[1:]
    table = [part[cache.length :] for part in tenth.rotary_table(cache.length + new, width // heads)]
    for layer in range(sum(name.endswith("attn.c_q.weight") for name in weights)):
        name = f"transformer.h.{layer}.attn"
        normed = tenth.rms_norm(x)
        q, k, v = (tenth.split_heads(tenth.linear(normed, weights[f"{name}.c_{part}.weight"]), heads) for part in "qkv")
        q, k = tenth.rms_norm(tenth.rotate(q, *table)), tenth.rms_norm(tenth.rotate(k, *table))
        k, v = cache.append(layer, k, v)
        x = x + tenth.linear(tenth.merge_heads(attend(q, k, v)), weights[f"{name}.c_proj.weight"])
        x = x + tenth.mlp(weights, layer, tenth.rms_norm(x))
    cache.length += new
    return tenth.logits(weights["lm_head.weight"], tenth.rms_norm(x))


@torch.no_grad()
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
    """prompt (B, T) and `tokens` ids behind it, (B, T + tokens)."""
    generator = torch.Generator().manual_seed(seed)
    ids, cache = prompt, Cache()
    for _ in range(tokens):
        new = ids[:, cache.length :] if cached else ids
        logits = forward_cached(weights, new, heads, cache if cached else Cache())[:, -1]
        ids = torch.cat((ids, draw(probabilities(logits, temperature, top_k), generator).unsqueeze(1)), dim=1)
    return ids


def flops(width: int, layers: int, vocab: int, new: int, seen: int) -> int:
    """FLOPs of the matrix products of one `forward_cached` of `new` tokens, with `seen` in the cache, one row."""
    matrices = 2 * new * layers * 12 * width * width
    attention = 2 * layers * 2 * new * (seen + new) * width
    return matrices + attention + 2 * new * width * vocab


def cache_bytes(width: int, layers: int, rows: int, tokens: int, bytes_per_value: int = 4) -> int:
    """What a cache of so many tokens takes."""
    return 2 * layers * rows * tokens * width * bytes_per_value
