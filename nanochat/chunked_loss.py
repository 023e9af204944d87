"""Cross entropy of a language model's head without ever holding all logits.

The (tokens, vocabulary) logits of a small model are larger than everything else in its step. They are made, used and
forgotten a chunk of tokens at a time; the gradient of a chunk is taken while its logits are there, so that backward
only scales it.

Shapes: N tokens, D width, V vocabulary.

Lesson: lessons/13_backward_by_hand
"""

from collections.abc import Callable

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

# Values (tokens x vocabulary) at a time. A chunk goes through the matrix unit: with few tokens the head's gradient is
# added up too often (32,768 ids x 384 on a CPU: 256 tokens 551 ms, 1,024 435 ms, 2,048 369 ms); beyond MOST_TOKENS that
# is no matter. A block goes through the point-wise operations: on a CPU it has to stay in the cache.
CHUNK_VALUES = {"cpu": 1 << 26, "other": 1 << 28}
BLOCK_VALUES = {"cpu": 1 << 18, "other": 1 << 28}
MOST_TOKENS = {"cpu": 2048, "other": 1 << 16}
LEAST_TOKENS = 256


LossBlock = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None, bool], torch.Tensor]


def loss_block(
    raw: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, softcap: float | None, needs_gradient: bool
) -> torch.Tensor:
    """Losses (n,) of raw logits (n, V), which are then overwritten by the gradient of the weighted loss.

    `index` (n, 1) are the targets, `weights` (n,) give the format of the sums. As few passes over (n, V) as there are
    distinct operations; through torch.compile they are one or two.
    """
    if softcap is None:
        logits = raw.to(weights.dtype)
    else:
        squeezed = raw.to(weights.dtype).mul_(1 / softcap).tanh_()
        logits = squeezed * softcap
    if softcap is None or softcap > 30:  # below that no exponential can overflow
        logits -= logits.amax(1, keepdim=True)
    picked = logits.gather(1, index)
    exponentials = logits.exp_()
    total = exponentials.sum(1, keepdim=True)
    losses = (total.log() - picked).squeeze(1)
    if needs_gradient:
        weight = weights.unsqueeze(1)
        if torch.compiler.is_compiling():  # a comparison joins the other operations, scattering does not
            hit = torch.arange(raw.size(1), device=raw.device) == index
            gradient = exponentials * (weight / total) - weight * hit
        else:
            gradient = exponentials.mul_(weight / total).scatter_add_(1, index, -weight)
        if softcap is not None:  # d squeezed = 1 - squeezed^2
            gradient.addcmul_(gradient, squeezed.square_(), value=-1)
        raw.copy_(gradient)
    return losses


def chunked_cross_entropy(
    x: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    softcap: float | None,
    block: LossBlock = loss_block,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of the tokens' losses, and each token's loss.

    x (N, D), head (V, D), targets (N,) of ids, weights (N,) float: a token of weight 0 counts for nothing.
    Returns a scalar that carries gradient to x and head, and losses (N,) in nats that carry none; both are `wide`.
    `block` is `loss_block` or that compiled.
    """
    total, losses = _ChunkedCrossEntropy.apply(x, head, targets, weights.to(wide(x.dtype)), softcap, block)
    return total, losses


def wide(dtype: torch.dtype) -> torch.dtype:
    """The format of sums over products in `dtype`: float32, and float64 for itself, which is for checks."""
    return torch.promote_types(dtype, torch.float32)


def capped_logits(x: torch.Tensor, head: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Logits (N, V), at least float32, squeezed into (-softcap, softcap) when there is a cap."""
    logits = (x @ head.to(x.dtype).mT).to(wide(x.dtype))
    if softcap is None:
        return logits
    if logits.requires_grad:
        return softcap * torch.tanh(logits / softcap)
    return logits.div_(softcap).tanh_().mul_(softcap)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        softcap: float | None,
        block: LossBlock,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_gradient = x.requires_grad or head.requires_grad
        kind = "cpu" if x.device.type == "cpu" else "other"
        chunk_tokens = min(MOST_TOKENS[kind], max(LEAST_TOKENS, CHUNK_VALUES[kind] // head.size(0)))
        block_tokens = max(1, BLOCK_VALUES[kind] // head.size(0))
        cast_head = head.to(x.dtype)
        index = targets.clamp_min(0).unsqueeze(1)  # (N, 1)
        losses = torch.empty(x.size(0), dtype=weights.dtype, device=x.device)
        x_gradient = torch.empty_like(x) if needs_gradient else None
        head_gradient: torch.Tensor | None = None
        for start in range(0, x.size(0), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            raw = x[chunk] @ cast_head.mT  # (n, V), overwritten by its gradient
            for first in range(0, raw.size(0), block_tokens):
                some = raw[first : first + block_tokens]
                place = slice(start + first, start + first + some.size(0))
                losses[place] = block(some, index[place], weights[place], softcap, needs_gradient)
            if x_gradient is not None:
                x_gradient[chunk] = raw @ cast_head
                of_chunk = raw.mT @ x[chunk]
                head_gradient = of_chunk.to(head.dtype) if head_gradient is None else head_gradient.add_(of_chunk)
        if x_gradient is not None and head_gradient is not None:
            ctx.save_for_backward(x_gradient, head_gradient)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, scale: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None, None]:
        x_gradient, head_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        if scale.device.type == "cpu" and scale.item() == 1:  # as in training: saves a pass over the head
            return x_gradient, head_gradient, None, None, None, None
        return x_gradient * scale, head_gradient * scale, None, None, None, None
