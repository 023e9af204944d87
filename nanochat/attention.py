"""Rotary positions and causal attention.

Shapes: B rows, T tokens, H heads, D channels per head, S keys.
"""

import torch
import torch.nn.functional as F


def rotary_table(positions: int, head_dim: int, base: float, device: torch.device) -> torch.Tensor:
    """Cosines and sines (2, positions, head_dim / 2) in float32 (RoFormer, arXiv:2104.09864)."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    frequencies = base ** (-channels / head_dim)
    angles = torch.arange(positions, dtype=torch.float32, device=device).unsqueeze(1) * frequencies
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (i, i + D/2) of x (B, H, T, D) by minus its position's angle.

    `table` is (2, T, D/2), or (2, B, 1, T, D/2) where rows stand at positions of their own. The sign is that of
    transformers' NanoChat; the other one is the same model with rows of W_q and W_k swapped.
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

    `mask` (B, 1, T, S) or (T, S) is True where a token may look; `causal` says it for T = S without a mask.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=k.size(1) != q.size(1))
