"""What `lesson_ablations` varies: thin changes of nanochat's own model and optimizer, none a flag of the product.

Shapes: B rows, T tokens, C width, H heads, D channels per head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nanochat.attention import attend, rotate
from nanochat.gpt import GPT, Attention, Role, rms_norm
from nanochat.gpt_config import GPTConfig
from nanochat.optim import MuonAdamW, Rates
from nanochat.plan import TrainPlan
from nanochat.runtime import Runtime


@dataclass(frozen=True)
class Change:
    """One change of the baseline, which has rotary positions on q and k, zero projections, and Muon."""

    kind: Literal["baseline", "positions", "initialisation", "optimizer"]
    what: str
    turned: str = "qk"
    """Which of q, k and v are rotated."""
    turned_layers: int | None = None
    """In the first so many layers; None: in all."""
    added: Literal["", "sines", "learned"] = ""
    """What is added to the embedding, once."""
    weights: Literal["product", "gpt2", "wide", "unit", "zero"] = "product"
    matrices: Literal["muon", "adamw", "adamw_everywhere", "sgd"] = "muon"
    """The optimizer of the matrices; everywhere: of embedding and head too, at the same rate."""
    matrix_lr: float = 0.02


CHANGES = {
    "baseline": Change("baseline", "q and k rotated in every layer; zero projections; Muon at 0.02"),
    "none": Change("positions", "no positions at all: only the causal mask tells early from late", turned=""),
    "added_sines": Change("positions", "sines and cosines added once, before the first layer", "", added="sines"),
    "added_learned": Change("positions", "a learned table added once, before the first layer", "", added="learned"),
    "rotary_first_layer": Change("positions", "q and k rotated in the first layer only", turned_layers=1),
    "rotary_q": Change("positions", "only q rotated, in every layer", turned="q"),
    "rotary_qkv": Change("positions", "q, k and v rotated, in every layer", turned="qkv"),
    "gpt2": Change("initialisation", "all matrices and tables normal with deviation 0.02, as GPT-2", weights="gpt2"),
    "wide": Change("initialisation", "all matrices normal, 1/sqrt(inputs): projections and head too", weights="wide"),
    "unit": Change("initialisation", "all matrices and tables normal with deviation 1", weights="unit"),
    "all_zero": Change("initialisation", "all matrices and the head zero", weights="zero"),
    "muon_0.01": Change("optimizer", "Muon at 0.01", matrix_lr=0.01),
    "muon_0.04": Change("optimizer", "Muon at 0.04", matrix_lr=0.04),
    "muon_0.08": Change("optimizer", "Muon at 0.08", matrix_lr=0.08),
    "adamw_0.001": Change("optimizer", "AdamW for the matrices, at 0.001", matrices="adamw", matrix_lr=0.001),
    "adamw_0.003": Change("optimizer", "AdamW for the matrices, at 0.003", matrices="adamw", matrix_lr=0.003),
    "adamw_0.01": Change("optimizer", "AdamW for the matrices, at 0.01", matrices="adamw", matrix_lr=0.01),
    "adamw_0.03": Change("optimizer", "AdamW for the matrices, at 0.03", matrices="adamw", matrix_lr=0.03),
    "adamw_one_rate": Change(
        "optimizer", "AdamW for everything, at 0.003", matrices="adamw_everywhere", matrix_lr=0.003
    ),
    "sgd_0.1": Change("optimizer", "SGD with momentum for the matrices, at 0.1", matrices="sgd", matrix_lr=0.1),
    "sgd_0.3": Change("optimizer", "SGD with momentum for the matrices, at 0.3", matrices="sgd", matrix_lr=0.3),
    "sgd_1": Change("optimizer", "SGD with momentum for the matrices, at 1", matrices="sgd", matrix_lr=1.0),
}


class VariedAttention(Attention):
    """Attention over whole rows that rotates whichever of q, k and v it is told to."""

    def __init__(self, config: GPTConfig, turned: str):
        super().__init__(config)
        self.turned = turned

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, *_: object) -> torch.Tensor:
        """(B, T, C) to (B, T, C)."""
        rows, tokens, _ = x.shape
        made = {
            name: project(x).view(rows, tokens, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
            for name, project in (("q", self.c_q), ("k", self.c_k), ("v", self.c_v))
        }
        q, k, v = (rotate(part, rotary) if name in self.turned else part for name, part in made.items())
        y = attend(rms_norm(q, self.eps), rms_norm(k, self.eps), v, None, causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(rows, tokens, -1))


class VariedGPT(GPT):
    """The product's model with other positions."""

    def __init__(self, config: GPTConfig, change: Change):
        super().__init__(config)
        for layer, block in enumerate(self.transformer.h):
            here = change.turned_layers is None or layer < change.turned_layers
            block.attn = VariedAttention(config, change.turned if here else "")
        self.places = torch.nn.Parameter(torch.zeros(config.sequence_len, config.n_embd)) if change.added else None

    def _embed(self, *given: Any) -> torch.Tensor:
        x = super()._embed(*given)
        return x if self.places is None else x + self.places[: x.size(1)]

    def roles(self) -> dict[str, Role]:
        """What each parameter is, by name. At the embedding's rate a table of positions would drown the tokens."""
        return {name: "scalar" if name == PLACES else role for name, role in super().roles().items()}


