"""Rotary positions and causal attention.

Shapes: B rows, T tokens, H heads, D channels per head, S keys.

Lessons: lessons/10_forward_pass, lessons/11_positions
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx, once_differentiable


def rotary_table(positions: int, head_dim: int, base: float, device: torch.device) -> torch.Tensor:
    """Cosines and sines (2, positions, head_dim / 2) in float32 (RoFormer, arXiv:2104.09864)."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    frequencies = base ** (-channels / head_dim)
    angles = torch.arange(positions, dtype=torch.float32, device=device).unsqueeze(1) * frequencies
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (i, i + D/2) of x (B, H, T, D) by minus its position's angle.

    `table` is (2, T, D/2). The sign is that of transformers' NanoChat; the other one is the same model with rows of
    W_q and W_k swapped.
    """
    cosine, sine = table.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine + second * sine, second * cosine - first * sine), dim=-1)


def window_mask(tokens: int, window: int, device: torch.device) -> torch.Tensor:
    """Which of T tokens each may see, (T, T): itself and the `window` - 1 before it."""
    back = torch.arange(tokens, device=device).unsqueeze(1) - torch.arange(tokens, device=device)
    return (back >= 0) & (back < window)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
    """Scaled dot-product attention of q (B, H, T, D) over k and v (B, H_kv, S, D); heads share keys in groups.

    `mask` (B, 1, T, S) or (T, S) is True where a token may look; `causal` says it for T = S without a mask. The
    vectors of q and k have lengths of about sqrt(D), so that no score is far above sqrt(D).
    """
    grouped = k.size(1) != q.size(1)
    on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if causal and on_cpu and not grouped and q.requires_grad and q.size(2) >= LEAST_TOKENS:
        attended: torch.Tensor = _CausalAttention.apply(q, k, v)
        return attended
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


# Training in bfloat16 on a CPU: torch's backward takes six times as long as its forward, where five matrix products
# stand against two. The same products in blocks that fit the cache take 0.6 of its time at T = 512.
LEAST_TOKENS = 256
BLOCK_HEADS = 8
BLOCK_TOKENS = 256


class _CausalAttention(torch.autograd.Function):
    """Torch's forward, our backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        y, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        ctx.save_for_backward(q, k, v, y, logsumexp)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v, y, logsumexp = ctx.saved_tensors  # type: ignore[attr-defined]
        scale = q.size(-1) ** -0.5
        # Weights are exp(score) / sum. The sum divides dy, which is smaller; the exponential cannot overflow.
        wide = dy.to(logsumexp.dtype) * logsumexp.unsqueeze(-1).neg().exp()
        along = (wide * y).sum(-1, keepdim=True)
        together = [x.to(q.dtype).contiguous().flatten(0, 1) for x in (wide, along, q * scale, k, v)]  # (BH, T, D)
        # Only under torch.compile: the operator's first call imports what that does, 150 MB and some seconds of it.
        blocks = _causal_attention_operator if torch.compiler.is_compiling() else _causal_attention_backward
        dq, dk, dv = blocks(*together)
        return (dq * scale).view_as(q), dk.view_as(q), dv.view_as(q)


def _causal_attention_backward(
    dy: torch.Tensor, along: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k and v, each (BH, T, D): the weights are computed again, a block of queries at a time.

    `dy` is divided by each query's sum of weights, `along` (BH, T, 1) is its product with y, q is scaled. Scores are
    rounded to bfloat16: gradients are off by 0.5 % where attention is spread and by 2.6 % where each query sees little
    more than one key (torch's: 0.3 % and 1.2 %).
    """
    tokens = q.size(1)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(q), torch.empty_like(q)
    lower = torch.ones(BLOCK_TOKENS, BLOCK_TOKENS, dtype=q.dtype).tril_()
    for first_head in range(0, q.size(0), BLOCK_HEADS):
        heads = slice(first_head, first_head + BLOCK_HEADS)
        for start in reversed(range(0, tokens, BLOCK_TOKENS)):
            rows = slice(start, min(start + BLOCK_TOKENS, tokens))
            seen, size = slice(0, rows.stop), rows.stop - start
            weights = torch.bmm(q[heads, rows], k[heads, seen].mT).exp_()  # (heads, rows, seen)
            weights[:, :, rows].mul_(lower[:size, :size])
            scores = torch.bmm(dy[heads, rows], v[heads, seen].mT).sub_(along[heads, rows]).mul_(weights)
            torch.bmm(scores, k[heads, seen], out=dq[heads, rows])
            if rows.stop == tokens:
                torch.bmm(weights.mT, dy[heads, rows], out=dv[heads])
                torch.bmm(scores.mT, q[heads, rows], out=dk[heads])
            else:
                dv[heads, seen].baddbmm_(weights.mT, dy[heads, rows])
                dk[heads, seen].baddbmm_(scores.mT, q[heads, rows])
    return dq, dk, dv


_causal_attention_operator = torch.library.custom_op("nanochat::causal_attention_backward", mutates_args=())(
    _causal_attention_backward
)
"""The same for torch.compile, which does not unroll it and fuses what stands around it."""


@_causal_attention_operator.register_fake
def _(
    dy: torch.Tensor, along: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)
