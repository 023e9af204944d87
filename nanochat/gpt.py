"""The model: a GPT that one can read in one sitting.

Rotary positions, parameter-free RMSNorm (after the embedding too), QK-norm, untied embedding and head, squared ReLU,
no biases, capped logits, zero-initialised output projections. Not in this room: how it is trained, sampled or stored.

Shapes: B rows, T tokens, C width, H heads, D channels per head, V vocabulary.

Lessons: lessons/10_forward_pass, lessons/12_initialisation
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from nanochat.attention import attend, rotary_table, rotate, window_mask
from nanochat.chunked_loss import LossBlock, capped_logits, chunked_cross_entropy, loss_block, wide
from nanochat.gpt_config import GPTConfig
from nanochat.tricks import Tricks

Role = Literal["matrix", "embedding", "unembedding", "scalar"]
IGNORED_TARGET = -1


class Linear(nn.Module):
    """A matrix without bias; its float32 weight is used in the format of what comes in."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        return F.linear(x, self.weight.to(x.dtype))


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x over the root of its mean square along the last axis, without weights (arXiv:1910.07467), in float32."""
    normed: torch.Tensor = _RMSNorm.apply(x, eps)
    return normed


class _RMSNorm(torch.autograd.Function):
    """Keeps its output instead of the chain of float32 intermediates that autograd would."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, eps: float) -> torch.Tensor:
        wider = x.to(wide(x.dtype))
        scale = wider.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        y = (wider * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        y, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        wider = gradient.to(scale.dtype)
        along = (wider * y).mean(-1, keepdim=True)
        return wider.addcmul(y.to(scale.dtype), along, value=-1).mul_(scale).to(y.dtype), None


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.eps, self.windows = config.norm_eps, config.windows
        self.c_q = Linear(config.n_embd, config.n_head * config.head_dim)
        self.c_k = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.c_v = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.c_proj = Linear(config.n_head * config.head_dim, config.n_embd)
        self.c_qkv: nn.Module | None = None  # at inference it may stand in for the first three

    def forward(
        self,
        x: torch.Tensor,
        rotary: torch.Tensor,
        layer: int,
        more_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, T, C) to (B, T, C). `more_values` (B, T, H_kv x D) are added to the values."""
        rows, tokens, _ = x.shape
        window = self.windows[layer]
        q, k, v = self._project(x)
        q = q.view(rows, tokens, self.n_head, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = k.view(rows, tokens, self.n_kv_head, self.head_dim).transpose(1, 2)
        v = v if more_values is None else v + more_values.to(x.dtype)
        v = v.view(rows, tokens, self.n_kv_head, self.head_dim).transpose(1, 2)
        q, k = rms_norm(rotate(q, rotary), self.eps), rms_norm(rotate(k, rotary), self.eps)
        narrow = None if window is None or tokens <= window else window_mask(tokens, window, x.device)
        y = attend(q, k, v, narrow, causal=narrow is None)
        return self.c_proj(y.transpose(1, 2).reshape(rows, tokens, -1))

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (..., H x D), keys and values (..., H_kv x D) of x (..., C)."""
        if self.c_qkv is None:
            return self.c_q(x), self.c_k(x), self.c_v(x)
        shared = self.n_kv_head * self.head_dim
        q, k, v = self.c_qkv(x).split((self.n_head * self.head_dim, shared, shared), dim=-1)
        return q, k, v


class MLP(nn.Module):
    """Squared ReLU (Primer, arXiv:2109.08668), or with a gate SwiGLU (arXiv:2002.05202)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.mlp_dim)
        self.c_gate = Linear(config.n_embd, config.mlp_dim) if config.mlp == "swiglu" else None
        self.c_proj = Linear(config.mlp_dim, config.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) to (B, T, C)."""
        hidden = self.c_fc(x)
        hidden = F.relu(hidden).square() if self.c_gate is None else F.silu(self.c_gate(x)) * hidden
        return self.c_proj(hidden)


class Block(nn.Module):
    """One layer: attention, then the MLP, each added to the stream."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: torch.Tensor,
        rotary: torch.Tensor,
        layer: int,
        more_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(rms_norm(x, self.eps), rotary, layer, more_values)
        return x + self.mlp(rms_norm(x, self.eps))


class Transformer(nn.Module):
    """The embedding and the layers, under the names that GPT-2 gave them."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))


class GPT(nn.Module):
    """The whole model. `dtype` is the format of its matrix products and of the stream between layers."""

    rotary: torch.Tensor

    def __init__(self, config: GPTConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.activation_checkpointing = False  # keep only each layer's input, and compute the rest again in backward
        self.loss_block: LossBlock = loss_block
        self.transformer = Transformer(config)
        self.tricks = Tricks(config)
        self.lm_head = Linear(config.n_embd, config.vocab_size)
        table = rotary_table(config.sequence_len, config.head_dim, config.rope_base, self.lm_head.weight.device)
        self.register_buffer("rotary", table, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.rotary.device

    @torch.no_grad()
    def init_weights(self, seed: int = 42) -> None:
        """Fill every parameter: the same values for the same seed on every device.

        Projections back into the stream start at zero, so every block starts as the identity; the others uniform
        with deviation 1/sqrt(width); the head almost zero, so the first loss is ln V; tricks so that they do nothing.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            values = torch.zeros(parameter.shape)
            if name.startswith("tricks."):
                values.fill_(Tricks.initial(name.removeprefix("tricks.")))
            elif name == "lm_head.weight":
                values.normal_(0.0, 0.001, generator=generator)
            elif name == "transformer.wte.weight":
                values.normal_(0.0, 1.0, generator=generator)
            elif not name.endswith("c_proj.weight"):
                bound = math.sqrt(3.0 / self.config.n_embd)
                values.uniform_(-bound, bound, generator=generator)
            parameter.copy_(values)

    def roles(self) -> dict[str, Role]:
        """What each parameter is, by name: the optimizer treats them by their role."""
        special: dict[str, Role] = {"transformer.wte.weight": "embedding", "lm_head.weight": "unembedding"}
        special |= {f"tricks.{name}": Tricks.role(name) for name, _ in self.tricks.named_parameters()}
        return {name: special.get(name, "matrix") for name, _ in self.named_parameters()}

    def cast_(self, dtype: torch.dtype) -> "GPT":
        """Hold the weights themselves in `dtype`: for inference, where no master copy is needed."""
        rotary = self.rotary
        self.to(dtype)
        self.rotary = rotary
        self.dtype = dtype
        return self

    def hidden(self, idx: torch.Tensor) -> torch.Tensor:
        """Ids (B, T) to the last layer's normalised output (B, T, C)."""
        limit, tokens = self.config.sequence_len, idx.size(1)
        assert tokens <= limit, f"{tokens} tokens do not fit the context of {limit}"
        rotary = self.rotary[:, :tokens]  # (2, T, D/2)
        x = middle = start = self._embed(idx)
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for layer, block in enumerate(self.transformer.h):
            if layer == self.tricks.middle:
                middle = x
            x, values = self.tricks.enter(x, start, layer), self.tricks.values(idx, layer)
            if again:
                x = checkpoint(block, x, rotary, layer, values, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rotary, layer, values)
        return rms_norm(self.tricks.leave(x, middle), self.config.norm_eps)

    def _embed(self, idx: torch.Tensor) -> torch.Tensor:
        """Ids (B, T) to the start of the stream (B, T, C)."""
        x = rms_norm(self.transformer.wte(idx).to(self.dtype), self.config.norm_eps)
        if not self.config.looks_back:
            return x
        previous = F.pad(idx[:, :-1], (1, 0), value=-1)
        return self.tricks.embed(x, F.pad(x[:, :-1], (0, 0, 1, 0)), idx, previous)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., V), at least float32."""
        return capped_logits(hidden, self.lm_head.weight, self.config.logit_softcap)

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, T, V) of ids (B, T); given targets (B, T), the mean loss in nats over those that are not -1.

        With `weights` (B, T) the weighted sum of the losses instead. No target at all gives 0, not NaN.
        """
        x = self.hidden(idx)
        if targets is None:
            return self.logits(x)
        flat = targets.reshape(-1)
        counted = (flat != IGNORED_TARGET).to(wide(x.dtype))
        if weights is None:
            weights = counted / counted.sum().clamp_min(1.0)
        else:
            weights = weights.reshape(-1) * counted
        total, _ = self._cross_entropy(x, flat, weights)
        return total

    @torch.no_grad()
    def token_losses(self, idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss (B, T) in nats of each target, 0 where it is -1."""
        flat = targets.reshape(-1)
        x = self.hidden(idx)
        counted = (flat != IGNORED_TARGET).to(wide(x.dtype))
        _, losses = self._cross_entropy(x, flat, counted)
        return (losses * counted).view_as(targets)

    def _cross_entropy(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of the losses of hidden (B, T, C) against flat targets, and each loss."""
        flat, head = hidden.flatten(0, 1), self.lm_head.weight
        return chunked_cross_entropy(flat, head, targets, weights, self.config.logit_softcap, self.loss_block)
