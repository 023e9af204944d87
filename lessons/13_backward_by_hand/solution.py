"""Lesson 13: backward by hand, through every step of lesson 10.

Each function takes what its forward step took (or gave), and `dy`, the gradient of the loss by what the step gave, of
that shape; it gives the gradient by what the step took. `dx` is short for d loss / d x, and has the shape of x.

Shapes: B rows, T tokens, C width, H heads, D channels per head, V vocabulary. `weights` is lesson 10's dict.

The check calls all functions of this file by name; behind the names any design of your own is welcome. Not allowed is
autograd: the check runs all of it under `torch.no_grad()`.
"""

import math

import torch

from lessons.learner import load

ten = load(10)
Tensor = torch.Tensor
Weights = dict[str, Tensor]


def linear_backward(x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """dx (..., inputs) and dweight (outputs, inputs) from dy (..., outputs); dweight is a sum over rows and tokens."""
    return dy @ weight, dy.flatten(0, -2).mT @ x.flatten(0, -2)


def embed_backward(ids: Tensor, dy: Tensor, vocab_size: int) -> Tensor:
    """dtable (V, C) from ids (B, T) and dy (B, T, C): a token that occurs twice gets both gradients."""
    table = torch.zeros(vocab_size, dy.size(-1), dtype=dy.dtype)
    return table.index_add(0, ids.flatten(), dy.flatten(0, 1))


def rms_norm_backward(x: Tensor, dy: Tensor, eps: float = 1e-6) -> Tensor:
    """dx (..., C) of y = x s with s = 1 / sqrt(mean(x^2) + eps): s (dy - y mean(dy y))."""
    scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = x * scale
    return scale * (dy - y * (dy * y).mean(-1, keepdim=True))


def relu_squared_backward(x: Tensor, dy: Tensor) -> Tensor:
    """dx of y = relu(x)^2."""
    return 2 * x.relu() * dy


def rotate_backward(dy: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """dx of lesson 10's rotate: the transpose of a rotation is the rotation back."""
    return ten.rotate(dy, cosine, -sine)


def softmax_backward(y: Tensor, dy: Tensor) -> Tensor:
    """dscores from the softmax's result y: y (dy - sum(dy y)), along the last axis."""
    return y * (dy - (dy * y).sum(-1, keepdim=True))


def attend_backward(q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of y = attention_weights(q, k) @ v, all (B, H, T, D)."""
    shares = ten.attention_weights(q, k)  # (B, H, T, T)
    dscores = softmax_backward(shares, dy @ v.mT) / math.sqrt(q.size(-1))
    return dscores @ k, dscores.mT @ q, shares.mT @ dy


def logits_backward(head: Tensor, x: Tensor, dy: Tensor, cap: float = 15.0) -> tuple[Tensor, Tensor]:
    """dx and dhead of lesson 10's logits; the derivative of tanh is 1 - tanh^2."""
    squeezed = ten.logits(head, x, cap) / cap
    return linear_backward(x, head, dy * (1 - squeezed.square()))


def cross_entropy_backward(predicted: Tensor, targets: Tensor) -> Tensor:
    """dpredicted (B, T, V) of the mean loss: (probability - 1 at the target) / number of counted targets; 0 for -1."""
    gradient = ten.softmax(predicted)
    index = targets.clamp_min(0).unsqueeze(-1)
    gradient = gradient.scatter_add(-1, index, -torch.ones_like(predicted[..., :1]))
    counted = targets != -1
    return gradient * counted.unsqueeze(-1) / counted.sum()


def attention_backward(weights: Weights, layer: int, x: Tensor, heads: int, dy: Tensor) -> tuple[Tensor, Weights]:
    """dx (B, T, C) of lesson 10's attention, and the gradients of its four matrices by their full names."""
    name = f"transformer.h.{layer}.attn"
    made = {part: ten.split_heads(ten.linear(x, weights[f"{name}.c_{part}.weight"]), heads) for part in "qkv"}
    table = [each.to(x) for each in ten.rotary_table(x.size(1), x.size(2) // heads)]
    turned = {part: ten.rotate(made[part], *table) for part in "qk"}
    q, k = ten.rms_norm(turned["q"]), ten.rms_norm(turned["k"])
    merged = ten.merge_heads(ten.attention_weights(q, k) @ made["v"])

    gradients: Weights = {}
    dmerged, gradients[f"{name}.c_proj.weight"] = linear_backward(merged, weights[f"{name}.c_proj.weight"], dy)
    dq, dk, dv = attend_backward(q, k, made["v"], ten.split_heads(dmerged, heads))
    dq, dk = (rotate_backward(rms_norm_backward(turned[part], d), *table) for part, d in (("q", dq), ("k", dk)))
    dx = torch.zeros_like(x)
    for part, d in (("q", dq), ("k", dk), ("v", dv)):
        weight = f"{name}.c_{part}.weight"
        more, gradients[weight] = linear_backward(x, weights[weight], ten.merge_heads(d))
        dx += more
    return dx, gradients


def mlp_backward(weights: Weights, layer: int, x: Tensor, dy: Tensor) -> tuple[Tensor, Weights]:
    """dx (B, T, C) of lesson 10's mlp, and the gradients of its two matrices by their full names."""
    widen, narrow = f"transformer.h.{layer}.mlp.c_fc.weight", f"transformer.h.{layer}.mlp.c_proj.weight"
    hidden = ten.linear(x, weights[widen])
    dsquared, dnarrow = linear_backward(hidden.relu().square(), weights[narrow], dy)
    dx, dwiden = linear_backward(x, weights[widen], relu_squared_backward(hidden, dsquared))
    return dx, {widen: dwiden, narrow: dnarrow}


def backward(weights: Weights, ids: Tensor, heads: int, targets: Tensor) -> Weights:
    """The gradients of lesson 10's loss by all weights: the way forward, kept, and the same way back."""
    start = ten.embed(weights["transformer.wte.weight"], ids)
    x = ten.rms_norm(start)
    before_attention, before_mlp = [], []  # the stream before each part of each layer
    for layer in range(sum(name.endswith("attn.c_q.weight") for name in weights)):
        before_attention.append(x)
        x = x + ten.attention(weights, layer, ten.rms_norm(x), heads)
        before_mlp.append(x)
        x = x + ten.mlp(weights, layer, ten.rms_norm(x))
    head, last = weights["lm_head.weight"], ten.rms_norm(x)

    gradients: Weights = {}
    dlogits = cross_entropy_backward(ten.logits(head, last), targets)
    dlast, gradients["lm_head.weight"] = logits_backward(head, last, dlogits)
    dx = rms_norm_backward(x, dlast)
    for layer in reversed(range(len(before_mlp))):
        dnormed, of_mlp = mlp_backward(weights, layer, ten.rms_norm(before_mlp[layer]), dx)
        dx = dx + rms_norm_backward(before_mlp[layer], dnormed)
        dnormed, of_attention = attention_backward(weights, layer, ten.rms_norm(before_attention[layer]), heads, dx)
        dx = dx + rms_norm_backward(before_attention[layer], dnormed)
        gradients |= of_mlp | of_attention
    gradients["transformer.wte.weight"] = embed_backward(ids, rms_norm_backward(start, dx), head.size(0))
    return gradients