PLACES = "places"


def sines(positions: int, width: int) -> torch.Tensor:
    """Sines and cosines (positions, width) of the first Transformer (arXiv:1706.03762)."""
    angles = torch.arange(positions).unsqueeze(1) * 10_000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


@torch.no_grad()
def varied_model(config: GPTConfig, change: Change, seed: int) -> VariedGPT:
    """The model with its first weights."""
    model = VariedGPT(config, change)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name == PLACES:
            parameter.copy_(sines(*parameter.shape) if change.added == "sines" else torch.zeros(parameter.shape))
            parameter.requires_grad_(change.added == "learned")
        if change.weights == "product":
            continue
        normal = torch.randn(parameter.shape, generator=generator)
        if change.weights == "gpt2":
            parameter.copy_(0.02 * normal)
        elif change.weights == "unit":
            parameter.copy_(normal)
        elif not name.endswith("wte.weight"):
            parameter.copy_(normal / math.sqrt(parameter.size(1)) if change.weights == "wide" else 0 * normal)
    return model


class Optimizers:
    """The product's optimizer, and torch's where the change asks for it, under one schedule."""

    def __init__(self, product: MuonAdamW | None, torchs: Sequence[torch.optim.Optimizer], rate: float):
        self.product, self.torchs, self.rate = product, torchs, rate

    def step(self, lr_multiplier: float, momentum: float) -> None:
        """One update; then the gradients are forgotten."""
        if self.product is not None:
            self.product.step(lr_multiplier, momentum)
            self.product.zero_grad()
        for optimizer in self.torchs:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * lr_multiplier
            optimizer.step()
            optimizer.zero_grad()


def optimizers_of(model: GPT, change: Change, plan: TrainPlan, runtime: Runtime) -> Optimizers:
    """What updates the model: the product's, but for the parameters that the change gives to torch's."""
    rates = Rates(plan.matrix_lr, plan.embedding_lr, plan.unembedding_lr, plan.weight_decay)
    roles = model.roles()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    theirs = {
        name: parameter
        for name, parameter in trained.items()
        if change.matrices == "adamw_everywhere" or (change.matrices != "muon" and roles[name] == "matrix")
    }
    ours = {name: parameter for name, parameter in trained.items() if name not in theirs}
    torchs: list[torch.optim.Optimizer] = []
    if theirs and change.matrices == "sgd":
        torchs = [torch.optim.SGD(theirs.values(), lr=plan.matrix_lr, momentum=0.9, nesterov=True)]
    elif theirs:
        torchs = [torch.optim.AdamW(theirs.values(), lr=plan.matrix_lr, betas=(0.9, 0.95), weight_decay=0.0)]
    return Optimizers(MuonAdamW(ours, roles, rates, runtime) if ours else None, torchs, plan.matrix_lr)
