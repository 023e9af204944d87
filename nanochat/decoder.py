"""The forward pass at inference: what `gpt` computes, in as few operations as there are, over a cache.

A step that makes one id for each row is so short that operations count, and in Python calls. So the layers are laid
out flat here, and no gradient is thought of.

Shapes: N new tokens of any number of sequences, C width, H heads, D channels per head, V vocabulary.

Lesson: lessons/20_sampling_and_cache
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from nanochat.gpt import GPT, MLP, Attention, Block, rms_norm
from nanochat.gpt_config import GPTConfig
from nanochat.kv_cache import Reading

Matrix = Callable[[torch.Tensor], torch.Tensor]


class Decoder:
    """A model that reads new tokens. Made anew when the model's weights have changed."""

    def __init__(self, model: GPT):
        self.model, self.config, self.device, self.dtype = model, model.config, model.device, model.dtype
        self.layers = [_Layer(block) for block in model.transformer.h if isinstance(block, Block)]
        cosine, sine = model.rotary
        turns = torch.stack((torch.cat((cosine, cosine), dim=1), torch.cat((sine, -sine), dim=1)), dim=1)
        self.scratch: dict[int, Scratch] = {}
        self.turns = turns.to(self.dtype).unsqueeze(2)  # (positions, 2, 1, D)
        with torch.no_grad():
            table = model.transformer.wte.weight.to(self.dtype)
            self.table = rms_norm(table, self.config.norm_eps)  # (V, C): nothing is left to do with a token's row

    def hidden(self, ids: torch.Tensor, reading: Reading) -> torch.Tensor:
        """The new tokens' ids (N,) to the last layer's normalised output (N, C); the cache takes them up."""
        config, tricks = self.config, self.model.tricks
        x = self._embed(ids, reading)
        tokens, (turned_heads, shared_heads) = ids.size(0), (config.n_head + config.n_kv_head, config.n_kv_head)
        norms = (_FewCalls if x.device.type == "cpu" else _Fused)(self, reading.positions)
        middle = start = x
        for number, layer in enumerate(self.layers):
            if number == tricks.middle:
                middle = x
            if config.residual_scalars:
                x = tricks.enter(x, start, number)
            made = layer.project(norms.norm(x)).view(tokens, -1, config.head_dim)  # (N, H + 2 H_kv, D)
            turned, values = made.split_with_sizes((turned_heads, shared_heads), dim=1)
            if config.value_embeddings and (more := tricks.values(ids, number)) is not None:
                values = values + more.to(self.dtype).view_as(values)
            q, k = norms.turn(turned).split_with_sizes((config.n_head, shared_heads), dim=1)
            x = x + layer.c_proj(reading.attend(number, q, k, values))
            x = x + layer.mlp(norms.norm(x))
        return norms.last_norm(tricks.leave(x, middle))

    def raw_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., V) in any format, before they are squeezed, which leaves their order as it is."""
        raw: torch.Tensor = self.model.lm_head(hidden)
        return raw

    def _embed(self, ids: torch.Tensor, reading: Reading) -> torch.Tensor:
        """Ids (N,) to the start of the stream (N, C)."""
        x = F.embedding(ids, self.table)
        if not self.config.looks_back:
            return x
        previous = reading.previous
        assert previous is not None, "this model has to be told the ids before"
        before = F.embedding(previous.clamp_min(0), self.table) * (previous >= 0).unsqueeze(1)
        return self.model.tricks.embed(x, before, ids, previous)


class _Layer:
    """What a block multiplies by, without the calls that a module makes before its own."""

    def __init__(self, block: Block):
        self.attn: Attention = block.attn
        self.project: Matrix = self._apart if block.attn.c_qkv is None else block.attn.c_qkv.forward
        self.c_proj: Matrix = block.attn.c_proj.forward
        mlp: MLP = block.mlp
        self.mlp_in: Matrix = mlp.c_fc.forward
        self.gate: Matrix | None = None if mlp.c_gate is None else mlp.c_gate.forward
        self.mlp_out: Matrix = mlp.c_proj.forward

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C) to (N, C)."""
        made = self.mlp_in(x)
        if self.gate is None:
            return self.mlp_out(made.relu_().square_())
        return self.mlp_out(F.silu(self.gate(x)).mul_(made))

    def _apart(self, x: torch.Tensor) -> torch.Tensor:
        attn = self.attn
        return torch.cat((attn.c_q.forward(x), attn.c_k.forward(x), attn.c_v.forward(x)), dim=-1)


class _Fused:
    """Norms and rotations of one pass, for devices where torch has the norm in one kernel."""

    def __init__(self, decoder: Decoder, positions: torch.Tensor):
        self.eps = decoder.config.norm_eps
        self.cosine, self.sine = decoder.turns[positions].unbind(1)  # (N, 1, D)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C) to the same with a mean square of 1."""
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)

    last_norm = norm

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """Queries and keys (N, heads, D) to the same turned to their positions, with a mean square of 1."""
        return self.norm(torch.addcmul(x * self.cosine, x.roll(x.size(-1) // 2, dims=-1), self.sine))


Scratch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
MOST_ROWS_KEPT = 64
"""Scratch for so many tokens is kept for the next step."""


def _scratch(config: GPTConfig, like: torch.Tensor) -> Scratch:
    """Where N tokens' heads are turned, (N, heads, D) and as rows (N x heads, D + 1) with a last channel; lengths."""
    tokens, heads, width = like.size(0), config.n_head + config.n_kv_head, config.head_dim
    turned = like.new_full((tokens, heads, width + 1), (width * config.norm_eps) ** 0.5)
    stream_lengths = like.new_full((tokens, 1), config.n_embd**0.5)
    return turned[..., :-1], turned.view(-1, width + 1), stream_lengths, like.new_full((tokens * heads, 1), width**0.5)


class _FewCalls:
    """The same for CPUs, where torch's norm is six operations, and slow ones in bfloat16.

    What gives every row of a matrix a length in one operation was made for weights (arXiv:1602.07868): 1.4 us for one
    token instead of 10, and for 512 x 768 in bfloat16 0.1 ms instead of 1. It knows no epsilon. The stream, which
    starts as long as it is wide, does without; queries and keys get a last channel that holds it.
    """

    def __init__(self, decoder: Decoder, positions: torch.Tensor):
        self.width = decoder.config.head_dim
        self.cosine, self.sine = decoder.turns.index_select(0, positions).unbind(1)  # (N, 1, D)
        tokens = positions.size(0)
        scratch = decoder.scratch.get(tokens)
        if scratch is None:
            scratch = _scratch(decoder.config, self.cosine)
            if tokens <= MOST_ROWS_KEPT:
                decoder.scratch[tokens] = scratch
        self.turned, self.flat, self.stream_lengths, self.head_lengths = scratch

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C) to the same with a mean square of 1; nothing stays nothing, and what is no number becomes it."""
        return torch._weight_norm_interface(x, self.stream_lengths, 0)[0].nan_to_num_()

    def last_norm(self, x: torch.Tensor) -> torch.Tensor:
        """The same, but what is no number stays none."""
        unit, lengths = torch._weight_norm_interface(x, self.stream_lengths, 0)
        return unit.nan_to_num_().add_(lengths.mul_(0))

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """Queries and keys (N, heads, D) to the same turned to their positions, with a mean square of 1."""
        torch.addcmul(x * self.cosine, x.roll(self.width // 2, dims=-1), self.sine, out=self.turned)
        unit = torch._weight_norm_interface(self.flat, self.head_lengths, 0)[0]
        return unit.view(*x.shape[:2], -1)[..., :-1]
