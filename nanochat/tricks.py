"""Speed tricks: what a GPT may have beside the default architecture, each a field of GPTConfig that is off by default.

All of them start as nothing: a fresh model with any of them computes what the same model without them does. Windows of
attention need no parameter and are in `attention`. Which tricks pay is in dev/ABLATIONS.md.

Shapes: B rows, T tokens, C width, V vocabulary.

Lesson: lessons/25_your_ablation
"""

from typing import Literal

import torch
from torch import nn

from nanochat.gpt_config import SMEAR_CHANNELS, GPTConfig


class Tricks(nn.Module):
    """The parameters of the tricks that are on, and where they meet the stream."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.middle = config.n_layer // 2  # the layer whose input is what backout takes away
        tables = {str(layer): nn.Embedding(config.vocab_size, config.kv_dim) for layer in config.value_layers}
        self.value_tables = nn.ModuleDict(tables)
        if config.bigram_rows:
            self.bigram = nn.Embedding(config.bigram_rows, config.n_embd)
            self.bigram_scale = nn.Parameter(torch.empty(1))
        if config.residual_scalars:
            self.stream_scale = nn.Parameter(torch.empty(config.n_layer))
            self.start_scale = nn.Parameter(torch.empty(config.n_layer))
        if config.smear:
            self.smear_gate = nn.Parameter(torch.empty(min(SMEAR_CHANNELS, config.n_embd)))
            self.smear_scale = nn.Parameter(torch.empty(1))
        if config.backout:
            self.backout_scale = nn.Parameter(torch.empty(1))

    @staticmethod
    def initial(name: str) -> float:
        """The value that a parameter starts with, all over: that which makes its trick do nothing.

        The bigram table is zero and its scale small: at one, AdamW's steps of the rare rows drown the stream.
        """
        return {"stream_scale": 1.0, "bigram_scale": 0.1}.get(name, 0.0)

    @staticmethod
    def role(name: str) -> Literal["embedding", "scalar"]:
        """What the optimizer takes a parameter for."""
        return "embedding" if name.endswith(".weight") else "scalar"

    def embed(self, x: torch.Tensor, before: torch.Tensor, idx: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """The start of the stream from normalised embeddings x (B, T, C) of ids (B, T), and of what stands before them.

        `previous` (B, T) are the ids before, -1 where there is none, and `before` (B, T, C) their embeddings, 0 there.
        Smear adds a gated share of the previous token's embedding; the bigram table has a row for each pair of
        neighbours, which share rows by a hash.
        """
        if self.config.smear:
            gate = torch.sigmoid(x[..., : len(self.smear_gate)] @ self.smear_gate.to(x.dtype)).unsqueeze(-1)
            x = x + self.smear_scale[0] * gate * before
        if self.config.bigram_rows:
            pairs = self.bigram(bigram_rows(previous, idx, self.config.bigram_rows))
            x = x + self.bigram_scale[0] * pairs.to(x.dtype)
        return x

    def enter(self, x: torch.Tensor, start: torch.Tensor, layer: int) -> torch.Tensor:
        """The input of a layer: the stream and its start, each times a number of the layer's own."""
        if not self.config.residual_scalars:
            return x
        return self.stream_scale[layer] * x + self.start_scale[layer] * start

    def values(self, idx: torch.Tensor, layer: int) -> torch.Tensor | None:
        """What each token (B, T) adds to its values in a layer, (B, T, H_kv x D); None where nothing is added."""
        name = str(layer)
        table: torch.Tensor | None = self.value_tables[name](idx) if name in self.value_tables else None
        return table

    def leave(self, x: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        """The end of the stream, less a share of what it was in the middle."""
        return x - self.backout_scale[0] * middle if self.config.backout else x


def bigram_rows(previous: torch.Tensor, ids: torch.Tensor, rows: int) -> torch.Tensor:
    """The row for each pair of a previous id (-1 where there is none) and an id; odd factors spread them evenly."""
    mixed = (previous + 1) * 2_654_435_761 ^ ids * 2_246_822_519
    return (mixed ^ mixed >> 16) % rows
