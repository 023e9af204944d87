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

import torch

Weights = dict[str, torch.Tensor]


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (..., inputs) through a matrix (outputs, inputs), without bias: (..., outputs)."""
    raise NotImplementedError("lesson 10: linear is yours to write")


def embed(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The rows of table (V, C) that ids (B, T) name: (B, T, C)."""
    raise NotImplementedError("lesson 10: embed is yours to write")


def rms_norm(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """x divided by the root of its mean square along the last axis."""
    raise NotImplementedError("lesson 10: rms_norm is yours to write")


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, T, C) to (B, H, T, D): head h has the channels from h x D on."""
    raise NotImplementedError("lesson 10: split_heads is yours to write")


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, H, T, D) back to (B, T, C)."""
    raise NotImplementedError("lesson 10: merge_heads is yours to write")


def rotary_table(tokens: int, channels: int, base: float = 10_000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, each (T, D/2), of the angle position x base^(-2i / D), for pair i of D channels."""
    raise NotImplementedError("lesson 10: rotary_table is yours to write")


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (i, i + D/2) of x (B, H, T, D) by minus its position's angle."""
    raise NotImplementedError("lesson 10: rotate is yours to write")


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """exp(scores) over its sum along the last axis, for scores of any size; -inf gives 0."""
    raise NotImplementedError("lesson 10: softmax is yours to write")


def attention_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """How much token t looks at token s: (B, H, T, T) from q and k (B, H, T, D), 0 where s comes after t."""
    raise NotImplementedError("lesson 10: attention_weights is yours to write")


def attention(weights: Weights, layer: int, x: torch.Tensor, heads: int) -> torch.Tensor:
    """The attention of a layer, (B, T, C) to (B, T, C): q, k, v, rotation, norm of q and k, weights, values, c_proj."""
    raise NotImplementedError("lesson 10: attention is yours to write")


def mlp(weights: Weights, layer: int, x: torch.Tensor) -> torch.Tensor:
    """The MLP of a layer, (B, T, C) to (B, T, C): widen to 4C, ReLU, square, narrow."""
    raise NotImplementedError("lesson 10: mlp is yours to write")


def block(weights: Weights, layer: int, x: torch.Tensor, heads: int) -> torch.Tensor:
    """One layer: attention of the normed stream is added to the stream, then the MLP of the normed stream."""
    raise NotImplementedError("lesson 10: block is yours to write")


def logits(head: torch.Tensor, x: torch.Tensor, cap: float = 15.0) -> torch.Tensor:
    """x (..., C) through head (V, C), then cap x tanh(logits / cap): (..., V)."""
    raise NotImplementedError("lesson 10: logits is yours to write")


def cross_entropy(predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean, over targets (B, T), of minus the log of the target's probability by logits `predicted` (B, T, V).

    Targets of -1 are left out.
    """
    raise NotImplementedError("lesson 10: cross_entropy is yours to write")


def forward(weights: Weights, ids: torch.Tensor, heads: int, targets: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (B, T, V) of ids (B, T); given targets (B, T), the loss.

    The stream is normed behind the embedding, and again before the head.
    """
    raise NotImplementedError("lesson 10: forward is yours to write")
