"""Lesson 11: how positions get in: none, added once, or turned; and why q and k are turned and v is not.

Shapes: B rows, T tokens, C width, H heads, D channels per head. `weights` is lesson 10's dict; a learned table of
positions is in it as "positions" (most tokens, C).

The check calls these by name: sines, turn, score, attention, forward, rounded_table. Lesson 10's functions are yours to
use: `ten.rms_norm`, `ten.split_heads` and so on.
"""

import torch

from lessons.learner import load

ten = load(10)
Weights = dict[str, torch.Tensor]

KINDS = ("none", "sines", "learned", "rotary_q", "rotary_qk", "rotary_qkv")
"""Nothing; sines or a learned table added to the normed embedding; q, q and k, or q, k and v turned in every layer."""


def sines(positions: torch.Tensor, width: int, base: float = 10_000.0) -> torch.Tensor:
    """The table of the first Transformer (arXiv:1706.03762), (T, C): first C/2 sines, then C/2 cosines.

    Channel i of each half is of the angle position x base^(-2i / C).
    """
    angles = positions.unsqueeze(1) * base ** (-torch.arange(0, width, 2) / width)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def turn(x: torch.Tensor, positions: torch.Tensor, base: float = 10_000.0) -> torch.Tensor:
    """Turn the pairs (i, i + D/2) of x (..., T, D) by minus the angles of positions (T,), which may be any numbers.

    For whole numbers it is lesson 10's rotate.
    """
    channels = x.size(-1)
    angles = positions.unsqueeze(-1) * base ** (-torch.arange(0, channels, 2) / channels)
    return ten.rotate(x, angles.cos(), angles.sin())


def score(q: torch.Tensor, k: torch.Tensor, q_position: float, k_position: float) -> torch.Tensor:
    """The product of one query and one key, both (D,), each turned by its own position."""
    turned = turn(torch.stack((q, k)), torch.tensor([q_position, k_position]))
    return turned[0] @ turned[1]


def attention(
    weights: Weights, layer: int, x: torch.Tensor, heads: int, positions: torch.Tensor, turned: str
) -> torch.Tensor:
    """Lesson 10's attention, (B, T, C) to (B, T, C), in which the parts named in `turned` are turned by positions (T,).

    `turned` is some of the letters q, k and v. Queries and keys are normed in any case.
    """
    name = f"transformer.h.{layer}.attn"
    parts = {}
    for part in "qkv":
        split = ten.split_heads(ten.linear(x, weights[f"{name}.c_{part}.weight"]), heads)
        parts[part] = turn(split, positions) if part in turned else split
    shares = ten.attention_weights(ten.rms_norm(parts["q"]), ten.rms_norm(parts["k"]))
    return ten.linear(ten.merge_heads(shares @ parts["v"]), weights[f"{name}.c_proj.weight"])


def forward(weights: Weights, ids: torch.Tensor, heads: int, kind: str, first: int = 0) -> torch.Tensor:
    """Logits (B, T, V) of ids (B, T) with one of KINDS; the first token stands at position `first`."""
    positions = torch.arange(first, first + ids.size(1))
    x = ten.rms_norm(ten.embed(weights["transformer.wte.weight"], ids))
    if kind == "sines":
        x = x + sines(positions, x.size(-1))
    elif kind == "learned":
        x = x + weights["positions"][positions]
    turned = kind.removeprefix("rotary_") if kind.startswith("rotary_") else ""
    for layer in range(sum(name.endswith("attn.c_q.weight") for name in weights)):
        x = x + attention(weights, layer, ten.rms_norm(x), heads, positions, turned)
        x = x + ten.mlp(weights, layer, ten.rms_norm(x))
    return ten.logits(weights["lm_head.weight"], ten.rms_norm(x))


def rounded_table(
    tokens: int, channels: int, angle_dtype: torch.dtype, table_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lesson 10's rotary_table, each (T, D/2) in float32, with its angles rounded on the way, and its results too.

    The angles are computed in float32 and rounded to `angle_dtype` before the cosine and sine are taken of them in
    float32; what comes out is rounded to `table_dtype`.
    """
    frequencies = 10_000.0 ** (-torch.arange(0, channels, 2) / channels)
    angles = (torch.arange(tokens).unsqueeze(1) * frequencies).to(angle_dtype).float()
    return angles.cos().to(table_dtype).float(), angles.sin().to(table_dtype).float()
