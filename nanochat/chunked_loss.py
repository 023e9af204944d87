"""Cross entropy of a language model's head without ever holding all logits.

The (tokens, vocabulary) logits of a small model are larger than everything else in its step. They are made, used and
forgotten a chunk of tokens at a time; the gradient of a chunk is taken while its logits are there, so that backward
only scales it.

Shapes: N tokens, D width, V vocabulary.
"""

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

# Logits of one chunk, in values: larger ones leave the processor's cache, smaller ones starve the matrix unit.
CHUNK_VALUES_CPU = 1 << 21
CHUNK_VALUES_GPU = 1 << 28


def chunked_cross_entropy(
    x: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of the tokens' losses, and each token's loss.

    x (N, D), head (V, D), targets (N,) of ids, weights (N,) float: a token of weight 0 counts for nothing.
    Returns a scalar that carries gradient to x and head, and losses (N,) in nats that carry none.
    """
    total, losses = _ChunkedCrossEntropy.apply(x, head, targets, weights, softcap)
    return total, losses


def capped_logits(x: torch.Tensor, head: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Logits (N, V) in float32, squeezed into (-softcap, softcap) when there is a cap."""
    logits = (x @ head.to(x.dtype).mT).float()
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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_gradient = x.requires_grad or head.requires_grad
        values = CHUNK_VALUES_CPU if x.device.type == "cpu" else CHUNK_VALUES_GPU
        rows = max(16, values // head.size(0))
        cast_head = head.to(x.dtype)
        losses = torch.empty(x.size(0), dtype=torch.float32, device=x.device)
        x_gradient = torch.empty_like(x) if needs_gradient else None
        head_gradient = torch.zeros_like(head) if needs_gradient else None
        for start in range(0, x.size(0), rows):
            chunk = slice(start, start + rows)
            logits = capped_logits(x[chunk], cast_head, softcap)  # (n, V)
            index = targets[chunk].clamp_min(0).unsqueeze(1)  # (n, 1)
            normaliser = logits.logsumexp(1, keepdim=True)
            losses[chunk] = (normaliser - logits.gather(1, index)).squeeze(1)
            if x_gradient is None or head_gradient is None:
                continue
            slope = (logits / softcap).square_().neg_().add_(1.0) if softcap is not None else None  # d capped / d raw
            gradient = logits.sub_(normaliser).exp_()  # softmax
            gradient.scatter_add_(1, index, torch.full_like(normaliser, -1.0))
            gradient.mul_(weights[chunk].unsqueeze(1))
            gradient = (gradient.mul_(slope) if slope is not None else gradient).to(x.dtype)
            x_gradient[chunk] = gradient @ cast_head
            head_gradient += gradient.mT @ x[chunk]
        if x_gradient is not None and head_gradient is not None:
            ctx.save_for_backward(x_gradient, head_gradient)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, scale: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        x_gradient, head_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        return x_gradient * scale, head_gradient * scale, None, None, None
