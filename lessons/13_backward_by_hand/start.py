"""Lesson 13: backward by hand, through every step of lesson 10.

Each function takes what its forward step took (or gave), and `dy`, the gradient of the loss by what the step gave, of
that shape; it gives the gradient by what the step took. `dx` is short for d loss / d x, and has the shape of x.

Shapes: B rows, T tokens, C width, H heads, D channels per head, V vocabulary. `weights` is lesson 10's dict.

The check calls all functions of this file by name; behind the names any design of your own is welcome. Not allowed is
autograd: the check runs all of it under `torch.no_grad()`.
"""

import torch

from lessons.learner import load

ten = load(10)
Tensor = torch.Tensor
Weights = dict[str, Tensor]


def linear_backward(x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """dx (..., inputs) and dweight (outputs, inputs) from dy (..., outputs); dweight is a sum over rows and tokens."""
    raise NotImplementedError("lesson 13: linear_backward is yours to write")


def embed_backward(ids: Tensor, dy: Tensor, vocab_size: int) -> Tensor:
    """dtable (V, C) from ids (B, T) and dy (B, T, C): a token that occurs twice gets both gradients."""
    raise NotImplementedError("lesson 13: embed_backward is yours to write")


def rms_norm_backward(x: Tensor, dy: Tensor, eps: float = 1e-6) -> Tensor:
    """dx (..., C) of y = x s with s = 1 / sqrt(mean(x^2) + eps): s (dy - y mean(dy y))."""
    raise NotImplementedError("lesson 13: rms_norm_backward is yours to write")


def relu_squared_backward(x: Tensor, dy: Tensor) -> Tensor:
    """dx of y = relu(x)^2."""
    raise NotImplementedError("lesson 13: relu_squared_backward is yours to write")


def rotate_backward(dy: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """dx of lesson 10's rotate: the transpose of a rotation is the rotation back."""
    raise NotImplementedError("lesson 13: rotate_backward is yours to write")


def softmax_backward(y: Tensor, dy: Tensor) -> Tensor:
    """dscores from the softmax's result y: y (dy - sum(dy y)), along the last axis."""
    raise NotImplementedError("lesson 13: softmax_backward is yours to write")


def attend_backward(q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of y = attention_weights(q, k) @ v, all (B, H, T, D)."""
    raise NotImplementedError("lesson 13: attend_backward is yours to write")


def logits_backward(head: Tensor, x: Tensor, dy: Tensor, cap: float = 15.0) -> tuple[Tensor, Tensor]:
    """dx and dhead of lesson 10's logits; the derivative of tanh is 1 - tanh^2."""
    raise NotImplementedError("lesson 13: logits_backward is yours to write")


def cross_entropy_backward(predicted: Tensor, targets: Tensor) -> Tensor:
    """dpredicted (B, T, V) of the mean loss: (probability - 1 at the target) / number of counted targets; 0 for -1."""
    raise NotImplementedError("lesson 13: cross_entropy_backward is yours to write")


def attention_backward(weights: Weights, layer: int, x: Tensor, heads: int, dy: Tensor) -> tuple[Tensor, Weights]:
    """dx (B, T, C) of lesson 10's attention, and the gradients of its four matrices by their full names."""
    raise NotImplementedError("lesson 13: attention_backward is yours to write")


def mlp_backward(weights: Weights, layer: int, x: Tensor, dy: Tensor) -> tuple[Tensor, Weights]:
    """dx (B, T, C) of lesson 10's mlp, and the gradients of its two matrices by their full names."""
    raise NotImplementedError("lesson 13: mlp_backward is yours to write")


def backward(weights: Weights, ids: Tensor, heads: int, targets: Tensor) -> Weights:
    """The gradients of lesson 10's loss by all weights: the way forward, kept, and the same way back."""
    raise NotImplementedError("lesson 13: backward is yours to write")
