"""A layer by torch's own functions, for the checks of its parts, and the product's model, for checks of the whole.

Shapes: B rows, T tokens, C width, H heads, D channels per head.
"""

import torch
import torch.nn.functional as F

from nanochat import attention as product
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

Weights = dict[str, torch.Tensor]


def attention(weights: Weights, layer: int, x: torch.Tensor, heads: int, turned: str = "qk") -> torch.Tensor:
    """The attention of a layer, (B, T, C) to (B, T, C); `turned` is which of q, k and v are rotated."""
    name = f"transformer.h.{layer}.attn"
    tokens, channels = x.size(1), x.size(2) // heads
    table = product.rotary_table(tokens, channels, 10_000.0, x.device).to(x.dtype)
    made = {}
    for part in "qkv":
        split = F.linear(x, weights[f"{name}.c_{part}.weight"]).unflatten(-1, (heads, channels)).transpose(1, 2)
        made[part] = product.rotate(split, table) if part in turned else split
    q, k = (F.rms_norm(made[part], (channels,), eps=1e-6) for part in "qk")
    y = F.scaled_dot_product_attention(q, k, made["v"], is_causal=True)
    return F.linear(y.transpose(1, 2).flatten(2), weights[f"{name}.c_proj.weight"])


def mlp(weights: Weights, layer: int, x: torch.Tensor) -> torch.Tensor:
    """The MLP of a layer, (B, T, C) to (B, T, C)."""
    name = f"transformer.h.{layer}.mlp"
    return F.linear(F.relu(F.linear(x, weights[f"{name}.c_fc.weight"])).square(), weights[f"{name}.c_proj.weight"])


def block(weights: Weights, layer: int, x: torch.Tensor, heads: int, turned: str = "qk") -> torch.Tensor:
    """One layer, (B, T, C) to (B, T, C)."""
    width = (x.size(-1),)
    x = x + attention(weights, layer, F.rms_norm(x, width, eps=1e-6), heads, turned)
    return x + mlp(weights, layer, F.rms_norm(x, width, eps=1e-6))


def model_of(config: GPTConfig, seed: int = 1, spread: float = 0.3) -> GPT:
    """The product's model without a zero, so that every part of it shows: normal noise is added to all."""
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return model
