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
    raise NotImplementedError("lesson 11: sines is yours to write")


def turn(x: torch.Tensor, positions: torch.Tensor, base: float = 10_000.0) -> torch.Tensor:
    """Turn the pairs (i, i + D/2) of x (..., T, D) by minus the angles of positions (T,), which may be any numbers.

    For whole numbers it is lesson 10's rotate.
    """
    raise NotImplementedError("lesson 11: turn is yours to write")


def score(q: torch.Tensor, k: torch.Tensor, q_position: float, k_position: float) -> torch.Tensor:
    """The product of one query and one key, both (D,), each turned by its own position."""
    raise NotImplementedError("lesson 11: score is yours to write")


def attention(
    weights: Weights, layer: int, x: torch.Tensor, heads: int, positions: torch.Tensor, turned: str
) -> torch.Tensor:
    """Lesson 10's attention, (B, T, C) to (B, T, C), in which the parts named in `turned` are turned by positions (T,).

    `turned` is some of the letters q, k and v. Queries and keys are normed in any case.
    """
    raise NotImplementedError("lesson 11: attention is yours to write")


def forward(weights: Weights, ids: torch.Tensor, heads: int, kind: str, first: int = 0) -> torch.Tensor:
    """Logits (B, T, V) of ids (B, T) with one of KINDS; the first token stands at position `first`."""
    raise NotImplementedError("lesson 11: forward is yours to write")


def rounded_table(
    tokens: int, channels: int, angle_dtype: torch.dtype, table_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lesson 10's rotary_table, each (T, D/2) in float32, with its angles rounded on the way, and its results too.

    The angles are computed in float32 and rounded to `angle_dtype` before the cosine and sine are taken of them in
    float32; what comes out is rounded to `table_dtype`.
    """
    raise NotImplementedError("lesson 11: rounded_table is yours to write")
