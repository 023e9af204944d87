"""Lesson 10: the forward pass, from ids to a loss, one small function a step.

Shapes: B rows, T tokens, C width, H heads, D = C / H channels per head, V vocabulary.

`weights` is a dict of tensors under the product's names, L the layer:

    transformer.wte.weight            (V, C)      transformer.h.L.attn.c_proj.weight   (C, C)
    transformer.h.L.attn.c_q.weight   (C, C)      transformer.h.L.mlp.c_fc.weight      (4C, C)
    transformer.h.L.attn.c_k.weight   (C, C)      transformer.h.L.mlp.c_proj.weight    (C, 4C)
    transformer.h.L.attn.c_v.weight   (C, C)      lm_head.weight                       (V, C)

The check calls all functions of this file by name; behind the names any design of your own is welcome. Later lessons
train `forward`: no `no_grad` or `detach` in it, and no number taken out of a tensor.
"""

import math

import torch

Weights = dict[str, torch.Tensor]


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (..., inputs) through a matrix (outputs, inputs), without bias: (..., outputs)."""
    return x @ weight.mT


def embed(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The rows of table (V, C) that ids (B, T) name: (B, T, C)."""
    return table[ids]


def rms_norm(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """x divided by the root of its mean square along the last axis."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, T, C) to (B, H, T, D): head h has the channels from h x D on."""
    rows, tokens, width = x.shape
    return x.view(rows, tokens, heads, width // heads).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, H, T, D) back to (B, T, C)."""
    return x.transpose(1, 2).flatten(2)


def rotary_table(tokens: int, channels: int, base: float = 10_000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, each (T, D/2), of the angle position x base^(-2i / D), for pair i of D channels."""
    frequencies = base ** (-torch.arange(0, channels, 2) / channels)
    angles = torch.arange(tokens).unsqueeze(1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (i, i + D/2) of x (B, H, T, D) by minus its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine + second * sine, second * cosine - first * sine), dim=-1)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """exp(scores) over its sum along the last axis, for scores of any size; -inf gives 0."""
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def attention_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """How much token t looks at token s: (B, H, T, T) from q and k (B, H, T, D), 0 where s comes after t."""
    tokens, channels = q.shape[-2:]
    scores = q @ k.mT / math.sqrt(channels)
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    return softmax(scores.masked_fill(later, -math.inf))


def attention(weights: Weights, layer: int, x: torch.Tensor, heads: int) -> torch.Tensor:
    """The attention of a layer, (B, T, C) to (B, T, C): q, k, v, rotation, norm of q and k, weights, values, c_proj."""
    name = f"transformer.h.{layer}.attn"
    q, k, v = (split_heads(linear(x, weights[f"{name}.c_{part}.weight"]), heads) for part in "qkv")
    table = [part.to(x) for part in rotary_table(x.size(1), x.size(2) // heads)]
    q, k = rms_norm(rotate(q, *table)), rms_norm(rotate(k, *table))
    return linear(merge_heads(attention_weights(q, k) @ v), weights[f"{name}.c_proj.weight"])


def mlp(weights: Weights, layer: int, x: torch.Tensor) -> torch.Tensor:
    """The MLP of a layer, (B, T, C) to (B, T, C): widen to 4C, ReLU, square, narrow."""
    name = f"transformer.h.{layer}.mlp"
    hidden = linear(x, weights[f"{name}.c_fc.weight"]).relu().square()
    return linear(hidden, weights[f"{name}.c_proj.weight"])


def block(weights: Weights, layer: int, x: torch.Tensor, heads: int) -> torch.Tensor:
    """One layer: attention of the normed stream is added to the stream, then the MLP of the normed stream."""
    x = x + attention(weights, layer, rms_norm(x), heads)
    return x + mlp(weights, layer, rms_norm(x))


def logits(head: torch.Tensor, x: torch.Tensor, cap: float = 15.0) -> torch.Tensor:
    """x (..., C) through head (V, C), then cap x tanh(logits / cap): (..., V)."""
    return cap * torch.tanh(linear(x, head) / cap)


def cross_entropy(predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean, over targets (B, T), of minus the log of the target's probability by logits `predicted` (B, T, V).

    Targets of -1 are left out.
    """
    losses = predicted.logsumexp(-1) - predicted.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    counted = targets != -1
    return (losses * counted).sum() / counted.sum()


def forward(weights: Weights, ids: torch.Tensor, heads: int, targets: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (B, T, V) of ids (B, T); given targets (B, T), the loss.

    The stream is normed behind the embedding, and again before the head.
    """
    x = rms_norm(embed(weights["transformer.wte.weight"], ids))
    for layer in range(sum(name.endswith("attn.c_q.weight") for name in weights)):
        x = block(weights, layer, x, heads)
    predicted = logits(weights["lm_head.weight"], rms_norm(x))
    return predicted if targets is None else cross_entropy(predicted, targets)
